//! A private PostgreSQL server: finds the programs, makes the cluster, starts and stops the server.
//!
//! One folder holds it all: the cluster in `data`, the log in `postgres.log`. PostgreSQL refuses
//! to run as root; it then runs as the user `postgres` or `nobody`, who owns the folder.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown,
};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

const OLDEST_VERSION: u32 = 15;
const PROGRAM_LIMIT: Duration = Duration::from_secs(120);
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Fast, then immediate; the latter itself kills what is left after five seconds.
const SHUTDOWN: [(Signal, Duration); 2] =
    [(Signal::INT, Duration::from_secs(8)), (Signal::QUIT, Duration::from_secs(7))];

/// Where installers put servers: folders with one subfolder for each version.
const INSTALLED: [(&str, &str); 3] = [
    ("/usr/lib/postgresql", ""),
    ("/opt/homebrew/opt", "postgresql"),
    ("/usr/local/opt", "postgresql"),
];

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
    #[error("port {0} of 127.0.0.1 is taken: stop what listens there, or choose another port")]
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
        if TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))
            .is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
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

/// Who runs the programs: we ourselves or, if we are root, another user.
struct Account {
    uid: u32,
    /// Set if it is another user.
    gid: Option<u32>,
}

impl Account {
    fn of_server() -> Result<Self, PostgresError> {
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
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
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
    fn open(&self, how: &mut OpenOptions, path: &Path) -> io::Result<File> {
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

async fn find_programs(
    configured: Option<&Path>,
    account: &Account,
) -> Result<(PathBuf, u32), PostgresError> {
    let bin_dir = match configured {
        Some(dir) => server_dir(dir).ok_or_else(|| PostgresError::WrongBinDir(dir.to_owned()))?,
        None => env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .find_map(|dir| server_dir(&dir))
            .or_else(|| INSTALLED.iter().find_map(|(root, name)| newest_server_dir(root, name)))
            .ok_or(PostgresError::NotInstalled)?,
    };
    let text = run(account.command(bin_dir.join("postgres")).arg("--version")).await?;
    match major_version(&text) {
        Some(version) if version >= OLDEST_VERSION => Ok((bin_dir, version)),
        Some(_) | None => Err(PostgresError::WrongVersion(bin_dir, text.trim().to_owned())),
    }
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

fn check_cluster_version(cluster: &Path, version: u32) -> Result<(), PostgresError> {
    let path = cluster.join("PG_VERSION");
    let made_by = fs::read_to_string(&path).map_err(io_error("read", &path))?.trim().to_owned();
    if made_by.parse() == Ok(version) {
        return Ok(());
    }
    Err(PostgresError::OtherVersion(cluster.to_owned(), made_by, version))
}

/// Makes the folder, or another one if the server's user cannot reach it.
async fn prepare_folder(
    options: &Options,
    account: &Account,
    progress: Progress<'_>,
) -> Result<PathBuf, PostgresError> {
    let wanted = resolve(&options.data_dir).map_err(io_error("make", &options.data_dir))?;
    let mut probe = account.command("sh");
    // Its parent exists: `resolve` made it.
    probe.args(["-c", "cd -- \"$1\"", "sh"]).arg(wanted.parent().unwrap_or(&wanted));
    if account.gid.is_none() || run(&mut probe).await.is_ok() {
        // Here a link is the owner's, perhaps to a larger disk.
        let folder = fs::canonicalize(&wanted).unwrap_or(wanted);
        return take_folder(&folder, account).map(|()| folder);
    }
    // Not for lasting data: /var/tmp is tidied up by age, file by file.
    let lasting = options.durable && Path::new("/var/lib").is_dir();
    let folder = substitute_folder(if lasting { "/var/lib" } else { "/var/tmp" }, &wanted);
    progress(&format!(
        "user id {} runs PostgreSQL and cannot reach {}: its data is in {}",
        account.uid,
        wanted.display(),
        folder.display()
    ));
    take_folder(&folder, account).map(|()| folder)
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

/// Stops the server of an earlier process that was killed.
async fn stop_leftover(
    cluster: &Path,
    account: &Account,
    progress: Progress<'_>,
) -> Result<(), PostgresError> {
    let lock_path = cluster.join("postmaster.pid");
    let Ok(lock) = fs::read_to_string(&lock_path) else { return Ok(()) };
    let (first, rest) = lock.split_once('\n').unwrap_or_default();
    let pid = first.parse().unwrap_or(0);
    if !is_postmaster(pid, cluster).await {
        // PostgreSQL would respect this stale file if it is empty, or if its process id is another
        // program's by now. It never respects its own parent's id, and still looks in the rest of
        // the file for what it needs to find orphaned sessions.
        return account
            .open(OpenOptions::new().write(true).truncate(true), &lock_path)
            .and_then(|mut file| write!(file, "{}\n{rest}", std::process::id()))
            .map_err(io_error("write", &lock_path));
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

/// Makes the cluster under another name, so that half of one is never taken for it. That name is
/// new: an initdb whose parent was killed may still be writing.
async fn make_cluster(
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

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty folder that goes away.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("crm-postgres-test-{}-{name}", std::process::id());
            let folder = env::temp_dir().join(name);
            fs::create_dir_all(&folder).unwrap();
            Self(fs::canonicalize(folder).unwrap())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

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
    fn find_user_never_answers_root() {
        let passwd = "postgres:x:0:0::/:/bin/sh\nnobody2:x:7:7::/:\nnobody:*:-2:9::/:/bin/false\n";

        assert_eq!(find_user(passwd, "postgres"), None);
        assert_eq!(find_user(passwd, "nobody"), Some((u32::MAX - 1, 9)));
        assert_eq!(find_user(passwd, "absent"), None);
    }

    #[test]
    fn substitute_folder_is_the_same_in_every_build() {
        let folder = substitute_folder("/var/tmp", Path::new("/root/a/.crm/postgres"));

        assert_eq!(folder, Path::new("/var/tmp/crm-postgres-d67ac1fdbbed6e25"));
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
