//! All SQL of tenants.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use crm_proto::registry::v1::tenant::{Kind, State};
use crm_service::page::{Cursor, Page, Position, storable};
use crm_tenancy::StoreError;
use sqlx::types::Json;
use sqlx::{PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

use super::model::{NewTenant, Tenant, TenantFilter, TenantKey};

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
    restore_state: Option<i16>,
}

/// What every statement that reads tenants begins with.
const SELECT: &str = "SELECT t.tenant_id, t.slug, t.display_name, t.kind, t.state, d.cluster,
         d.name AS database, t.labels, t.create_time, t.update_time, t.delete_time,
         t.purge_time, t.revision, t.restore_state
     FROM tenants AS t
     JOIN databases AS d ON d.database_id = t.tenant_id";

/// What the cluster knows a tenant by, beside its own id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids {
    pub(super) claim_id: Uuid,
    pub(super) state_id: Uuid,
}

/// Whether the slug was free, and is now this tenant's.
pub(super) async fn insert_tenant(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    slug: &str,
    new: &NewTenant,
    ids: Ids,
    state: State,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let inserted = sqlx::query(
        "INSERT INTO tenants
             (tenant_id, slug, display_name, kind, state, labels, create_time, update_time,
              claim_id, state_id, is_claimed)
         SELECT $1, $2, $3, $4, $5, $6, $7, $7, $8, $9, $5 = $10
         WHERE NOT EXISTS (
             SELECT FROM purged_tenants AS p WHERE p.slug = $2 AND p.slug_free_time > $7
         )
         ON CONFLICT ON CONSTRAINT tenants_slug_key DO NOTHING",
    )
    .bind(tenant_id)
    .bind(slug)
    .bind(&new.display_name)
    .bind(new.kind as i16)
    .bind(state as i16)
    .bind(Json(&new.labels))
    .bind(now)
    .bind(ids.claim_id)
    .bind(ids.state_id)
    // The claim commits before this does.
    .bind(State::Active as i16)
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

pub(super) async fn get(
    connection: &mut PgConnection,
    key: &TenantKey,
) -> Result<Option<Tenant>, StoreError> {
    find(connection, key, "").await
}

/// Reads a tenant that nobody else changes until the transaction ends.
pub(super) async fn lock(
    connection: &mut PgConnection,
    key: &TenantKey,
) -> Result<Option<Tenant>, StoreError> {
    find(connection, key, " FOR UPDATE OF t").await
}

async fn find(
    connection: &mut PgConnection,
    key: &TenantKey,
    lock: &'static str,
) -> Result<Option<Tenant>, StoreError> {
    let mut query = QueryBuilder::<Postgres>::new(SELECT);
    match key {
        TenantKey::Id(id) => query.push(" WHERE t.tenant_id = ").push_bind(*id),
        TenantKey::Slug(slug) => query.push(" WHERE t.slug = ").push_bind(slug.clone()),
    };
    query.push(lock);
    let row: Option<TenantRow> = query.build_query_as().fetch_optional(connection).await?;
    Ok(row.map(Tenant::from))
}

/// Saves what a tenant has become, and answers its new revision. Where the
/// fence has to move, the tenant is unsettled until it has, and its state has a
/// new id.
pub(super) async fn update(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    tenant: &Tenant,
    new_state_id: Option<Uuid>,
) -> Result<i64, StoreError> {
    let revision = sqlx::query_scalar(
        "UPDATE tenants
         SET display_name = $2, kind = $3, state = $4, labels = $5, update_time = $6,
             delete_time = $7, purge_time = $8, restore_state = $9,
             is_settled = is_settled AND $10::uuid IS NULL,
             known_state_ids = CASE
                 WHEN $10::uuid IS NULL THEN known_state_ids ELSE known_state_ids || state_id
             END,
             state_id = coalesce($10::uuid, state_id), revision = revision + 1
         WHERE tenant_id = $1
         RETURNING revision",
    )
    .bind(tenant_id)
    .bind(&tenant.display_name)
    .bind(tenant.kind as i16)
    .bind(tenant.state as i16)
    .bind(Json(&tenant.labels))
    .bind(tenant.update_time)
    .bind(tenant.delete_time)
    .bind(tenant.purge_time)
    .bind(tenant.restore_state.map(|state| state as i16))
    .bind(new_state_id)
    .fetch_one(connection)
    .await?;
    Ok(revision)
}

/// One page of tenants, the newest first.
pub(super) async fn list(
    connection: &mut PgConnection,
    filter: &TenantFilter,
    cursor: Option<Cursor<Position>>,
) -> Result<Page<Tenant>, StoreError> {
    let mut query = QueryBuilder::<Postgres>::new(SELECT);
    query.push(" WHERE true");
    if !filter.show_deleted {
        query.push(" AND t.delete_time IS NULL");
    }
    if let Some(state) = filter.state {
        query.push(" AND t.state = ").push_bind(state as i16);
    }
    if let Some(slug) = &filter.slug {
        query.push(" AND t.slug = ").push_bind(slug.clone());
    }
    if let Some(Cursor { after, .. }) = cursor {
        query.push(" AND (t.create_time, t.tenant_id) < (").push_bind(storable(after.create_time));
        query.push(", ").push_bind(after.id).push(")");
    }
    query.push(" ORDER BY t.create_time DESC, t.tenant_id DESC LIMIT ");
    query.push_bind(filter.page_size + 1);
    let rows: Vec<TenantRow> = query.build_query_as().fetch_all(connection).await?;
    let asked = usize::try_from(filter.page_size).unwrap_or(usize::MAX);
    let more = rows.len() > asked;
    let items = rows.into_iter().take(asked).map(Tenant::from).collect();
    Ok(Page { items, revision: 0, more })
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
            restore_state: row
                .restore_state
                .map(|state| State::try_from(i32::from(state)).unwrap_or_default()),
        }
    }
}
