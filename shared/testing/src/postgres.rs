//! PostgreSQL servers for tests: the one of the run, and others for tests that
//! need one of their own.

use std::env;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::process::{CommandExt as _, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crm_standalone::app::CLUSTER_SETUP;
use crm_standalone::data::{DataDir, Secrets};
use crm_standalone::postgres::{Options, PostgresError, PrivatePostgres};
use crm_tenant_registry::scram_verifier;
use secrecy::ExposeSecret as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, Connection as _};

use crate::postgres_link::PostgresLink;

/// Enough for several test programs at once.
const MAX_CONNECTIONS: u32 = 800;
/// How long a server may take to start again.
const PATIENCE: Duration = Duration::from_secs(60);

/// The superusers of the servers that this test program uses.
static SUPERUSERS: Mutex<Vec<PgConnectOptions>> = Mutex::new(Vec::new());

/// A PostgreSQL server, and the secrets of the installation on it.
pub(crate) struct Postgres {
    pub(crate) superuser: PgConnectOptions,
    pub(crate) secrets: Secrets,
    data: DataDir,
    /// Whether it keeps what it acknowledged when it is killed.
    durable: bool,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Postgres")
    }
}

impl Postgres {
    /// The server of this run, which this test program uses from now on.
    pub(crate) async fn of_run() -> Self {
        let folder = env::temp_dir().join(format!("crm-test-{}", parent_id()));
        fs::create_dir_all(&folder).unwrap();
        // One at a time: the first starts the server, the others find it.
        let lock = File::create(folder.join("lock")).unwrap();
        lock.lock().unwrap();
        let data = use_folder(&folder);
        let secrets = data.secrets().unwrap();
        let ready = folder.join("port");
        let port = match fs::read_to_string(&ready) {
            Ok(port) => port.parse().unwrap(),
            Err(_) => {
                let port = free_port();
                let data_dir = start(&data, &secrets, port, false).await.unwrap();
                keep(&folder, parent_id(), &data_dir);
                fs::write(&ready, port.to_string()).unwrap();
                port
            }
        };
        Self { superuser: superuser(port, &secrets), secrets, data, durable: false }
    }

    /// A new server, which lives as long as this test program.
    pub(crate) async fn own(durable: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let folder = env::temp_dir().join(format!("crm-test-{process}-{number}"));
        fs::create_dir_all(&folder).unwrap();
        let data = use_folder(&folder);
        let secrets = data.secrets().unwrap();
        let port = free_port();
        let data_dir = start(&data, &secrets, port, durable).await.unwrap();
        keep(&folder, process, &data_dir);
        Self { superuser: superuser(port, &secrets), secrets, data, durable }
    }

    /// Sends the server a signal, such as `INT`, and waits until it takes no
    /// connections.
    pub(crate) async fn signal(&self, signal: &str) {
        let mut session = PgConnection::connect_with(&self.superuser).await.unwrap();
        let folder: String = sqlx::query_scalar("SELECT current_setting('data_directory')")
            .fetch_one(&mut session)
            .await
            .unwrap();
        let lock = fs::read_to_string(Path::new(&folder).join("postmaster.pid")).unwrap();
        let postmaster = lock.lines().next().unwrap();
        let mut kill = Command::new("kill");
        assert!(kill.args(["-s", signal, postmaster]).status().unwrap().success());
        while PgConnection::connect_with(&self.superuser).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    /// Starts it again, where it was, and waits until it takes connections.
    pub(crate) async fn start_again(&self) {
        let until = Instant::now() + PATIENCE;
        let port = self.superuser.get_port();
        // Sessions outlive a server that was killed, for a moment: until then
        // none starts on their memory.
        while let Err(error) = start(&self.data, &self.secrets, port, self.durable).await {
            assert!(Instant::now() < until, "{error}");
        }
    }
}

/// A PostgreSQL cluster that a test may add to a registry, and stop.
#[derive(Debug)]
pub struct OtherCluster {
    postgres: Postgres,
}

impl OtherCluster {
    /// A new cluster, with nothing in it.
    pub async fn start() -> Self {
        Self { postgres: Postgres::own(false).await }
    }

    /// Makes the registry's login and its functions, as an operator does.
    pub async fn set_up(&self) {
        let mut session = self.superuser("postgres").await;
        sqlx::raw_sql(CLUSTER_SETUP).execute(&mut session).await.unwrap();
        let verifier = scram_verifier(&self.postgres.secrets.registry).unwrap();
        let statement = format!("ALTER ROLE crm_registry PASSWORD '{verifier}'");
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut session).await.unwrap();
        session.close().await.unwrap();
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.postgres.superuser.get_port()
    }

    /// A way to it, under a port of its own, by which a registry may know it.
    pub async fn link(&self) -> PostgresLink {
        let link = PostgresLink::to(self.port()).await;
        superuser(link.port(), &self.postgres.secrets);
        link
    }

    /// The password of the registry's login.
    pub fn password(&self) -> &str {
        self.postgres.secrets.registry.expose_secret()
    }

    /// A superuser's connection to a database.
    pub async fn superuser(&self, database: &str) -> PgConnection {
        let options = self.postgres.superuser.clone().database(database);
        PgConnection::connect_with(&options).await.unwrap()
    }

    /// Stops the server, and waits until it takes no connections.
    pub async fn stop(&self) {
        self.postgres.signal("INT").await;
    }

    /// Starts it again, where it was.
    pub async fn start_again(&self) {
        self.postgres.start_again().await;
    }
}

/// Makes this test program a user of a server's folder.
fn use_folder(folder: &Path) -> DataDir {
    fs::create_dir_all(folder.join("users")).unwrap();
    File::create(folder.join("users").join(std::process::id().to_string())).unwrap();
    DataDir::create(&folder.join("data")).unwrap()
}

/// The superuser of a server that this test program uses from now on.
fn superuser(port: u16, secrets: &Secrets) -> PgConnectOptions {
    let superuser = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .username("postgres")
        .password(secrets.superuser.expose_secret())
        .database("postgres")
        // These servers have no TLS, and links to them know none.
        .ssl_mode(PgSslMode::Disable);
    SUPERUSERS.lock().unwrap_or_else(PoisonError::into_inner).push(superuser.clone());
    superuser
}

/// The superuser of the server with this port, if this test program uses it.
pub(crate) fn superuser_at(port: u16) -> Option<PgConnectOptions> {
    let superusers = SUPERUSERS.lock().unwrap_or_else(PoisonError::into_inner);
    superusers.iter().find(|superuser| superuser.get_port() == port).cloned()
}

/// Starts a server that outlives this function, and answers its folder.
async fn start(
    data: &DataDir,
    secrets: &Secrets,
    port: u16,
    durable: bool,
) -> Result<PathBuf, PostgresError> {
    let options = Options {
        data_dir: data.postgres(),
        port,
        bin_dir: env::var_os("CRM_POSTGRES_BIN").map(PathBuf::from),
        superuser_password: secrets.superuser.clone(),
        durable,
        max_connections: MAX_CONNECTIONS,
    };
    let postgres = PrivatePostgres::start(options, &|_| {}).await?;
    let data_dir = postgres.data_dir().to_owned();
    postgres.detach();
    Ok(data_dir)
}

/// Has the server stopped when its users are gone, or when nobody uses it and
/// `runner` is gone.
fn keep(folder: &Path, runner: u32, data_dir: &Path) {
    #[expect(clippy::zombie_processes, reason = "the keeper outlives this process")]
    let _keeper = Command::new("/bin/sh")
        .args(["-c", include_str!("keeper.sh"), "crm-test-keeper"])
        .arg(folder)
        .arg(runner.to_string())
        .arg(data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C ends tests and runner; the keeper tidies up after them.
        .process_group(0)
        .spawn()
        .unwrap();
}

fn free_port() -> u16 {
    let probe = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    probe.local_addr().unwrap().port()
}
