//! All SQL of clusters.

use chrono::{DateTime, Utc};
use crm_tenancy::StoreError;
use sqlx::PgPool;
use sqlx::postgres::PgSslMode;

use crate::config::{ClusterAddress, Config};

/// `TLS_MODE_DISABLED`, in the messages of clusters and of leases.
const TLS_DISABLED: i16 = 1;

/// How the registry reaches a cluster.
#[derive(sqlx::FromRow)]
pub(crate) struct ClusterAddressRow {
    pub(crate) host: String,
    pub(crate) port: i32,
    pub(crate) tls_mode: i16,
    /// The password of its login, sealed. `None`: the configuration has it.
    pub(crate) secret: Option<Vec<u8>>,
}

impl ClusterAddressRow {
    /// What is not expressly without TLS has it.
    pub(crate) fn ssl_mode(&self) -> PgSslMode {
        if self.tls_mode == TLS_DISABLED { PgSslMode::Disable } else { PgSslMode::VerifyFull }
    }
}

/// Makes the registry's own cluster known, or its address as it is now. What
/// operators changed since stays.
pub(crate) async fn add_first(
    registry: &PgPool,
    config: &Config,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let ClusterAddress { id, host, port } = &config.cluster;
    sqlx::query(
        "INSERT INTO clusters
             (cluster, host, port, system_identifier, spare_target, create_time, update_time)
         SELECT $1, $2, $3, system_identifier, $4, $5, $5 FROM pg_control_system()
         ON CONFLICT (cluster) DO UPDATE
         SET host = excluded.host, port = excluded.port,
             system_identifier = excluded.system_identifier",
    )
    .bind(id)
    .bind(host)
    .bind(i32::from(*port))
    .bind(i32::try_from(config.spares).unwrap_or(i32::MAX))
    .bind(now)
    .execute(registry)
    .await?;
    Ok(())
}

/// Where a cluster is.
pub(crate) async fn address(
    registry: &PgPool,
    cluster: &str,
) -> Result<Option<ClusterAddressRow>, StoreError> {
    let row =
        sqlx::query_as("SELECT host, port, tls_mode, secret FROM clusters WHERE cluster = $1");
    Ok(row.bind(cluster).fetch_optional(registry).await?)
}

/// Every cluster, the first first.
pub(crate) async fn ids(registry: &PgPool) -> Result<Vec<String>, StoreError> {
    let ids = sqlx::query_scalar("SELECT cluster FROM clusters ORDER BY create_time");
    Ok(ids.fetch_all(registry).await?)
}
