//! All SQL of tenants.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use crm_proto::registry::v1::tenant::{Kind, State};
use crm_tenancy::StoreError;
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::error::TenantError;
use super::model::{NewTenant, Tenant, TenantKey};

/// How long a request_id is remembered.
const REQUEST_LIFETIME: TimeDelta = TimeDelta::hours(24);
const METHOD: &str = "CreateTenant";

/// A tenant that is being made, or was.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) tenant_id: Uuid,
    pub(super) response: Option<Vec<u8>>,
}

/// A request that may be repeated.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) caller: &'a str,
    pub(super) request_id: Uuid,
}

/// What is known of a request_id.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) hash: Vec<u8>,
    pub(super) planned: Planned,
}

#[derive(sqlx::FromRow)]
struct TenantRow {
    tenant_id: Uuid,
    slug: String,
    display_name: String,
    kind: i16,
    state: i16,
    cluster: String,
    database: String,
    labels: Json<BTreeMap<String, String>>,
    create_time: DateTime<Utc>,
    update_time: DateTime<Utc>,
    delete_time: Option<DateTime<Utc>>,
    purge_time: Option<DateTime<Utc>>,
    revision: i64,
}

pub(super) fn failed(error: sqlx::Error) -> StoreError {
    error.into()
}

/// Makes room for a request_id, or answers what it was used for. Requests with
/// the same id wait for each other here.
pub(super) async fn claim_request(
    connection: &mut PgConnection,
    request: &Request<'_>,
    now: DateTime<Utc>,
) -> Result<Option<Known>, TenantError> {
    let lock = format!("{METHOD} {} {}", request.caller, request.request_id);
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(lock)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    sqlx::query("DELETE FROM requests WHERE expire_time <= $1")
        .bind(now)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    let row: Option<(Vec<u8>, Uuid, Option<Vec<u8>>)> = sqlx::query_as(
        "SELECT hash, tenant_id, response
         FROM requests
         WHERE caller = $1 AND method = $2 AND request_id = $3",
    )
    .bind(request.caller)
    .bind(METHOD)
    .bind(request.request_id)
    .fetch_optional(connection)
    .await
    .map_err(failed)?;
    Ok(row.map(|(hash, tenant_id, response)| Known {
        hash,
        planned: Planned { tenant_id, response },
    }))
}

pub(super) async fn insert_request(
    connection: &mut PgConnection,
    request: &Request<'_>,
    hash: &[u8],
    tenant_id: Uuid,
    now: DateTime<Utc>,
) -> Result<(), TenantError> {
    sqlx::query(
        "INSERT INTO requests (caller, method, request_id, hash, tenant_id, expire_time)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(request.caller)
    .bind(METHOD)
    .bind(request.request_id)
    .bind(hash)
    .bind(tenant_id)
    .bind(now + REQUEST_LIFETIME)
    .execute(connection)
    .await
    .map_err(failed)?;
    Ok(())
}

/// Whether the slug was free, and is now this tenant's.
pub(super) async fn insert_tenant(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    slug: &str,
    new: &NewTenant,
    state: State,
    now: DateTime<Utc>,
) -> Result<bool, TenantError> {
    let inserted = sqlx::query(
        "INSERT INTO tenants
             (tenant_id, slug, display_name, kind, state, labels, create_time, update_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
         ON CONFLICT ON CONSTRAINT tenants_slug_key DO NOTHING",
    )
    .bind(tenant_id)
    .bind(slug)
    .bind(&new.display_name)
    .bind(new.kind as i16)
    .bind(state as i16)
    .bind(Json(&new.labels))
    .bind(now)
    .execute(connection)
    .await
    .map_err(failed)?;
    Ok(inserted.rows_affected() == 1)
}

/// Keeps the answer to a repeated request. Answers the one that was kept
/// before, if there was one.
pub(super) async fn keep_response(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    response: &[u8],
) -> Result<Option<Vec<u8>>, TenantError> {
    let kept: Option<Vec<u8>> = sqlx::query_scalar(
        "UPDATE requests
         SET response = coalesce(response, $2)
         WHERE tenant_id = $1
         RETURNING response",
    )
    .bind(tenant_id)
    .bind(response)
    .fetch_optional(connection)
    .await
    .map_err(failed)?;
    Ok(kept)
}

pub(super) async fn get(
    connection: &mut PgConnection,
    key: &TenantKey,
) -> Result<Option<Tenant>, TenantError> {
    let (id, slug) = match key {
        TenantKey::Id(id) => (Some(*id), None),
        TenantKey::Slug(slug) => (None, Some(slug)),
    };
    let row: Option<TenantRow> = sqlx::query_as(
        "SELECT t.tenant_id, t.slug, t.display_name, t.kind, t.state, d.cluster,
             d.name AS database, t.labels, t.create_time, t.update_time, t.delete_time,
             t.purge_time, t.revision
         FROM tenants AS t
         JOIN databases AS d ON d.database_id = t.tenant_id
         WHERE t.tenant_id = $1 OR t.slug = $2",
    )
    .bind(id)
    .bind(slug)
    .fetch_optional(connection)
    .await
    .map_err(failed)?;
    Ok(row.map(Tenant::from))
}

impl From<TenantRow> for Tenant {
    fn from(row: TenantRow) -> Self {
        Self {
            id: Some(row.tenant_id),
            slug: row.slug,
            display_name: row.display_name,
            kind: Kind::try_from(i32::from(row.kind)).unwrap_or_default(),
            state: State::try_from(i32::from(row.state)).unwrap_or_default(),
            cluster: row.cluster,
            database: row.database,
            labels: row.labels.0,
            create_time: row.create_time,
            update_time: row.update_time,
            delete_time: row.delete_time,
            purge_time: row.purge_time,
            revision: row.revision,
        }
    }
}
