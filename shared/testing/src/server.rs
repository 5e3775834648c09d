//! The PostgreSQL of a test run, and the suite on it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::{CommandExt as _, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::{env, thread};

use crm_clock::Clock;
use crm_standalone::app::{Addresses, Config, Listeners, Suite};
use crm_standalone::data::{DataDir, Secrets};
use crm_standalone::postgres::{Options, PrivatePostgres};
use crm_tenant_registry::identity::Identity;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio_util::sync::CancellationToken;

/// Enough for several test programs at once.
const MAX_CONNECTIONS: u32 = 800;
/// The sessions of each data service of a test program.
const SESSION_BUDGET: usize = 20;

/// The suite of this test program.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub addresses: Addresses,
    /// Its clock, which tests may move.
    pub clock: Clock,
    /// Signs any token.
    pub identity: Identity,
    config: Config,
}

/// Another replica of the suite, on the same PostgreSQL.
#[derive(Debug)]
pub struct Replica {
    /// Where it listens.
    pub addresses: Addresses,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

/// The suite of this test program, started by the first test that asks.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let (send, receive) = mpsc::channel();
        // A runtime of its own: those of tests end with them.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let config = postgres().await;
                let clock = Clock::default();
                let shutdown = CancellationToken::new();
                let suite = suite(config.clone(), clock.clone(), &shutdown).await;
                suite.ready().await;
                let identity = identity(&config, clock.clone()).await;
                send.send(Server { addresses: suite.addresses, clock, identity, config }).unwrap();
                suite.run(shutdown).await.unwrap();
            });
        });
        receive.recv().expect("the suite starts")
    })
}

impl Server {
    /// Starts another replica, with nothing of this one in its memory.
    pub async fn replica(&self) -> Replica {
        self.replica_with_budget(SESSION_BUDGET).await
    }

    /// Starts another replica whose data services have this many sessions.
    pub async fn replica_with_budget(&self, session_budget: usize) -> Replica {
        let shutdown = CancellationToken::new();
        let config = Config { session_budget, ..self.config.clone() };
        let suite = suite(config, self.clock.clone(), &shutdown).await;
        suite.ready().await;
        let addresses = suite.addresses;
        let stop = shutdown.clone();
        let running = tokio::spawn(async move { suite.run(stop).await.unwrap() });
        Replica { addresses, shutdown, running }
    }

    /// A superuser's connection to a database.
    pub async fn superuser(&self, database: &str) -> PgConnection {
        PgConnection::connect_with(&self.config.superuser.clone().database(database)).await.unwrap()
    }

    /// A connection under another login.
    pub async fn login(
        &self,
        database: &str,
        user: &str,
        password: &str,
    ) -> Result<PgConnection, sqlx::Error> {
        let options = PgConnectOptions::new_without_pgpass()
            .host(self.config.superuser.get_host())
            .port(self.config.superuser.get_port())
            .username(user)
            .password(password)
            .database(database);
        PgConnection::connect_with(&options).await
    }

    /// The secrets of the installation.
    pub fn secrets(&self) -> &Secrets {
        &self.config.secrets
    }
}

impl Replica {
    /// Stops it, and waits for its end.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap();
    }
}

/// The suite on free ports.
async fn suite(config: Config, clock: Clock, shutdown: &CancellationToken) -> Suite {
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let addresses =
        Addresses { registry: free, contacts: free, messaging: free, internal: free, edge: free };
    let listeners = Listeners::bind(&addresses).await.unwrap();
    Suite::start(config, listeners, clock, shutdown.clone()).await.unwrap()
}

async fn identity(config: &Config, clock: Clock) -> Identity {
    let registry = crm_standalone::app::registry_config(&config.superuser, &config.secrets);
    crm_tenant_registry::app::identity(&registry, clock).await.unwrap()
}

/// The PostgreSQL of this run, which this test program uses from now on.
async fn postgres() -> Config {
    let folder = env::temp_dir().join(format!("crm-test-{}", parent_id()));
    fs::create_dir_all(&folder).unwrap();
    // One at a time: the first starts the server, the others find it.
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    fs::create_dir_all(folder.join("users")).unwrap();
    File::create(folder.join("users").join(std::process::id().to_string())).unwrap();
    let data = DataDir::create(&folder.join("data")).unwrap();
    let secrets = data.secrets().unwrap();
    let ready = folder.join("port");
    let port = match fs::read_to_string(&ready) {
        Ok(port) => port.parse().unwrap(),
        Err(_) => {
            let port = start(&data, &secrets, &folder).await;
            fs::write(&ready, port.to_string()).unwrap();
            port
        }
    };
    let superuser = PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .username("postgres")
        .password(secrecy::ExposeSecret::expose_secret(&secrets.superuser))
        .database("postgres");
    let edge_origins = vec!["http://localhost:5173".parse().unwrap()];
    Config { superuser, secrets, edge_origins, session_budget: SESSION_BUDGET, spares: 0 }
}

async fn start(data: &DataDir, secrets: &Secrets, folder: &Path) -> u16 {
    let port = free_port();
    let options = Options {
        data_dir: data.postgres(),
        port,
        bin_dir: env::var_os("CRM_POSTGRES_BIN").map(PathBuf::from),
        superuser_password: secrets.superuser.clone(),
        durable: false,
        max_connections: MAX_CONNECTIONS,
    };
    let postgres = PrivatePostgres::start(options, &|_| {}).await.unwrap();
    let data_dir = postgres.data_dir().to_owned();
    let postmaster = postgres.detach();
    #[expect(clippy::zombie_processes, reason = "the keeper outlives this process")]
    let _keeper = Command::new("/bin/sh")
        .args(["-c", include_str!("keeper.sh"), "crm-test-keeper"])
        .arg(folder)
        .arg(parent_id().to_string())
        .arg(postmaster.to_string())
        .arg(data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C ends tests and runner; the keeper tidies up after them.
        .process_group(0)
        .spawn()
        .unwrap();
    port
}

fn free_port() -> u16 {
    let probe = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    probe.local_addr().unwrap().port()
}
