//! All SQL of clusters.

use chrono::{DateTime, Utc};
use crm_proto::registry::v1::cluster::{State, TlsMode};
use crm_tenancy::StoreError;
use sqlx::postgres::{PgPool, PgSslMode};
use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::model::{Cluster, NewCluster, Settings};
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
    let ClusterAddress { id, host, port, verify_tls } = &config.cluster;
    sqlx::query(
        "INSERT INTO clusters
             (cluster, host, port, tls_mode, system_identifier, spare_target, create_time,
              update_time)
         SELECT $1, $2, $3, $4, system_identifier, $5, $6, $6 FROM pg_control_system()
         ON CONFLICT (cluster) DO UPDATE
         SET host = excluded.host, port = excluded.port, tls_mode = excluded.tls_mode,
             system_identifier = excluded.system_identifier",
    )
    .bind(id)
    .bind(host)
    .bind(i32::from(*port))
    .bind(if *verify_tls { TlsMode::VerifyFull } else { TlsMode::Disabled } as i16)
    .bind(i32::try_from(config.spares).unwrap_or(i32::MAX))
    .bind(now)
    .execute(registry)
    .await?;
    Ok(())
}

/// Where a cluster is.
pub(crate) async fn address(
    registry: &mut PgConnection,
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

/// What every statement that reads clusters begins with.
const SELECT: &str = "SELECT c.cluster, c.host, c.port, c.tls_mode, c.display_name,
         c.tenant_capacity, c.spare_target, c.state, c.create_time, c.update_time, c.revision,
         t.name AS template,
         (SELECT count(*) FROM databases AS d
          WHERE d.cluster = c.cluster AND d.purpose = 'tenant') AS tenant_count,
         (SELECT count(*) FROM databases AS d
          WHERE d.cluster = c.cluster AND d.purpose = 'spare' AND d.step = 'ready'
              AND is_current(d.database_id)) AS spare_count
     FROM clusters AS c
     LEFT JOIN databases AS t ON t.database_id = c.template_id";

#[derive(sqlx::FromRow)]
struct ClusterRow {
    cluster: String,
    host: String,
    port: i32,
    tls_mode: i16,
    display_name: String,
    tenant_capacity: i32,
    spare_target: i32,
    state: i16,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    revision: i64,
    template: Option<String>,
    tenant_count: i64,
    spare_count: i64,
}

pub(super) async fn get(
    connection: &mut PgConnection,
    id: &str,
) -> Result<Option<Cluster>, StoreError> {
    let mut query = QueryBuilder::<Postgres>::new(SELECT);
    query.push(" WHERE c.cluster = ").push_bind(id);
    let row: Option<ClusterRow> = query.build_query_as().fetch_optional(connection).await?;
    Ok(row.map(Cluster::from))
}

/// The clusters whose ids come after this one.
pub(super) async fn list(
    connection: &mut PgConnection,
    after: &str,
    limit: i64,
) -> Result<Vec<Cluster>, StoreError> {
    let mut query = QueryBuilder::<Postgres>::new(SELECT);
    query.push(" WHERE c.cluster > ").push_bind(after);
    query.push(" ORDER BY c.cluster LIMIT ").push_bind(limit);
    let rows: Vec<ClusterRow> = query.build_query_as().fetch_all(connection).await?;
    Ok(rows.into_iter().map(Cluster::from).collect())
}

/// Makes others wait who want to change the cluster.
pub(super) async fn lock(connection: &mut PgConnection, id: &str) -> Result<(), StoreError> {
    sqlx::query("SELECT FROM clusters WHERE cluster = $1 FOR NO KEY UPDATE")
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Whether a cluster has this server.
pub(super) async fn is_known_server(
    connection: &mut PgConnection,
    system_identifier: i64,
) -> Result<bool, StoreError> {
    let known =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM clusters WHERE system_identifier = $1)");
    Ok(known.bind(system_identifier).fetch_one(connection).await?)
}

/// Whether the cluster was new, and is now known.
pub(super) async fn insert(
    connection: &mut PgConnection,
    new: &NewCluster,
    secret: &[u8],
    system_identifier: i64,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let inserted = sqlx::query(
        "INSERT INTO clusters
             (cluster, host, port, tls_mode, secret, system_identifier, display_name,
              tenant_capacity, spare_target, state, create_time, update_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)
         ON CONFLICT DO NOTHING",
    )
    .bind(&new.id)
    .bind(&new.host)
    .bind(i32::from(new.port))
    .bind(new.tls_mode as i16)
    .bind(secret)
    .bind(system_identifier)
    .bind(&new.settings.display_name)
    .bind(new.settings.tenant_capacity)
    .bind(new.settings.spare_target)
    .bind(new.settings.state as i16)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Writes what an operator may choose.
pub(super) async fn update(
    connection: &mut PgConnection,
    cluster: &Cluster,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE clusters
         SET display_name = $2, tenant_capacity = $3, spare_target = $4, state = $5,
             update_time = $6, revision = $7
         WHERE cluster = $1",
    )
    .bind(&cluster.id)
    .bind(&cluster.settings.display_name)
    .bind(cluster.settings.tenant_capacity)
    .bind(cluster.settings.spare_target)
    .bind(cluster.settings.state as i16)
    .bind(cluster.update_time)
    .bind(cluster.revision)
    .execute(connection)
    .await?;
    Ok(())
}

/// What a server says of itself, be it a cluster or not.
#[derive(sqlx::FromRow)]
pub(super) struct ProbeRow {
    pub(super) number: i32,
    pub(super) system_identifier: i64,
    pub(super) connections: i64,
    pub(super) makes_databases: bool,
    pub(super) checkpoints: bool,
    /// Of `cluster-setup.sql`. `None`: it was not run there.
    pub(super) setup_version: Option<i32>,
    /// What it makes for the registry, and that may not be called.
    pub(super) refused_functions: Vec<String>,
    pub(super) open_databases: Vec<String>,
    /// Whether new databases have all letters, and ICU's word on their case.
    pub(super) knows_letters: bool,
}

/// What a server says of itself. The error tells why it is not even asked.
pub(super) async fn probe(session: &mut PgConnection) -> Result<ProbeRow, sqlx::Error> {
    let row = sqlx::query_as(
        "SELECT current_setting('server_version_num')::int AS number,
             (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
             current_setting('max_connections')::bigint
                 - current_setting('superuser_reserved_connections')::bigint AS connections,
             r.rolcreatedb OR r.rolsuper AS makes_databases,
             r.rolsuper OR EXISTS (
                 SELECT FROM pg_auth_members AS m
                 WHERE m.member = r.oid AND m.roleid::regrole::text = 'pg_checkpoint'
             ) AS checkpoints,
             (
                 -- The first version had no comment.
                 SELECT coalesce(
                     substring(obj_description(n.oid, 'pg_namespace') FROM 'version ([0-9]+)')::int,
                     1
                 )
                 FROM pg_namespace AS n
                 WHERE n.nspname = 'crm_cluster'
             ) AS setup_version,
             ARRAY(
                 SELECT p.proname::text
                 FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
                 WHERE n.nspname = 'crm_cluster' AND p.prosecdef
                     AND NOT (has_schema_privilege(n.oid, 'USAGE')
                         AND has_function_privilege(p.oid, 'EXECUTE'))
             ) AS refused_functions,
             ARRAY(
                 SELECT datname::text FROM pg_database
                 WHERE datname IN ('postgres', 'template1')
                     AND has_database_privilege('public', oid, 'CONNECT')
             ) AS open_databases,
             to_regcollation('pg_catalog.\"und-x-icu\"') IS NOT NULL AND EXISTS (
                 SELECT FROM pg_database
                 WHERE datname = 'template0' AND pg_encoding_to_char(encoding) = 'UTF8'
             ) AS knows_letters
         FROM pg_roles AS r
         WHERE r.rolname = current_user",
    );
    row.fetch_one(session).await
}

/// The version of a cluster's PostgreSQL, and how many sessions tenants have.
pub(super) async fn usage(cluster: &PgPool) -> Result<(String, i64), StoreError> {
    // The names of tenants' logins begin with `t_`, and with no other's.
    let usage = sqlx::query_as(
        "SELECT split_part(current_setting('server_version'), ' ', 1),
             (SELECT count(*) FROM pg_stat_activity WHERE starts_with(usename::text, 't_'))",
    );
    Ok(usage.fetch_one(cluster).await?)
}

/// How large all databases of the registry's are in a cluster, in bytes.
pub(super) async fn size(cluster: &PgPool) -> Result<i64, StoreError> {
    let size = sqlx::query_scalar(
        "SELECT coalesce(sum(pg_database_size(d.oid)), 0)::bigint
         FROM pg_database AS d JOIN pg_roles AS r ON r.oid = d.datdba
         WHERE r.rolname = current_user",
    );
    Ok(size.fetch_one(cluster).await?)
}

impl From<ClusterRow> for Cluster {
    fn from(row: ClusterRow) -> Self {
        Self {
            id: row.cluster,
            host: row.host,
            port: row.port,
            tls_mode: TlsMode::try_from(i32::from(row.tls_mode)).unwrap_or_default(),
            settings: Settings {
                display_name: row.display_name,
                tenant_capacity: row.tenant_capacity,
                spare_target: row.spare_target,
                state: State::try_from(i32::from(row.state)).unwrap_or_default(),
            },
            tenant_count: row.tenant_count,
            spare_count: row.spare_count,
            template: row.template,
            create_time: row.create_time,
            update_time: row.update_time,
            revision: row.revision,
        }
    }
}
