//! All SQL of the registry's own database as such.

use crm_tenancy::StoreError;
use sqlx::postgres::{PgAdvisoryLock, PgPool};

/// Makes the database, shut to PUBLIC. Another replica may be doing the same.
pub(super) async fn create(cluster: &PgPool) -> Result<(), StoreError> {
    let lock = PgAdvisoryLock::new("crm registry database");
    let mut locked = lock.acquire(cluster.acquire().await?).await?;
    let exists: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(super::DATABASE)
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
