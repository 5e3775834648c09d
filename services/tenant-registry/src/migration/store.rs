//! All SQL of migrations in the databases of tenants.

use chrono::{DateTime, Utc};
use crm_proto::registry::v1::tenant_migration::State;
use crm_tenancy::StoreError;
use sqlx::{FromRow, PgConnection, PgPool, Postgres, QueryBuilder};
use uuid::Uuid;

use super::model::{MigrationFilter, MigrationKey, ServiceMigrations, TenantMigration, retry_time};
use crate::tenant::TenantKey;

#[derive(FromRow)]
struct MigrationRow {
    database_id: Uuid,
    service: String,
    current_version: i32,
    target_version: i32,
    state: i32,
    attempts: i32,
    last_error: Option<String>,
    update_time: DateTime<Utc>,
}

/// A schema that is to be raised.
#[derive(Debug, FromRow)]
pub(super) struct Due {
    pub(super) service: String,
    pub(super) current_version: i32,
    /// This one included.
    pub(super) attempts: i32,
}

/// Why a schema has not the newest version.
#[derive(Debug)]
pub(super) struct NotRaised {
    pub(super) version: i32,
    pub(super) state: State,
    pub(super) error: String,
}

/// A database whose lock this process has.
#[derive(Debug, FromRow)]
pub(super) struct Claimed {
    pub(super) database_id: Uuid,
    pub(super) name: String,
    pub(super) cluster: String,
}

impl From<MigrationRow> for TenantMigration {
    fn from(row: MigrationRow) -> Self {
        Self {
            key: MigrationKey { tenant_id: row.database_id, service: row.service },
            current_version: row.current_version,
            target_version: row.target_version,
            state: State::try_from(row.state).unwrap_or_default(),
            attempts: row.attempts,
            last_error: row.last_error,
            update_time: row.update_time,
        }
    }
}

pub(super) async fn tenant_id(
    registry: &PgPool,
    key: &TenantKey,
) -> Result<Option<Uuid>, StoreError> {
    let (id, slug) = match key {
        TenantKey::Id(id) => (Some(*id), None),
        TenantKey::Slug(slug) => (None, Some(slug)),
    };
    let tenant =
        sqlx::query_scalar("SELECT tenant_id FROM tenants WHERE tenant_id = $1 OR slug = $2");
    Ok(tenant.bind(id).bind(slug).fetch_optional(registry).await?)
}

/// The schemas that fit, and one more than the page has, if there is one.
pub(super) async fn list(
    registry: &PgPool,
    filter: &MigrationFilter,
    tenant_id: Option<Uuid>,
    after: Option<&MigrationKey>,
) -> Result<Vec<TenantMigration>, StoreError> {
    let mut query: QueryBuilder<Postgres> = QueryBuilder::new(
        "SELECT m.*
         FROM database_migrations AS m
         JOIN tenants AS t ON t.tenant_id = m.database_id
         WHERE true",
    );
    if let Some(tenant_id) = tenant_id {
        query.push(" AND m.database_id = ").push_bind(tenant_id);
    }
    if let Some(state) = filter.state {
        query.push(" AND m.state = ").push_bind(state as i32);
    }
    if let Some(service) = &filter.service {
        query.push(" AND m.service = ").push_bind(service);
    }
    if let Some(after) = after {
        query.push(" AND (m.database_id, m.service) > (").push_bind(after.tenant_id);
        query.push(", ").push_bind(&after.service).push(")");
    }
    query.push(" ORDER BY m.database_id, m.service LIMIT ").push_bind(filter.page_size + 1);
    let rows: Vec<MigrationRow> = query.build_query_as().fetch_all(registry).await?;
    Ok(rows.into_iter().map(TenantMigration::from).collect())
}

pub(super) async fn get(
    connection: &mut PgConnection,
    key: &MigrationKey,
) -> Result<Option<TenantMigration>, StoreError> {
    let row: Option<MigrationRow> = sqlx::query_as(
        "SELECT m.*
         FROM database_migrations AS m
         JOIN tenants AS t ON t.tenant_id = m.database_id
         WHERE m.database_id = $1 AND m.service = $2",
    )
    .bind(key.tenant_id)
    .bind(&key.service)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(TenantMigration::from))
}

pub(super) async fn summary(registry: &PgPool) -> Result<Vec<ServiceMigrations>, StoreError> {
    let rows = sqlx::query_as("SELECT * FROM service_migrations ORDER BY service");
    Ok(rows.fetch_all(registry).await?)
}

/// Makes a failed migration one that is due at once. Answers whether it had
/// failed.
pub(super) async fn retry(
    connection: &mut PgConnection,
    key: &MigrationKey,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let retried = sqlx::query(
        "UPDATE schema_versions AS v
         SET state = $4, attempts = 0, last_error = NULL, retry_time = NULL, update_time = $3
         FROM tenants AS t
         WHERE v.database_id = $1 AND v.service = $2 AND t.tenant_id = v.database_id
             AND v.state = $5
             AND v.version < (SELECT max(version) FROM migrations WHERE service = $2)",
    )
    .bind(key.tenant_id)
    .bind(&key.service)
    .bind(now)
    .bind(State::Pending as i16)
    .bind(State::Failed as i16)
    .execute(connection)
    .await?;
    Ok(retried.rows_affected() == 1)
}

/// Takes the lock of a database that is due, those that wait for a tenant
/// first. The lock lives as long as the connection. `taken` are the databases
/// whose locks the connection has already; those of silent clusters come later.
pub(super) async fn claim(
    connection: &mut PgConnection,
    taken: &[Uuid],
    silent: &[String],
    now: DateTime<Utc>,
) -> Result<Option<Claimed>, StoreError> {
    // Row by row, in order, until a lock was free.
    let claimed = sqlx::query_as(
        "WITH due AS MATERIALIZED (
             SELECT m.database_id, min(m.retry_time) AS retry_time, min(m.purpose) AS purpose
             FROM due_migrations AS m
             WHERE coalesce(m.retry_time <= $2, true) AND m.database_id <> ALL($1)
             GROUP BY m.database_id
         ), ordered AS MATERIALIZED (
             SELECT due.database_id, d.name, d.cluster
             FROM due
             JOIN databases AS d ON d.database_id = due.database_id
             WHERE d.cluster <> ALL($3)
             ORDER BY due.purpose, due.retry_time NULLS FIRST, due.database_id
             LIMIT 100
         )
         SELECT database_id, name, cluster
         FROM ordered
         WHERE pg_try_advisory_lock(hashtextextended('crm migration ' || database_id, 0))
         LIMIT 1",
    );
    Ok(claimed.bind(taken).bind(now).bind(silent).fetch_optional(connection).await?)
}

pub(super) async fn release(
    connection: &mut PgConnection,
    database_id: Uuid,
) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_advisory_unlock(hashtextextended('crm migration ' || $1::uuid, 0))")
        .bind(database_id)
        .execute(connection)
        .await?;
    Ok(())
}

/// The schema that comes next in a database, and a note that it does.
pub(super) async fn begin(
    registry: &PgPool,
    database_id: Uuid,
    now: DateTime<Utc>,
) -> Result<Option<Due>, StoreError> {
    let due = sqlx::query_as(
        "WITH due AS (
             SELECT service, current_version
             FROM due_migrations
             WHERE database_id = $1 AND coalesce(retry_time <= $2, true)
             ORDER BY service <> 'platform', service
             LIMIT 1
         ), begun AS (
             INSERT INTO schema_versions AS v
                 (database_id, service, version, state, attempts, update_time)
             SELECT $1, service, 0, $3, 1, $2 FROM due
             ON CONFLICT (database_id, service) DO UPDATE
             SET state = excluded.state, attempts = v.attempts + 1, update_time = $2
             RETURNING attempts
         )
         SELECT service, current_version, attempts FROM due, begun",
    );
    let due = due.bind(database_id).bind(now).bind(State::Running as i16);
    Ok(due.fetch_optional(registry).await?)
}

/// Writes down that a schema was raised.
pub(super) async fn raised(
    registry: &PgPool,
    database_id: Uuid,
    service: &str,
    version: i32,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE schema_versions
         SET version = greatest(version, $3), state = $4, attempts = 0, last_error = NULL,
             retry_time = NULL, update_time = $5
         WHERE database_id = $1 AND service = $2",
    )
    .bind(database_id)
    .bind(service)
    .bind(version)
    .bind(State::Pending as i16)
    .bind(now)
    .execute(registry)
    .await?;
    Ok(())
}

/// Writes down that a schema was not raised to the newest version, and why:
/// it is tried again later, or waits for an operator.
pub(super) async fn not_raised(
    registry: &PgPool,
    database_id: Uuid,
    due: &Due,
    outcome: &NotRaised,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE schema_versions
         SET version = greatest(version, $3), state = $4, last_error = $5, retry_time = $6,
             update_time = $7
         WHERE database_id = $1 AND service = $2",
    )
    .bind(database_id)
    .bind(&due.service)
    .bind(outcome.version)
    .bind(outcome.state as i16)
    .bind(&outcome.error)
    .bind(retry_time(due.attempts, now))
    .bind(now)
    .execute(registry)
    .await?;
    Ok(())
}
