//! All SQL of schemas and templates.

use chrono::{DateTime, Utc};
use crm_tenancy::StoreError;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::NewMigration;
use crate::provisioning::Step;

/// A migration that was registered.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct MigrationRow {
    pub(crate) version: i32,
    pub(super) checksum: Vec<u8>,
    pub(super) sql: String,
    pub(super) oldest_service_version: i32,
}

/// A cluster whose template lacks a migration.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct ClusterBehind {
    pub(super) cluster: String,
    pub(super) template_id: Option<Uuid>,
    pub(super) template: Option<String>,
    /// Whether it is the registry's own.
    pub(super) is_first: bool,
}

pub(crate) async fn services(connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    // The platform comes first: the others use its functions.
    let services =
        sqlx::query_scalar("SELECT service FROM services ORDER BY service <> 'platform', service");
    Ok(services.fetch_all(connection).await?)
}

pub(super) async fn is_service(
    connection: &mut PgConnection,
    service: &str,
) -> Result<bool, StoreError> {
    let known = sqlx::query_scalar("SELECT EXISTS (SELECT FROM services WHERE service = $1)");
    Ok(known.bind(service).fetch_one(connection).await?)
}

/// The set of a service, in order of the versions.
pub(crate) async fn migrations(
    connection: &mut PgConnection,
    service: &str,
) -> Result<Vec<MigrationRow>, StoreError> {
    let rows = sqlx::query_as(
        "SELECT version, checksum, sql, oldest_service_version
         FROM migrations
         WHERE service = $1
         ORDER BY version",
    );
    Ok(rows.bind(service).fetch_all(connection).await?)
}

/// The version that a service's schema is known to have in a database.
pub(super) async fn version(
    connection: &mut PgConnection,
    database_id: Option<Uuid>,
    service: &str,
) -> Result<i32, StoreError> {
    let version = sqlx::query_scalar(
        "SELECT version FROM schema_versions WHERE database_id = $1 AND service = $2",
    );
    let version = version.bind(database_id).bind(service).fetch_optional(connection).await?;
    Ok(version.unwrap_or(0))
}

pub(super) async fn migrator_secret(
    registry: &PgPool,
    service: &str,
) -> Result<Option<Vec<u8>>, StoreError> {
    let secret = sqlx::query_scalar("SELECT migrator_secret FROM services WHERE service = $1");
    Ok(secret.bind(service).fetch_one(registry).await?)
}

/// Keeps the first secret, and answers it.
pub(super) async fn keep_migrator_secret(
    registry: &PgPool,
    service: &str,
    secret: &[u8],
) -> Result<Vec<u8>, StoreError> {
    let kept = sqlx::query_scalar(
        "UPDATE services
         SET migrator_secret = coalesce(migrator_secret, $2)
         WHERE service = $1
         RETURNING migrator_secret",
    );
    Ok(kept.bind(service).bind(secret).fetch_one(registry).await?)
}

pub(super) async fn insert_migration(
    connection: &mut PgConnection,
    service: &str,
    migration: &NewMigration,
    checksum: &[u8],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO migrations
             (service, version, description, checksum, sql, oldest_service_version, create_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(service)
    .bind(i32::try_from(migration.version).unwrap_or(i32::MAX))
    .bind(&migration.description)
    .bind(checksum)
    .bind(&migration.sql)
    .bind(i32::try_from(migration.oldest_service_version).unwrap_or(i32::MAX))
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// Templates in a cluster whose making was cut off.
pub(super) async fn unfinished_templates(
    registry: &PgPool,
    cluster: &str,
) -> Result<Vec<(Uuid, String)>, StoreError> {
    let templates = sqlx::query_as(
        "SELECT database_id, name
         FROM databases
         WHERE purpose = 'template' AND cluster = $1 AND step <> $2",
    );
    Ok(templates.bind(cluster).bind(Step::Ready.as_str()).fetch_all(registry).await?)
}

pub(super) async fn delete_database(registry: &PgPool, id: Uuid) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM databases WHERE database_id = $1").bind(id).execute(registry).await?;
    Ok(())
}

pub(super) async fn clusters_behind(
    connection: &mut PgConnection,
) -> Result<Vec<ClusterBehind>, StoreError> {
    let rows = sqlx::query_as(
        "SELECT c.cluster, c.template_id, d.name AS template, c.secret IS NULL AS is_first
         FROM clusters AS c
         LEFT JOIN databases AS d ON d.database_id = c.template_id
         WHERE EXISTS (
             SELECT FROM migrations AS m
             WHERE m.version > coalesce((
                 SELECT v.version FROM schema_versions AS v
                 WHERE v.database_id = c.template_id AND v.service = m.service
             ), 0)
         )
         ORDER BY c.create_time",
    );
    Ok(rows.fetch_all(connection).await?)
}

pub(super) async fn drop_public_schema(template: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::raw_sql("DROP SCHEMA public").execute(template).await?;
    Ok(())
}

/// Schemas that are there and should not be, or belong to another owner than
/// they should.
pub(super) async fn stray_schemas(
    template: &mut PgConnection,
    services: &[String],
) -> Result<Vec<String>, StoreError> {
    let stray = sqlx::query_scalar(
        "SELECT nspname::text
         FROM pg_namespace
         WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
             AND NOT (nspname = ANY($1) AND nspowner::regrole::text = 'crm_' || nspname || '_owner')",
    );
    Ok(stray.bind(services).fetch_all(template).await?)
}

/// Gives a new template its name.
pub(super) async fn plan_template(
    registry: &PgPool,
    id: Uuid,
    cluster: &str,
    now: DateTime<Utc>,
) -> Result<String, StoreError> {
    let name = sqlx::query_scalar(
        "INSERT INTO databases (database_id, cluster, name, purpose, step, create_time)
         VALUES ($1, $2, 'crm_template_' || nextval('template_numbers'), 'template', $3, $4)
         RETURNING name",
    );
    let name = name.bind(id).bind(cluster).bind(Step::Planned.as_str()).bind(now);
    Ok(name.fetch_one(registry).await?)
}

/// Makes a template the one that tenants are cloned from.
pub(super) async fn finish_template(
    connection: &mut PgConnection,
    id: Uuid,
    cluster: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "WITH versions AS (
             INSERT INTO schema_versions (database_id, service, version)
             SELECT $1, service, max(version) FROM migrations GROUP BY service
         ), finished AS (
             UPDATE databases SET step = $3 WHERE database_id = $1
         )
         UPDATE clusters SET template_id = $1 WHERE cluster = $2",
    )
    .bind(id)
    .bind(cluster)
    .bind(Step::Ready.as_str())
    .execute(connection)
    .await?;
    Ok(())
}
