//! The PostgreSQL of a test run, and the suite on it.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{OnceLock, mpsc};
use std::thread;

use crm_clock::Clock;
use crm_service::AdmissionOptions;
use crm_standalone::app::{Addresses, Config, Listeners, Suite, registry_config};
use crm_standalone::data::Secrets;
use crm_tenant_registry::consistency::Consistency;
use crm_tenant_registry::identity::Identity;
use crm_tenant_registry::{PurgeSettings, app};
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::log;
use crate::postgres::Postgres;

/// The sessions of each data service of a test program.
const SESSION_BUDGET: usize = 20;
/// How fast a server purges that does: ten a second.
const PURGES_PER_MINUTE: u32 = 600;
/// How many tenants may be due at once there.
const PURGE_LIMIT: usize = 3;

/// The suite of this test program.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub addresses: Addresses,
    /// Its clock, which tests may move.
    pub clock: Clock,
    /// Signs any token.
    pub identity: Identity,
    /// Compares the registry with its clusters.
    pub consistency: Consistency,
    /// A superuser's connections to the registry's database.
    pub(crate) registry: PgPool,
    /// Where it runs.
    pub(crate) runtime: Handle,
    config: Config,
    postgres: Postgres,
}

/// Another replica of the suite, on the same PostgreSQL.
#[derive(Debug)]
pub struct Replica {
    /// Where it listens.
    pub addresses: Addresses,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

static SERVER: OnceLock<Server> = OnceLock::new();

/// Makes [`server`] one on a PostgreSQL of this test program's own: for test
/// programs that change what others share. It comes before any [`server`].
pub fn serve_alone() -> &'static Server {
    SERVER.get_or_init(|| serve(Postgres::own(false), 0, 0))
}

/// As [`serve_alone`], on a PostgreSQL that keeps what it acknowledged when it
/// is killed.
pub fn serve_durably() -> &'static Server {
    SERVER.get_or_init(|| serve(Postgres::own(true), 0, 0))
}

/// The suite of this test program, started by the first test that asks.
pub fn server() -> &'static Server {
    // Spares would only slow the run down: each test makes its tenants.
    SERVER.get_or_init(|| serve(Postgres::of_run(), 0, 0))
}

/// A suite of its own, on a PostgreSQL of its own that keeps this many spares:
/// for tests that change what others share.
pub fn own_server(spares: u32) -> Server {
    serve(Postgres::own(false), spares, 0)
}

/// The same, and it removes for good what is to be removed.
pub fn own_purging_server(spares: u32) -> Server {
    serve(Postgres::own(false), spares, PURGES_PER_MINUTE)
}

fn serve(
    postgres: impl Future<Output = Postgres> + Send + 'static,
    spares: u32,
    purges_per_minute: u32,
) -> Server {
    log::watch();
    let (send, receive) = mpsc::channel();
    // A runtime of its own: those of tests end with them.
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let postgres = postgres.await;
            let (superuser, secrets) = (postgres.superuser.clone(), postgres.secrets.clone());
            let purge = PurgeSettings {
                per_minute: purges_per_minute,
                limit: PURGE_LIMIT,
                ..PurgeSettings::default()
            };
            let edge_origins = vec!["http://localhost:5173".parse().unwrap()];
            let session_budget = SESSION_BUDGET;
            let admission = AdmissionOptions::default();
            let config = Config {
                superuser,
                secrets,
                edge_origins,
                session_budget,
                spares,
                purge,
                admission,
            };
            let clock = Clock::default();
            let shutdown = CancellationToken::new();
            let suite = suite(config.clone(), clock.clone()).await;
            suite.ready();
            let registry = registry_config(&config.superuser, &config.secrets);
            let identity = app::identity(&registry, clock.clone()).await.unwrap();
            let consistency = app::consistency(&registry, clock.clone());
            let registry = config.superuser.clone().database("crm_registry");
            let server = Server {
                addresses: suite.addresses,
                clock,
                identity,
                consistency,
                registry: PgPoolOptions::new().max_connections(2).connect_lazy_with(registry),
                runtime: Handle::current(),
                config,
                postgres,
            };
            send.send(server).unwrap();
            suite.run(shutdown).await.unwrap();
        });
    });
    receive.recv().expect("the suite starts")
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
        let suite = suite(config, self.clock.clone()).await;
        suite.ready();
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

    /// Sends its PostgreSQL a signal, such as `KILL`, and waits until that
    /// takes no connections. Only for a PostgreSQL of the test's own.
    pub async fn signal_postgres(&self, signal: &str) {
        self.postgres.signal(signal).await;
    }

    /// Starts its PostgreSQL again, and waits until that takes connections.
    pub async fn start_postgres(&self) {
        self.postgres.start_again().await;
    }

    /// Whether its PostgreSQL takes connections.
    pub async fn is_postgres_up(&self) -> bool {
        PgConnection::connect_with(&self.config.superuser).await.is_ok()
    }

    /// The key that signs tokens, and its id: for tokens that nobody would
    /// issue.
    pub async fn signing_key(&self) -> (String, Vec<u8>) {
        let mut registry = self.superuser("crm_registry").await;
        let (kid, sealed): (String, Vec<u8>) = sqlx::query_as(
            "SELECT kid, private_key FROM signing_keys ORDER BY create_time DESC, kid DESC LIMIT 1",
        )
        .fetch_one(&mut registry)
        .await
        .unwrap();
        registry.close().await.unwrap();
        let opened = self.config.secrets.master_key.open(&format!("signing key {kid}"), &sealed);
        (kid, opened.unwrap())
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
async fn suite(config: Config, clock: Clock) -> Suite {
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let addresses = Addresses {
        registry: free,
        contacts: free,
        messaging: free,
        internal: free,
        edge: free,
        admin: free,
    };
    let listeners = Listeners::bind(&addresses).await.unwrap();
    Suite::start(config, listeners, clock).await.unwrap()
}
