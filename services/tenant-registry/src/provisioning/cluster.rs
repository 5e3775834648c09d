//! Statements on a cluster that take no parameters: databases and roles. The
//! one place where identifiers become part of SQL.

use crm_tenancy::StoreError;
use sqlx::{AssertSqlSafe, PgPool};

/// The administrative side of a PostgreSQL cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    pool: PgPool,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

/// An identifier, quoted (PostgreSQL, section 4.1.1).
pub(crate) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

impl Cluster {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool }
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
        self.execute(format!("GRANT {right} ON DATABASE {} TO {}", quoted(name), quoted(role)))
            .await
    }

    /// Takes such a right back.
    pub(crate) async fn revoke(
        &self,
        right: &'static str,
        name: &str,
        role: &str,
    ) -> Result<(), StoreError> {
        self.execute(format!("REVOKE {right} ON DATABASE {} FROM {}", quoted(name), quoted(role)))
            .await
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

    async fn execute(&self, statement: String) -> Result<(), StoreError> {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&self.pool).await?;
        Ok(())
    }
}
