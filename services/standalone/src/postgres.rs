//! A private PostgreSQL server: finds the programs, makes the cluster, starts and stops the server.
//!
//! One folder holds it all: the cluster in `data`, the log in `postgres.log`. PostgreSQL refuses
//! to run as root; it then runs as the user `postgres` or `nobody`, who owns the folder.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crm_service::bind;
use rustix::process::{Pid, Signal, kill_process};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

mod cluster;
mod error;
mod folder;
mod programs;
#[cfg(test)]
pub(crate) mod scratch;
mod supervisor;
mod words;

use cluster::{check_cluster_version, is_stopping, make_cluster, stop_leftover};
pub use error::PostgresError;
use error::io_error;
use folder::{find_folder, prepare_folder};
pub(crate) use programs::bin_dir;
use programs::{Account, find_programs};
pub use supervisor::Supervisor;
use words::{last_lines, last_words};

const OLDEST_VERSION: u32 = 15;
const PROGRAM_LIMIT: Duration = Duration::from_secs(120);
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// A recovery that takes so long is told of, again and again.
const LONG_RECOVERY: Duration = Duration::from_secs(10);
/// How often a server that runs is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The server's log, in its folder.
const LOG: &str = "postgres.log";
/// The server says that a password is wrong, and that it starts or recovers (SQLSTATE).
const WRONG_PASSWORD: &str = "28P01";
const STARTING: &str = "57P03";

/// Fast, then immediate; the latter itself kills what is left after five seconds.
const SHUTDOWN: [(Signal, Duration); 2] =
    [(Signal::INT, Duration::from_secs(8)), (Signal::QUIT, Duration::from_secs(7))];

/// Passed on the command line: they win over the files in the cluster, which need no upkeep then.
const SETTINGS: [&str; 16] = [
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
    // No statement gets into the log, nor what is in one: there are passwords among them.
    "log_statement=none",
    "log_min_duration_statement=-1",
    "log_min_error_statement=panic",
    "log_error_verbosity=terse",
    "log_parameter_max_length=0",
    "log_parameter_max_length_on_error=0",
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

/// What every start of a server needs, and the first has found out.
#[derive(Clone, Debug)]
struct Setup {
    account: Account,
    bin_dir: PathBuf,
    version: u32,
    /// With the folder that is really used.
    options: Options,
}

/// A running server; better [stopped](Self::stop) than dropped.
///
/// When dropped it is shut down without waiting, and recovers at its next start. When this process
/// is killed it stays, until the next start on the same folder.
#[derive(Debug)]
pub struct PrivatePostgres {
    server: Child,
    pid: u32,
    setup: Setup,
    /// How long the log was before this start.
    log_start: u64,
    detached: bool,
}

impl PrivatePostgres {
    /// [Launches](Self::launch) a server, and waits until it is [ready](Self::ready).
    ///
    /// # Errors
    ///
    /// As they have.
    pub async fn start(options: Options, progress: Progress<'_>) -> Result<Self, PostgresError> {
        let mut server = Self::launch(options, progress).await?;
        server.ready().await?;
        Ok(server)
    }

    /// Launches a server, on a new cluster if there is none. A server that a killed process left
    /// behind is stopped first.
    ///
    /// # Errors
    ///
    /// Fails without a usable program, folder or port.
    pub async fn launch(
        mut options: Options,
        progress: Progress<'_>,
    ) -> Result<Self, PostgresError> {
        let account = Account::of_server()?;
        let (bin_dir, version) = find_programs(options.bin_dir.as_deref(), &account).await?;
        options.data_dir = prepare_folder(&options, &account, progress).await?;
        let setup = Setup { account, bin_dir, version, options };
        // The port before the cluster is made, since this is the failure that people meet.
        setup.take_over(progress).await?;
        let cluster = setup.cluster();
        if cluster.exists() {
            check_cluster_version(&cluster, version)?;
        } else {
            progress(&format!("making a PostgreSQL {version} cluster in {}", cluster.display()));
            make_cluster(&cluster, &setup.bin_dir, &setup.options, &setup.account).await?;
        }
        setup.spawn()
    }

    /// Launches it once more, where it was. Nothing is made: a cluster that is not there may be on
    /// a disk that is away for a moment.
    async fn launch_again(&self) -> Result<Self, PostgresError> {
        self.setup.take_over(&|_| {}).await?;
        check_cluster_version(&self.setup.cluster(), self.setup.version)?;
        self.setup.clone().spawn()
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

    /// Waits until it takes connections. It has a minute, and whatever it needs to recover from a
    /// crash: it would begin anew at its next start.
    ///
    /// # Errors
    ///
    /// When it ends, or does not become ready.
    pub async fn ready(&mut self) -> Result<(), PostgresError> {
        let mut deadline = Instant::now() + START_LIMIT;
        let mut recovery = None;
        while Instant::now() < deadline {
            let attempt = timeout(Duration::from_secs(5), self.connect_options().connect()).await;
            // Asked after the attempt, which may have reached another server.
            let status = self.server.try_wait().map_err(io_error("await", self.data_dir()));
            if let Some(status) = status? {
                return Err(PostgresError::Exited(status, self.last_words()));
            }
            match attempt {
                // The server is ready, whether or not the farewell arrives.
                Ok(Ok(connection)) => {
                    let (pid, port) = (self.pid, self.setup.options.port);
                    tracing::info!(pid, port, "PostgreSQL is ready");
                    return connection.close().await.or(Ok(()));
                }
                Ok(Err(error)) => match sql_state(&error).as_deref() {
                    Some(WRONG_PASSWORD) => {
                        return Err(PostgresError::WrongPassword(self.data_dir().to_owned()));
                    }
                    Some(STARTING) => {
                        deadline = Instant::now() + START_LIMIT;
                        if recovery.get_or_insert_with(Instant::now).elapsed() > LONG_RECOVERY {
                            tracing::info!("PostgreSQL recovers from a crash");
                            recovery = None;
                        }
                    }
                    Some(_) | None => {}
                },
                Err(_) => {}
            }
            sleep(POLL).await;
        }
        Err(PostgresError::NotReady(self.last_words()))
    }

    /// How the superuser connects to the database `postgres`. Its `Debug` shows the password.
    pub fn connect_options(&self) -> PgConnectOptions {
        let options = &self.setup.options;
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(options.port)
            .username("postgres")
            .password(options.superuser_password.expose_secret())
            .database("postgres")
            .ssl_mode(PgSslMode::Disable)
    }

    /// The folder that is really used: the cluster is its `data`, the log its `postgres.log`.
    pub fn data_dir(&self) -> &Path {
        &self.setup.options.data_dir
    }

    /// The process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Stops the server: open transactions are rolled back, the rest is written. One that has ended
    /// is as good as stopped.
    ///
    /// # Errors
    ///
    /// Fails if the server survives a fast and an immediate shutdown, 15 seconds in all.
    pub async fn stop(mut self) -> Result<(), PostgresError> {
        self.end().await
    }

    async fn end(&mut self) -> Result<(), PostgresError> {
        for (signal, patience) in SHUTDOWN {
            self.signal(signal);
            if let Ok(ended) = timeout(patience, self.server.wait()).await {
                return ended.map(drop).map_err(io_error("await", self.data_dir()));
            }
            tracing::warn!(pid = self.pid, "PostgreSQL does not stop");
        }
        Err(PostgresError::DoesNotStop(self.pid, self.data_dir().to_owned()))
    }

    /// Leaves the server running, and answers the process id for whoever stops it with SIGINT.
    pub fn detach(mut self) -> u32 {
        self.detached = true;
        self.pid
    }

    /// Waits until the server ends on its own, and answers how: [`PostgresError::Exited`].
    ///
    /// One that somebody else told to stop once its sessions have ended (SIGTERM) does so at once:
    /// it takes no new ones, and those that it waits for are ours.
    pub async fn exited(&mut self) -> PostgresError {
        let ended = loop {
            if let Ok(ended) = timeout(LOOK_EVERY, self.server.wait()).await {
                break ended;
            }
            if is_stopping(&self.setup.cluster()) {
                self.signal(Signal::INT);
            }
        };
        match ended {
            Ok(status) => PostgresError::Exited(status, self.last_words()),
            Err(error) => io_error("await", self.data_dir())(error),
        }
    }

    /// Does nothing once the end was seen, since the process id may be another's by then.
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.server.id() {
            send_signal(pid, signal);
        }
    }

    fn last_words(&self) -> String {
        last_words(self.data_dir(), self.log_start)
    }
}

impl Setup {
    fn cluster(&self) -> PathBuf {
        self.options.data_dir.join("data")
    }

    /// Stops a server that was left behind on the cluster, and makes sure of the port.
    async fn take_over(&self, progress: Progress<'_>) -> Result<(), PostgresError> {
        stop_leftover(&self.cluster(), &self.account, progress).await?;
        let address = (Ipv4Addr::LOCALHOST, self.options.port).into();
        match bind(address, "PostgreSQL", "").await {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                Err(PostgresError::PortTaken(self.options.port))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn spawn(self) -> Result<PrivatePostgres, PostgresError> {
        let Self { account, bin_dir, options, .. } = &self;
        let log_path = options.data_dir.join(LOG);
        let (log_start, stdout, stderr) = account
            .open(OpenOptions::new().append(true).create(true), &log_path)
            .and_then(|log| Ok((log.metadata()?.len(), log.try_clone()?, log)))
            .map_err(io_error("open", &log_path))?;
        let program = bin_dir.join("postgres");
        let mut command = account.command(&program);
        command.arg("-D").arg(self.cluster());
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
        Ok(PrivatePostgres { server, pid, setup: self, log_start, detached: false })
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
    Err(PostgresError::Program(
        program,
        output.status,
        last_lines(String::from_utf8_lossy(&output.stderr).lines()),
    ))
}

/// Signals one process; it fails only if that has just ended, as is wanted.
fn send_signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn sql_state(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
