//! The registry's own database, and its administrative connection to each
//! cluster.

use std::future::Future;
use std::time::Duration;

use crm_tenancy::{SessionError, StoreError};
use secrecy::ExposeSecret as _;
use sqlx::postgres::{PgAdvisoryLock, PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{Connection as _, PgConnection};
use tracing::Instrument as _;

use crate::config::Config;

/// The registry's own database.
const DATABASE: &str = "crm_registry";
/// Its login.
const USER: &str = "crm_registry";
/// Where the functions of `cluster-setup.sql` live in each cluster.
const CLUSTER_DATABASE: &str = "postgres";
/// The most connections to the registry's database.
const REGISTRY_CONNECTIONS: u32 = 10;
/// The most administrative connections to a cluster.
const CLUSTER_CONNECTIONS: u32 = 4;

/// The registry's connections.
#[derive(Clone)]
pub(crate) struct Database {
    /// To the registry's own database.
    pub(crate) registry: PgPool,
    /// To the cluster's administrative functions.
    pub(crate) cluster: PgPool,
    options: PgConnectOptions,
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
        create_registry_database(&this.cluster).await?;
        sqlx::migrate!().run(&this.registry).await.map_err(sqlx::Error::from)?;
        Ok(this)
    }

    /// The connections to what is there already.
    pub(crate) fn connect(config: &Config) -> Self {
        let options = PgConnectOptions::new_without_pgpass()
            .host(&config.cluster.host)
            .port(config.cluster.port)
            .username(USER)
            .password(config.password.expose_secret())
            .ssl_mode(PgSslMode::Disable)
            .application_name("crm-tenant-registry");
        let cluster = pool(CLUSTER_CONNECTIONS, options.clone().database(CLUSTER_DATABASE));
        let registry = pool(REGISTRY_CONNECTIONS, options.clone().database(DATABASE));
        Self { registry, cluster, options }
    }

    /// A connection to a tenant database under a login of its own.
    pub(crate) async fn connect_as(
        &self,
        database: &str,
        user: &str,
        password: &str,
    ) -> Result<PgConnection, StoreError> {
        let options = self.options.clone().database(database).username(user).password(password);
        Ok(PgConnection::connect_with(&options).await?)
    }

    /// A connection of the registry's own to a template.
    pub(crate) async fn connect_to(&self, database: &str) -> Result<PgConnection, StoreError> {
        Ok(PgConnection::connect_with(&self.options.clone().database(database)).await?)
    }
}

fn pool(size: u32, options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(Duration::from_secs(3))
        .connect_lazy_with(options)
}

/// Another replica may be doing the same.
async fn create_registry_database(cluster: &PgPool) -> Result<(), StoreError> {
    let lock = PgAdvisoryLock::new("crm registry database");
    let mut locked = lock.acquire(cluster.acquire().await?).await?;
    let exists: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(DATABASE)
            .fetch_one(&mut *locked)
            .await?;
    if !exists {
        // Nobody may connect before PUBLIC has lost its right to.
        sqlx::query("CREATE DATABASE crm_registry ALLOW_CONNECTIONS false")
            .execute(&mut *locked)
            .await?;
    }
    sqlx::query("REVOKE ALL ON DATABASE crm_registry FROM PUBLIC").execute(&mut *locked).await?;
    sqlx::query("ALTER DATABASE crm_registry ALLOW_CONNECTIONS true").execute(&mut *locked).await?;
    locked.release_now().await?;
    Ok(())
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
