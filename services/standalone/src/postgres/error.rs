//! Why there is no private server.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use super::{OLDEST_VERSION, START_LIMIT};

/// Why there is no private server.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// Neither PATH nor the usual places have a server.
    #[error(
        "no PostgreSQL server found: install it (Debian: `apt-get install postgresql`, macOS: \
         `brew install postgresql`), or set CRM_POSTGRES_BIN or CRM_DATABASE_URL"
    )]
    NotInstalled,
    /// The configured folder has no server.
    #[error("{path} does not hold `postgres` and `initdb`: correct CRM_POSTGRES_BIN", path = .0.display())]
    WrongBinDir(PathBuf),
    /// The programs in this folder say a version that is too old, or no version.
    #[error("PostgreSQL {OLDEST_VERSION} or newer is needed, but {path} is `{1}`", path = .0.display())]
    WrongVersion(PathBuf, String),
    /// A cluster is of one major version, the programs of another, and cannot read it.
    #[error("{path} is of PostgreSQL {1}, not {2}: set CRM_POSTGRES_BIN or remove it", path = .0.display())]
    OtherVersion(PathBuf, String, u32),
    /// We are root, and there is no user to run the server.
    #[error("PostgreSQL refuses root, and there is neither a user `postgres` nor `nobody`")]
    NoAccount,
    /// The folder is somebody else's, or in use for something else.
    #[error("{path} must be empty and ours, or of user id {1} with mode 0700", path = .0.display())]
    UnfitFolder(PathBuf, u32),
    /// What could not be done, and to which file or program.
    #[error("cannot {0} {path}", path = .1.display())]
    Io(&'static str, PathBuf, #[source] io::Error),
    /// A program failed; with its last words.
    #[error("{path} failed ({1}): {2}", path = .0.display())]
    Program(PathBuf, ExitStatus, String),
    /// Something else listens on the port.
    #[error(
        "PostgreSQL cannot listen on 127.0.0.1:{0} (Address already in use); --port-base (CRM_PORT_BASE) changes the address"
    )]
    PortTaken(u16),
    /// The server ended, though nobody stopped it; with the end of its log.
    #[error("PostgreSQL ended ({0}): {1}")]
    Exited(ExitStatus, String),
    /// The server runs, but nobody can connect; with the end of its log.
    #[error("PostgreSQL was not ready after {limit} s: {0}", limit = START_LIMIT.as_secs())]
    NotReady(String),
    /// The cluster in this folder was made with another password.
    #[error("the superuser of {path} has another password", path = .0.display())]
    WrongPassword(PathBuf),
    /// The server with this process id, on this folder, ignores an immediate shutdown.
    #[error("PostgreSQL (process {0}) on {path} does not stop", path = .1.display())]
    DoesNotStop(u32, PathBuf),
}

pub(super) fn io_error(
    action: &'static str,
    path: impl AsRef<Path>,
) -> impl FnOnce(io::Error) -> PostgresError {
    move |source| PostgresError::Io(action, path.as_ref().to_owned(), source)
}
