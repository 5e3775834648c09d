//! The cluster: made once, checked at each start, and freed from a server left behind.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use secrecy::ExposeSecret;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::programs::Account;
use super::{Options, POLL, PostgresError, Progress, SHUTDOWN, io_error, run, send_signal};

/// Where a server says in its lock file how far it is (PostgreSQL, `pidfile.h`); from 0.
const STATUS_LINE: usize = 7;

pub(super) fn check_cluster_version(cluster: &Path, version: u32) -> Result<(), PostgresError> {
    let path = cluster.join("PG_VERSION");
    let made_by = fs::read_to_string(&path).map_err(io_error("read", &path))?.trim().to_owned();
    if made_by.parse() == Ok(version) {
        return Ok(());
    }
    Err(PostgresError::OtherVersion(cluster.to_owned(), made_by, version))
}

/// Stops the server of an earlier process that was killed.
pub(super) async fn stop_leftover(
    cluster: &Path,
    account: &Account,
    progress: Progress<'_>,
) -> Result<(), PostgresError> {
    let lock_path = cluster.join("postmaster.pid");
    let Ok(lock) = fs::read(&lock_path) else { return Ok(()) };
    let lock = String::from_utf8_lossy(&lock);
    let (first, rest) = lock.split_once('\n').unwrap_or_default();
    let pid = first.parse().unwrap_or(0);
    if !is_postmaster(pid, cluster).await {
        return if is_gone(pid) { Ok(()) } else { disown(&lock_path, rest, account) };
    }
    progress("stopping the PostgreSQL server that an earlier run left behind");
    for (signal, patience) in SHUTDOWN {
        send_signal(pid, signal);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            sleep(POLL).await;
            if !is_postmaster(pid, cluster).await {
                return Ok(());
            }
        }
    }
    Err(PostgresError::DoesNotStop(pid, cluster.to_owned()))
}

/// Makes PostgreSQL pass over a stale file that it would respect: one without a process id, or
/// whose process id is another program's by now. It never respects its own parent's id, and still
/// looks in the rest of the file for what it needs to find orphaned sessions. There is a whole file
/// at any moment, also where the disk is full.
fn disown(lock_path: &Path, rest: &str, account: &Account) -> Result<(), PostgresError> {
    let part = lock_path.with_extension("part");
    account
        .open(OpenOptions::new().write(true).create(true).truncate(true), &part)
        .and_then(|mut file| write!(file, "{}\n{rest}", std::process::id()))
        .and_then(|()| fs::rename(&part, lock_path))
        .map_err(io_error("write", lock_path))
}

/// Whether there is no such process, so that PostgreSQL respects no file with its id.
fn is_gone(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}

/// Whether the process is the server of this cluster, not a later one with the same id.
async fn is_postmaster(pid: u32, cluster: &Path) -> bool {
    let command_line = if cfg!(target_os = "linux") {
        fs::read(format!("/proc/{pid}/cmdline"))
    } else {
        let id = pid.to_string();
        let ps = Command::new("ps").args(["-ww", "-o", "command=", "-p", &id]).output().await;
        ps.map(|output| output.stdout)
    };
    let command_line = command_line.unwrap_or_default();
    let command_line = String::from_utf8_lossy(&command_line).replace(['\0', '\n'], " ");
    command_line.contains(&format!("postgres -D {} ", cluster.display()))
}

/// Whether the server of this cluster was told to stop, as its lock file says.
pub(super) fn is_stopping(cluster: &Path) -> bool {
    let lock = fs::read_to_string(cluster.join("postmaster.pid")).unwrap_or_default();
    lock.lines().nth(STATUS_LINE).is_some_and(|status| status.trim() == "stopping")
}

/// Makes the cluster under another name, so that half of one is never taken for it. That name is
/// new: an initdb whose parent was killed may still be writing.
pub(super) async fn make_cluster(
    cluster: &Path,
    bin_dir: &Path,
    options: &Options,
    account: &Account,
) -> Result<(), PostgresError> {
    let folder = &options.data_dir;
    remove_unfinished(folder);
    let unfinished = folder.join(format!("unfinished-{}", std::process::id()));
    let password = unfinished.with_extension("password");
    account
        .open(OpenOptions::new().write(true).create_new(true), &password)
        .and_then(|mut file| file.write_all(options.superuser_password.expose_secret().as_bytes()))
        .map_err(io_error("write", &password))?;
    let mut initdb = account.command(bin_dir.join("initdb"));
    initdb.args(["--username=postgres", "--auth=scram-sha-256", "--no-instructions"]);
    // Text sorts by its bytes, on every machine and after every update of its C library. Case is
    // Unicode's all the same, where C would know ASCII letters only.
    initdb.args(["--encoding=UTF8", "--locale=C"]);
    let macos = cfg!(target_os = "macos");
    initdb.arg(if macos { "--lc-ctype=en_US.UTF-8" } else { "--lc-ctype=C.UTF-8" });
    initdb.args((!options.durable).then_some("--no-sync"));
    initdb.arg("--pwfile").arg(&password).arg("-D").arg(&unfinished);
    let made = run(&mut initdb).await;
    fs::remove_file(&password).map_err(io_error("remove", &password))?;
    made?;
    fs::rename(&unfinished, cluster)
        .and_then(|()| if options.durable { File::open(folder)?.sync_all() } else { Ok(()) })
        .map_err(io_error("make", cluster))
}

/// Removes what earlier attempts left, as far as nobody is writing there.
fn remove_unfinished(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(b"unfinished-") {
            continue;
        }
        // On a link to a folder it removes the link.
        let removed = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        if let Err(error) = removed {
            tracing::warn!(%error, path = %entry.path().display(), "cannot remove a leftover");
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::geteuid;

    use super::*;
    use crate::postgres::scratch::Scratch;

    #[tokio::test]
    async fn a_stale_lock_file_keeps_no_server_from_starting() {
        let scratch = Scratch::new("stale");
        let path = scratch.0.join("postmaster.pid");
        let account = Account { uid: geteuid().as_raw(), gid: None };
        let ours = std::process::id();
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let gone = format!("{}\n/data\n", gone.id());
        // PostgreSQL would respect all but the last, and end.
        for (left, expected) in [
            (&b""[..], format!("{ours}\n")),
            (b"half a fi", format!("{ours}\n")),
            (b"\xff\xfe\n/data\n", format!("{ours}\n/data\n")),
            (b"1\n/data\n", format!("{ours}\n/data\n")),
            (gone.as_bytes(), gone.clone()),
        ] {
            fs::write(&path, left).unwrap();

            stop_leftover(&scratch.0, &account, &|_| {}).await.unwrap();

            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        }
    }
}
