//! The registry's own database, and its administrative connections to every
//! cluster.

mod store;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crm_tenancy::{SessionError, StoreError};
use futures_util::future::join_all;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{Connection as _, PgConnection};
use tokio::time::{sleep, timeout};
use tracing::Instrument as _;

use crate::cluster::ClusterAdmin;
use crate::cluster::store::{self as clusters, ClusterAddressRow};
use crate::config::{ClusterAddress, Config};
use crate::seal::{MasterKey, SealError};

/// The registry's own database.
const DATABASE: &str = "crm_registry";
/// A database that every server has, and that the login may reach.
const SERVER_DATABASE: &str = "postgres";
/// Its login, there and in every cluster.
const USER: &str = "crm_registry";
/// The most connections to the registry's database.
const REGISTRY_CONNECTIONS: u32 = 10;
/// How long a server that is not there yet may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// When it is asked again: after this, then after twice the time, and so on.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// The longest pause between two questions.
const ASK_AGAIN_AT_LAST: Duration = Duration::from_secs(3);
/// How often clusters are asked whether they answer.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The registry's connections.
#[derive(Clone)]
pub(crate) struct Database {
    /// To the registry's own database.
    pub(crate) registry: PgPool,
    master_key: MasterKey,
    /// By cluster id. A cluster's address never changes while this process
    /// runs, so that nothing here goes stale.
    clusters: Arc<Mutex<HashMap<String, ClusterAdmin>>>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Database")
    }
}

impl Database {
    /// Connects, and makes the registry's database if there is none yet.
    pub(crate) async fn open(config: &Config) -> Result<Self, StoreError> {
        let this = Self::connect(config);
        let first = this.cluster(&config.cluster.id).await?;
        store::create(first.pool()).await?;
        // A newer replica may have been here: its migrations only add, so that
        // this one still works, and can start again.
        let mut migrator = sqlx::migrate!();
        migrator.set_ignore_missing(true);
        migrator.run(&this.registry).await.map_err(sqlx::Error::from)?;
        Ok(this)
    }

    /// The connections to what is there already.
    pub(crate) fn connect(config: &Config) -> Self {
        let first = ClusterAdmin::new(first_options(config));
        let registry = PgPoolOptions::new()
            .max_connections(REGISTRY_CONNECTIONS)
            .acquire_timeout(Duration::from_secs(3))
            .connect_lazy_with(first.options(DATABASE));
        let clusters = HashMap::from([(config.cluster.id.clone(), first)]);
        let clusters = Arc::new(Mutex::new(clusters));
        Self { registry, master_key: config.master_key.clone(), clusters }
    }

    /// The administrative connections to a cluster, as its row says.
    ///
    /// # Errors
    ///
    /// When there is no such cluster, or its secret does not open. Whether it
    /// answers shows with the first statement.
    pub(crate) async fn cluster(&self, id: &str) -> Result<ClusterAdmin, StoreError> {
        if let Some(known) = self.known(|clusters| clusters.get(id).cloned()) {
            return Ok(known);
        }
        let mut connection = self.registry.acquire().await?;
        let row = clusters::address(&mut connection, id).await?;
        let row = row.ok_or(sqlx::Error::RowNotFound)?;
        let admin = admin(&row, &self.open_password(id, &row)?);
        Ok(self.known(|clusters| clusters.entry(id.to_owned()).or_insert(admin).clone()))
    }

    /// The administrative connections to every cluster.
    pub(crate) async fn clusters(&self) -> Result<Vec<ClusterAdmin>, StoreError> {
        let mut clusters = Vec::new();
        for id in clusters::ids(&self.registry).await? {
            clusters.push(self.cluster(&id).await?);
        }
        Ok(clusters)
    }

    /// Keeps up to date which clusters answer, for as long as this process
    /// runs.
    pub(crate) async fn ask_clusters(self) {
        loop {
            match self.clusters().await {
                Ok(clusters) => {
                    join_all(clusters.iter().map(ClusterAdmin::ask)).await;
                }
                Err(error) => {
                    let cause = crm_error::chain(&error);
                    tracing::warn!(cause, "clusters cannot be asked whether they answer");
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// The clusters that did not answer a moment ago: what is done for all
    /// begins with others, or comes back to them later.
    pub(crate) fn silent_clusters(&self) -> Vec<String> {
        self.known(|clusters| {
            let silent = clusters.iter().filter(|(_, cluster)| !cluster.answers());
            silent.map(|(id, _)| id.clone()).collect()
        })
    }

    /// The clusters where no database is given out: they and the registry
    /// differ on tenants, or were not compared yet.
    pub(crate) fn closed_clusters(&self) -> Vec<String> {
        self.known(|clusters| {
            let closed = clusters.iter().filter(|(_, cluster)| !cluster.is_reconciled());
            closed.map(|(id, _)| id.clone()).collect()
        })
    }

    /// The password of the registry's login in a cluster.
    pub(crate) async fn password(
        &self,
        connection: &mut PgConnection,
        id: &str,
    ) -> Result<SecretString, StoreError> {
        let row = clusters::address(connection, id).await?.ok_or(sqlx::Error::RowNotFound)?;
        self.open_password(id, &row)
    }

    /// Such a password, as it is kept.
    pub(crate) fn seal_password(
        &self,
        id: &str,
        password: &SecretString,
    ) -> Result<Vec<u8>, SealError> {
        self.master_key.seal(&secret_purpose(id), password.expose_secret().as_bytes())
    }

    fn open_password(&self, id: &str, row: &ClusterAddressRow) -> Result<SecretString, StoreError> {
        let opened = self
            .master_key
            .open_text(&secret_purpose(id), row.secret.as_deref().unwrap_or_default());
        Ok(opened.map_err(|error| sqlx::Error::Configuration(error.into()))?)
    }

    fn known<T>(&self, look: impl FnOnce(&mut HashMap<String, ClusterAdmin>) -> T) -> T {
        look(&mut self.clusters.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A connection of its own that hears the notifications of the registry's
    /// database.
    pub(crate) async fn listener(&self) -> Result<PgListener, StoreError> {
        let options = (*self.registry.connect_options()).clone();
        let one = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(options);
        Ok(PgListener::connect_with(&one).await?)
    }
}

/// Waits for the server of the registry's own database, which may start later
/// than the registry, or be starting.
///
/// # Errors
///
/// When it refuses the registry's login, or its certificate does not fit.
pub(crate) async fn wait_for_server(config: &Config) -> Result<(), StoreError> {
    let ClusterAddress { host, port, .. } = &config.cluster;
    let options = first_options(config).database(SERVER_DATABASE);
    let mut pause = ASK_AGAIN_AFTER;
    loop {
        let connected = timeout(ANSWERS_WITHIN, PgConnection::connect_with(&options)).await;
        match connected.unwrap_or_else(|elapsed| Err(sqlx::Error::Io(elapsed.into()))) {
            Ok(connection) => return Ok(connection.close().await?),
            Err(error) if is_absent(&error) => {
                tracing::warn!(host, port, cause = %error, "waiting for PostgreSQL");
            }
            Err(error) => return Err(error.into()),
        }
        sleep(pause).await;
        pause = ASK_AGAIN_AT_LAST.min(pause * 2);
    }
}

/// Whether there is no server, or one that is starting, stopping or full.
fn is_absent(error: &sqlx::Error) -> bool {
    let state = error.as_database_error().and_then(|error| error.code());
    // A certificate that does not fit is invalid data: waiting does not help.
    matches!(error, sqlx::Error::Io(error) if error.kind() != io::ErrorKind::InvalidData)
        || state
            .is_some_and(|state| matches!(state.as_ref(), "57P01" | "57P02" | "57P03" | "53300"))
}

/// How the registry's login reaches its own cluster.
fn first_options(config: &Config) -> PgConnectOptions {
    let ClusterAddress { host, port, verify_tls, .. } = &config.cluster;
    let ssl_mode = if *verify_tls { PgSslMode::VerifyFull } else { PgSslMode::Disable };
    options(host, *port, ssl_mode, &config.password)
}

/// The administrative connections to a server that need not be known yet.
pub(crate) fn admin(at: &ClusterAddressRow, password: &SecretString) -> ClusterAdmin {
    let port = u16::try_from(at.port).unwrap_or_default();
    ClusterAdmin::new(options(&at.host, port, at.ssl_mode(), password))
}

/// What the password of the registry's login in a cluster is sealed for.
fn secret_purpose(cluster: &str) -> String {
    format!("cluster {cluster}")
}

fn options(
    host: &str,
    port: u16,
    ssl_mode: PgSslMode,
    password: &SecretString,
) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(host)
        .port(port)
        .username(USER)
        .password(password.expose_secret())
        .ssl_mode(ssl_mode)
        .application_name("crm-tenant-registry")
        // A notice tells of what is there already, at each start.
        .options([("client_min_messages", "warning")])
}

/// Runs a use case to its end in a task of its own: a client that vanishes
/// interrupts nothing.
pub(crate) async fn owned<T, E, F>(work: F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: From<SessionError> + Send + 'static,
{
    let task = tokio::spawn(work.instrument(tracing::Span::current()));
    task.await.unwrap_or_else(|_| Err(SessionError::Panicked.into()))
}
