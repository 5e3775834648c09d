//! The registry's administrative connections to one PostgreSQL cluster:
//! databases and roles. Here, and where schemas are raised, identifiers become
//! part of SQL, by [`quoted`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crm_tenancy::StoreError;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

/// Where the functions of `cluster-setup.sql` live in each cluster.
pub(super) const DATABASE: &str = "postgres";
/// The most administrative connections to a cluster.
const CONNECTIONS: u32 = 4;
/// How long a cluster may take to answer when it is asked whether it does.
const PATIENCE: Duration = Duration::from_secs(2);

/// The administrative side of a PostgreSQL cluster.
#[derive(Clone)]
pub(crate) struct ClusterAdmin {
    pool: PgPool,
    options: PgConnectOptions,
    /// Whether it answered when it was last asked.
    answers: Arc<AtomicBool>,
    /// Whether its claims and the registry's tenants were the same when they
    /// were last compared.
    is_reconciled: Arc<AtomicBool>,
}

impl std::fmt::Debug for ClusterAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterAdmin")
    }
}

/// An identifier, quoted (PostgreSQL, section 4.1.1).
pub(crate) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

impl ClusterAdmin {
    /// The connections of a login that is the registry's there. They are made
    /// when they are needed.
    pub(crate) fn new(options: PgConnectOptions) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_secs(3))
            // What was given up on may hang: the pool would wait for it for
            // ever, and lack it for as long.
            .after_release(|connection, _| {
                Box::pin(async {
                    let answer = tokio::time::timeout(PATIENCE, connection.ping()).await;
                    answer.map_err(|_| sqlx::Error::PoolTimedOut)?.map(|()| true)
                })
            })
            .connect_lazy_with(options.clone().database(DATABASE));
        Self {
            pool,
            options,
            answers: Arc::new(AtomicBool::new(true)),
            is_reconciled: Arc::default(),
        }
    }

    /// The connections to where the administrative functions are.
    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// How the registry's own login connects to a database.
    pub(crate) fn options(&self, database: &str) -> PgConnectOptions {
        self.options.clone().database(database)
    }

    /// Whether the cluster answers.
    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Asks whether the cluster answers.
    pub(crate) async fn ask(&self) {
        let answer = tokio::time::timeout(PATIENCE, self.ping()).await;
        self.answers.store(matches!(answer, Ok(Ok(()))), Ordering::Relaxed);
    }

    /// Whether it answered when it was last asked: a hint at what can be put
    /// off.
    pub(crate) fn answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// Whether its claims and the registry's tenants were the same when they
    /// were last compared: else no database is given out there, and no login
    /// opened.
    pub(crate) fn is_reconciled(&self) -> bool {
        self.is_reconciled.load(Ordering::Relaxed)
    }

    /// Says what the last comparison found. Answers what the one before did.
    pub(crate) fn set_reconciled(&self, is_reconciled: bool) -> bool {
        self.is_reconciled.swap(is_reconciled, Ordering::Relaxed)
    }

    /// A connection of the registry's own to a template.
    pub(crate) async fn connect_to(&self, database: &str) -> Result<PgConnection, StoreError> {
        Ok(PgConnection::connect_with(&self.options(database)).await?)
    }

    /// A connection to a tenant database under a login of its own.
    pub(crate) async fn connect_as(
        &self,
        database: &str,
        user: &str,
        password: &str,
    ) -> Result<PgConnection, StoreError> {
        let options = self.options(database).username(user).password(password);
        Ok(PgConnection::connect_with(&options).await?)
    }

    /// Clones a template into a database that takes no connections. A clone
    /// that is there already is taken as it is.
    pub(crate) async fn clone_closed(&self, name: &str, template: &str) -> Result<(), StoreError> {
        let exists =
            sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)");
        if exists.bind(name).fetch_one(&self.pool).await? {
            return Ok(());
        }
        let (name, template) = (quoted(name), quoted(template));
        self.execute(format!("CREATE DATABASE {name} TEMPLATE {template} ALLOW_CONNECTIONS false"))
            .await
    }

    /// Takes every right in a database from PUBLIC.
    pub(crate) async fn lock(&self, name: &str) -> Result<(), StoreError> {
        if cfg!(bug_revoke_left_out) {
            return Ok(());
        }
        self.execute(format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", quoted(name))).await
    }

    /// Opens a database to those who may connect, or closes it to all.
    pub(crate) async fn allow_connections(
        &self,
        name: &str,
        allow: bool,
    ) -> Result<(), StoreError> {
        self.execute(format!("ALTER DATABASE {} ALLOW_CONNECTIONS {allow}", quoted(name))).await
    }

    /// Lets a role do something in a database.
    pub(crate) async fn grant(
        &self,
        right: &'static str,
        name: &str,
        role: &str,
    ) -> Result<(), StoreError> {
        let grant = format!("GRANT {right} ON DATABASE {} TO {}", quoted(name), quoted(role));
        self.change_rights(name, grant).await
    }

    /// Takes such a right back.
    pub(crate) async fn revoke(
        &self,
        right: &'static str,
        name: &str,
        role: &str,
    ) -> Result<(), StoreError> {
        let revoke = format!("REVOKE {right} ON DATABASE {} FROM {}", quoted(name), quoted(role));
        self.change_rights(name, revoke).await
    }

    /// One at a time for a database, as in `crm_cluster.ensure_login`: two
    /// GRANTs at once on it fail.
    async fn change_rights(&self, name: &str, statement: String) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('crm database ' || $1, 0))")
            .bind(name.strip_prefix("tenant_").unwrap_or(name))
            .execute(&mut *tx)
            .await?;
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Removes a database, if it is there.
    pub(crate) async fn drop(&self, name: &str) -> Result<(), StoreError> {
        self.execute(format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(name))).await
    }

    /// Makes the roles of a service, and sets its migrator's password.
    pub(crate) async fn ensure_service(
        &self,
        service: &str,
        verifier: &str,
    ) -> Result<(), StoreError> {
        sqlx::query("SELECT crm_cluster.ensure_service($1, $2)")
            .bind(service)
            .bind(verifier)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Makes the login of a service in a tenant's database, by the function that
    /// checks its name.
    pub(crate) async fn ensure_login(
        &self,
        tenant_id: Uuid,
        service: &str,
        generation: i32,
        verifier: &str,
    ) -> Result<(), StoreError> {
        sqlx::query("SELECT crm_cluster.ensure_login($1, $2, $3, $4)")
            .bind(tenant_id)
            .bind(service)
            .bind(generation)
            .bind(verifier)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Takes the password of a login, and ends its sessions. Those of others go
    /// on.
    pub(crate) async fn void_login(
        &self,
        tenant_id: Uuid,
        service: &str,
        generation: i32,
    ) -> Result<(), StoreError> {
        sqlx::query("SELECT crm_cluster.void_login($1, $2, $3)")
            .bind(tenant_id)
            .bind(service)
            .bind(generation)
            .execute(&self.pool)
            .await?;
        self.end_sessions(Some(tenant_id)).await?;
        Ok(())
    }

    /// Has the cluster write down what is in its memory alone.
    pub(crate) async fn checkpoint(&self) -> Result<(), StoreError> {
        sqlx::query("CHECKPOINT").execute(&self.pool).await?;
        Ok(())
    }

    /// Ends the sessions of logins that are shut or have no password, those of
    /// one tenant or of all. Answers how many there were.
    pub(crate) async fn end_sessions(&self, tenant_id: Option<Uuid>) -> Result<i64, StoreError> {
        let ended = sqlx::query_scalar("SELECT crm_cluster.end_sessions($1)");
        Ok(ended.bind(tenant_id).fetch_one(&self.pool).await?)
    }

    /// The tenants that have a login which is shut, and those that have one
    /// which is open.
    pub(crate) async fn fenced(&self) -> Result<Vec<(Uuid, bool)>, StoreError> {
        let tenants = sqlx::query_as(
            "SELECT DISTINCT substring(rolname FROM 3 FOR 32)::uuid, NOT rolcanlogin
             FROM pg_roles
             WHERE rolname ~ '^t_[0-9a-f]{32}_'",
        );
        Ok(tenants.fetch_all(&self.pool).await?)
    }

    async fn execute(&self, statement: String) -> Result<(), StoreError> {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&self.pool).await?;
        Ok(())
    }
}
