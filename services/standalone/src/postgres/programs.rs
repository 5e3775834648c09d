//! The programs of PostgreSQL, and the user that runs them.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::OFlags;
use rustix::process::geteuid;
use tokio::process::Command;

use super::{OLDEST_VERSION, PostgresError, io_error, run};

/// Where installers put servers: folders with one subfolder for each version.
const INSTALLED: [(&str, &str); 3] = [
    ("/usr/lib/postgresql", ""),
    ("/opt/homebrew/opt", "postgresql"),
    ("/usr/local/opt", "postgresql"),
];

/// Who runs the programs: we ourselves or, if we are root, another user.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) uid: u32,
    /// Set if it is another user.
    pub(super) gid: Option<u32>,
}

impl Account {
    pub(super) fn of_server() -> Result<Self, PostgresError> {
        let uid = geteuid().as_raw();
        if uid != 0 {
            return Ok(Self { uid, gid: None });
        }
        let passwd = fs::read_to_string("/etc/passwd").map_err(io_error("read", "/etc/passwd"))?;
        let user = ["postgres", "nobody"].iter().find_map(|name| find_user(&passwd, name));
        user.map(|(uid, gid)| Self { uid, gid: Some(gid) }).ok_or(PostgresError::NoAccount)
    }

    /// A command that shares nothing with us: not the terminal, whose Ctrl-C is for us alone, not
    /// the folder, which may be out of its reach, not the environment, which may hold secrets,
    /// settings of PostgreSQL and another language, and not root's groups, which `uid` gives up.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let kept = ["PATH", "LD_LIBRARY_PATH"].into_iter();
        command.env_clear().envs(kept.filter_map(|name| Some((name, env::var_os(name)?))));
        command.env("LC_ALL", "C").current_dir("/").process_group(0);
        command.stdin(Stdio::null()).kill_on_drop(true);
        if let Some(gid) = self.gid {
            command.uid(self.uid).gid(gid);
        }
        command
    }

    /// Opens a file for this user alone. Links are not followed, lest that user leads root astray.
    pub(super) fn open(&self, how: &mut OpenOptions, path: &Path) -> io::Result<File> {
        let file = how.mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path)?;
        fchown(&file, Some(self.uid), self.gid)?;
        Ok(file)
    }
}

/// The user id and group id, unless it is root by another name.
fn find_user(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let line = passwd.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    // macOS writes the id of `nobody` as -2.
    let id = |text: &str| text.parse().or_else(|_| text.parse().map(i32::cast_unsigned)).ok();
    let mut fields = line.split(':').skip(1);
    Some((id(fields.next()?)?, id(fields.next()?)?)).filter(|(uid, _)| *uid != 0)
}

/// Takes the folder of the programs, as a value of an option.
pub(crate) fn bin_dir(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    match server_dir(&path) {
        Some(_) => Ok(path),
        None => Err("it does not hold `postgres` and `initdb`".to_owned()),
    }
}

pub(super) async fn find_programs(
    configured: Option<&Path>,
    account: &Account,
) -> Result<(PathBuf, u32), PostgresError> {
    let bin_dir = match configured {
        Some(dir) => server_dir(dir).ok_or_else(|| PostgresError::WrongBinDir(dir.to_owned()))?,
        None => search(&env::var_os("PATH").unwrap_or_default(), &INSTALLED)?,
    };
    let text = run(account.command(bin_dir.join("postgres")).arg("--version")).await?;
    match major_version(&text) {
        Some(version) if version >= OLDEST_VERSION => Ok((bin_dir, version)),
        Some(_) | None => Err(PostgresError::WrongVersion(bin_dir, text.trim().to_owned())),
    }
}

/// Looks in the folders of a PATH, then where installers put servers.
fn search(path: &OsStr, installed: &[(&str, &str)]) -> Result<PathBuf, PostgresError> {
    env::split_paths(path)
        .find_map(|dir| server_dir(&dir))
        .or_else(|| installed.iter().find_map(|(root, name)| newest_server_dir(root, name)))
        .ok_or(PostgresError::NotInstalled)
}

/// The folder that the programs really are in: PostgreSQL finds its other files from there.
fn server_dir(dir: &Path) -> Option<PathBuf> {
    let real = fs::canonicalize(dir.join("postgres")).ok()?.parent()?.to_owned();
    (dir.join("initdb").is_file() && real.join("initdb").is_file()).then_some(real)
}

/// The `bin` of the highest version among subfolders such as `15` or `postgresql@15`.
fn newest_server_dir(root: impl AsRef<Path>, prefix: &str) -> Option<PathBuf> {
    let versions = fs::read_dir(root).ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name();
        let version = name.to_str()?.strip_prefix(prefix)?.trim_start_matches('@').parse();
        Some((version.unwrap_or(0), server_dir(&entry.path().join("bin"))?))
    });
    versions.max_by_key(|(version, _): &(u32, _)| *version).map(|(_, dir)| dir)
}

/// 15 of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split_once("(PostgreSQL) ")?.1;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::scratch::Scratch;

    #[test]
    fn major_version_reads_releases_and_previews() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 19beta1\n"), Some(19));
        assert_eq!(major_version("psql"), None);
    }

    #[test]
    fn newest_server_dir_compares_numbers_and_skips_clients() {
        let scratch = Scratch::new("newest");
        for (version, programs) in [("9", 2), ("15", 2), ("16", 1)] {
            let bin = scratch.0.join(version).join("bin");
            fs::create_dir_all(&bin).unwrap();
            for program in &["initdb", "postgres"][..programs] {
                fs::write(bin.join(program), "").unwrap();
            }
        }

        assert_eq!(newest_server_dir(&scratch.0, ""), Some(scratch.0.join("15/bin")));
    }

    #[test]
    fn a_machine_without_a_server_is_told_what_to_install() {
        let scratch = Scratch::new("nothing");
        let installed = [(scratch.0.to_str().unwrap(), "")];

        let error = search(scratch.0.as_os_str(), &installed).unwrap_err();

        let words = error.to_string();
        assert!(matches!(error, PostgresError::NotInstalled));
        assert_eq!(words.lines().count(), 1);
        assert!(words.contains("apt-get install postgresql"), "{words}");
    }

    #[test]
    fn find_user_never_answers_root() {
        let passwd = "postgres:x:0:0::/:/bin/sh\nnobody2:x:7:7::/:\nnobody:*:-2:9::/:/bin/false\n";

        assert_eq!(find_user(passwd, "postgres"), None);
        assert_eq!(find_user(passwd, "nobody"), Some((u32::MAX - 1, 9)));
        assert_eq!(find_user(passwd, "absent"), None);
    }
}
