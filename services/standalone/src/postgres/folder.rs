//! The folder of a server, which belongs to the user that runs it.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::programs::Account;
use super::{Options, PostgresError, Progress, io_error, run};

/// Makes the folder, or another one if the server's user cannot reach it.
pub(super) async fn prepare_folder(
    options: &Options,
    account: &Account,
    progress: Progress<'_>,
) -> Result<PathBuf, PostgresError> {
    let (folder, is_substitute) = find_folder(&options.data_dir, options.durable, account).await?;
    if is_substitute {
        progress(&format!(
            "user id {} runs PostgreSQL and cannot reach {}: its data is in {}",
            account.uid,
            options.data_dir.display(),
            folder.display()
        ));
    }
    take_folder(&folder, account).map(|()| folder)
}

/// Where the folder is, and whether that is not where it is wanted, because
/// the server's user cannot reach it there.
pub(super) async fn find_folder(
    wanted: &Path,
    durable: bool,
    account: &Account,
) -> Result<(PathBuf, bool), PostgresError> {
    let wanted = resolve(wanted).map_err(io_error("make", wanted))?;
    let mut probe = account.command("sh");
    // Its parent exists: `resolve` made it.
    probe.args(["-c", "cd -- \"$1\"", "sh"]).arg(wanted.parent().unwrap_or(&wanted));
    if account.gid.is_none() || run(&mut probe).await.is_ok() {
        // Here a link is the owner's, perhaps to a larger disk.
        return Ok((fs::canonicalize(&wanted).unwrap_or(wanted), false));
    }
    // Not for lasting data: /var/tmp is tidied up by age, file by file.
    let lasting = durable && Path::new("/var/lib").is_dir();
    Ok((substitute_folder(if lasting { "/var/lib" } else { "/var/tmp" }, &wanted), true))
}

/// The same path whichever way the folder is named; its parents are made.
fn resolve(folder: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(folder)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(ErrorKind::InvalidFilename.into());
    };
    fs::create_dir_all(parent)?;
    Ok(fs::canonicalize(parent)?.join(name))
}

/// The same folder at each start (FNV-1a, because the hash of `std` may change).
fn substitute_folder(base: &str, wanted: &Path) -> PathBuf {
    let hash =
        wanted.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| {
            (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
        });
    Path::new(base).join(format!("crm-postgres-{hash:016x}"))
}

/// Makes sure of a folder for the server's user alone. An existing one is believed only if nobody
/// else can have put it there, since /var/tmp is open to all, and changed only if it is empty.
fn take_folder(folder: &Path, account: &Account) -> Result<(), PostgresError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(io_error("make", folder)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let found = fs::symlink_metadata(folder).map_err(io_error("read", folder))?;
    if found.is_dir() && found.uid() == account.uid && found.mode() & 0o777 == 0o700 {
        return Ok(());
    }
    let is_empty = || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if !found.is_dir() || found.uid() != geteuid().as_raw() || !is_empty() {
        return Err(PostgresError::UnfitFolder(folder.to_owned(), account.uid));
    }
    fs::set_permissions(folder, Permissions::from_mode(0o700))
        .and_then(|()| chown(folder, Some(account.uid), account.gid))
        .map_err(io_error("take over", folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::scratch::Scratch;

    #[test]
    fn substitute_folder_is_the_same_in_every_build() {
        let folder = substitute_folder("/var/tmp", Path::new("/srv/a/.crm/postgres"));

        assert_eq!(folder, Path::new("/var/tmp/crm-postgres-b065899c283f59f4"));
    }

    #[test]
    fn take_folder_refuses_links_and_folders_in_use() {
        let scratch = Scratch::new("take");
        let account = Account { uid: geteuid().as_raw(), gid: None };
        let [fresh, used, link] = ["fresh", "used", "link"].map(|name| scratch.0.join(name));
        fs::create_dir_all(used.join("photos")).unwrap();
        std::os::unix::fs::symlink(&fresh, &link).unwrap();

        take_folder(&fresh, &account).unwrap();
        take_folder(&fresh, &account).unwrap();

        assert_eq!(fs::metadata(&fresh).unwrap().mode() & 0o777, 0o700);
        for unfit in [used, link] {
            let refusal = take_folder(&unfit, &account);
            assert!(matches!(refusal, Err(PostgresError::UnfitFolder(..))), "{refusal:?}");
        }
    }
}
