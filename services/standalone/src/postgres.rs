//! A private PostgreSQL server: finds the programs, makes the cluster, starts and stops the server.
//!
//! One folder holds it all: the cluster in `data`, the log in `postgres.log`. PostgreSQL refuses
//! to run as root; it then runs as the user `postgres` or `nobody`, who owns the folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crm_service::bind;
use rustix::process::{Pid, Signal, kill_process};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

mod cluster;
mod folder;
mod programs;
#[cfg(test)]
mod scratch;

use cluster::{check_cluster_version, make_cluster, stop_leftover};
use folder::{find_folder, prepare_folder};
pub(crate) use programs::bin_dir;
use programs::{Account, find_programs};

const OLDEST_VERSION: u32 = 15;
const PROGRAM_LIMIT: Duration = Duration::from_secs(120);
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Fast, then immediate; the latter itself kills what is left after five seconds.
const SHUTDOWN: [(Signal, Duration); 2] =
    [(Signal::INT, Duration::from_secs(8)), (Signal::QUIT, Duration::from_secs(7))];

/// Passed on the command line: they win over the files in the cluster, which need no upkeep then.
const SETTINGS: [&str; 10] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=", // nobody needs one, and its path might be too long
    "password_encryption=scram-sha-256",
    "shared_buffers=128MB",
    "idle_in_transaction_session_timeout=5min", // a forgotten transaction blocks others
    "jit=off",                                  // costs short statements more than it gains
    "timezone=UTC",
    "log_timezone=UTC",
    "log_min_messages=warning",
    "log_line_prefix=%m [%p] %q%u@%d ",
];

/// Is told, a sentence at a time, what takes long or is worth knowing.
pub type Progress<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// Where and how a private server runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of the cluster and its log; parents are made. Another one is used if the
    /// server's user cannot reach it. The caller prevents two starts at once on one folder.
    pub data_dir: PathBuf,
    /// The port on 127.0.0.1, not 0.
    pub port: u16,
    /// The folder of `postgres` and `initdb`; they are searched for if `None`.
    pub bin_dir: Option<PathBuf>,
    /// The password of the superuser `postgres`, one line, fixed when the cluster is made.
    pub superuser_password: SecretString,
    /// Whether data outlives a crash of the machine; tests are faster without.
    pub durable: bool,
    /// The most connections at a time.
    pub max_connections: u32,
}

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

/// A running server; better [stopped](Self::stop) than dropped.
///
/// When dropped it is shut down without waiting, and recovers at its next start. When this process
/// is killed it stays, until the next start on the same folder.
#[derive(Debug)]
pub struct PrivatePostgres {
    server: Child,
    pid: u32,
    /// With the folder that is really used.
    options: Options,
    /// How long the log was before this start.
    log_start: u64,
    detached: bool,
}

impl PrivatePostgres {
    /// Starts a server, on a new cluster if there is none, and waits until it takes connections.
    /// A server that a killed process left behind is stopped first.
    ///
    /// # Errors
    ///
    /// Fails without a usable program, folder or port, or if the server does not become ready.
    pub async fn start(
        mut options: Options,
        progress: Progress<'_>,
    ) -> Result<Self, PostgresError> {
        let account = Account::of_server()?;
        let (bin_dir, version) = find_programs(options.bin_dir.as_deref(), &account).await?;
        options.data_dir = prepare_folder(&options, &account, progress).await?;
        let cluster = options.data_dir.join("data");
        stop_leftover(&cluster, &account, progress).await?;
        // Asked before the cluster is made, since this is the failure that people meet.
        let address = (Ipv4Addr::LOCALHOST, options.port).into();
        if let Err(error) = bind(address, "PostgreSQL", "").await
            && error.kind() == ErrorKind::AddrInUse
        {
            return Err(PostgresError::PortTaken(options.port));
        }
        if cluster.exists() {
            check_cluster_version(&cluster, version)?;
        } else {
            progress(&format!("making a PostgreSQL {version} cluster in {}", cluster.display()));
            make_cluster(&cluster, &bin_dir, &options, &account).await?;
        }
        let mut server = Self::spawn(&bin_dir.join("postgres"), options, &account)?;
        server.wait_until_ready().await?;
        tracing::info!(pid = server.pid, port = server.options.port, "PostgreSQL is ready");
        Ok(server)
    }

    /// Removes the folder of a server with all its data, and stops a server
    /// that an earlier process left behind there.
    ///
    /// # Errors
    ///
    /// When the server does not stop, or a file cannot be removed.
    pub async fn remove(data_dir: &Path, progress: Progress<'_>) -> Result<(), PostgresError> {
        let account = Account::of_server()?;
        let (data_dir, _) = find_folder(data_dir, true, &account).await?;
        stop_leftover(&data_dir.join("data"), &account, progress).await?;
        match fs::remove_dir_all(&data_dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(io_error("remove", &data_dir)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn spawn(program: &Path, options: Options, account: &Account) -> Result<Self, PostgresError> {
        let log_path = options.data_dir.join("postgres.log");
        let (log_start, stdout, stderr) = account
            .open(OpenOptions::new().append(true).create(true), &log_path)
            .and_then(|log| Ok((log.metadata()?.len(), log.try_clone()?, log)))
            .map_err(io_error("open", &log_path))?;
        let mut command = account.command(program);
        command.arg("-D").arg(options.data_dir.join("data"));
        command.arg("-c").arg(format!("port={}", options.port));
        command.arg("-c").arg(format!("max_connections={}", options.max_connections));
        // Instead of opening every file after a crash.
        let sync = cfg!(target_os = "linux").then_some("recovery_init_sync_method=syncfs");
        let fast = ["fsync=off", "synchronous_commit=off", "full_page_writes=off"];
        let fast = fast.into_iter().filter(|_| !options.durable);
        command.args(SETTINGS.into_iter().chain(sync).chain(fast).flat_map(|s| ["-c", s]));
        command.stdout(stdout).stderr(stderr).kill_on_drop(false);
        let server = command.spawn().map_err(io_error("run", program))?;
        // It has an id, because nobody has waited for it yet.
        let pid = server.id().unwrap_or_default();
        Ok(Self { server, pid, options, log_start, detached: false })
    }

    async fn wait_until_ready(&mut self) -> Result<(), PostgresError> {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            let attempt = timeout(Duration::from_secs(5), self.connect_options().connect()).await;
            // Asked after the attempt, which may have reached another server.
            let status = self.server.try_wait().map_err(io_error("await", &self.options.data_dir));
            if let Some(status) = status? {
                return Err(PostgresError::Exited(status, self.log_tail()));
            }
            match attempt {
                // The server is ready, whether or not the farewell arrives.
                Ok(Ok(connection)) => return connection.close().await.or(Ok(())),
                Ok(Err(sqlx::Error::Database(error)))
                    if error.code().as_deref() == Some("28P01") =>
                {
                    return Err(PostgresError::WrongPassword(self.options.data_dir.clone()));
                }
                Ok(Err(_)) | Err(_) => sleep(POLL).await,
            }
        }
        Err(PostgresError::NotReady(self.log_tail()))
    }

    /// How the superuser connects to the database `postgres`. Its `Debug` shows the password.
    pub fn connect_options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.options.port)
            .username("postgres")
            .password(self.options.superuser_password.expose_secret())
            .database("postgres")
            .ssl_mode(PgSslMode::Disable)
    }

    /// The folder that is really used: the cluster is its `data`, the log its `postgres.log`.
    pub fn data_dir(&self) -> &Path {
        &self.options.data_dir
    }

    /// The process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Stops the server: open transactions are rolled back, the rest is written.
    ///
    /// # Errors
    ///
    /// Fails if the server survives a fast and an immediate shutdown, 15 seconds in all.
    pub async fn stop(mut self) -> Result<(), PostgresError> {
        for (signal, patience) in SHUTDOWN {
            self.signal(signal);
            if let Ok(ended) = timeout(patience, self.server.wait()).await {
                return ended.map(drop).map_err(io_error("await", &self.options.data_dir));
            }
            tracing::warn!(pid = self.pid, "PostgreSQL does not stop");
        }
        Err(PostgresError::DoesNotStop(self.pid, self.options.data_dir.clone()))
    }

    /// Leaves the server running, and answers the process id for whoever stops it with SIGINT.
    pub fn detach(mut self) -> u32 {
        self.detached = true;
        self.pid
    }

    /// Waits until the server ends on its own, and answers how: [`PostgresError::Exited`].
    pub async fn exited(&mut self) -> PostgresError {
        match self.server.wait().await {
            Ok(status) => PostgresError::Exited(status, self.log_tail()),
            Err(error) => io_error("await", &self.options.data_dir)(error),
        }
    }

    /// Does nothing once the end was seen, since the process id may be another's by then.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.server.id() {
            send_signal(pid, signal);
        }
    }

    fn log_tail(&self) -> String {
        let mut log = Vec::new();
        let read = File::open(self.options.data_dir.join("postgres.log")).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.log_start))?;
            file.read_to_end(&mut log)
        });
        read.map_or_else(|error| format!("no log: {error}"), |_| last_lines(&log))
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        if !self.detached {
            self.signal(Signal::QUIT);
        }
    }
}

async fn run(command: &mut Command) -> Result<String, PostgresError> {
    let program = PathBuf::from(command.as_std().get_program());
    let ended = timeout(PROGRAM_LIMIT, command.output()).await;
    let output = ended
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
        .map_err(io_error("run", &program))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(PostgresError::Program(program, output.status, last_lines(&output.stderr)))
}

/// Signals one process; it fails only if that has just ended, as is wanted.
fn send_signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The last lines, as one.
fn last_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(4)..].join(" | ")
}

fn io_error(
    action: &'static str,
    path: impl AsRef<Path>,
) -> impl FnOnce(io::Error) -> PostgresError {
    move |source| PostgresError::Io(action, path.as_ref().to_owned(), source)
}
