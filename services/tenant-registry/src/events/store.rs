//! All SQL of tenants' events.

use crm_proto::registry::v1::tenant::State;
use crm_tenancy::StoreError;
use sqlx::PgPool;
use uuid::Uuid;

/// What a service must know of a tenant.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct StatusRow {
    pub(crate) tenant_id: Uuid,
    state: i16,
    pub(crate) generation: i32,
    pub(crate) access_version: i64,
    pub(super) event: i64,
}

impl StatusRow {
    pub(crate) fn state(&self) -> State {
        State::try_from(i32::from(self.state)).unwrap_or_default()
    }
}

/// The number of the newest event.
pub(super) async fn newest(pool: &PgPool) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT last FROM tenant_events").fetch_one(pool).await?)
}

/// The tenants whose calls are refused, after one of them.
pub(super) async fn refused(
    pool: &PgPool,
    after: Uuid,
    limit: i64,
) -> Result<Vec<StatusRow>, StoreError> {
    let rows = sqlx::query_as(
        "SELECT tenant_id, state, generation, access_version, event
         FROM tenants
         WHERE state IN (3, 4, 5) AND tenant_id > $1
         ORDER BY tenant_id
         LIMIT $2",
    );
    Ok(rows.bind(after).bind(limit).fetch_all(pool).await?)
}

/// The tenants that had an event after this one, in the events' order. A
/// tenant with several has the last.
pub(super) async fn changes(pool: &PgPool, after: i64) -> Result<Vec<StatusRow>, StoreError> {
    let rows = sqlx::query_as(
        "SELECT tenant_id, state, generation, access_version, event
         FROM tenants
         WHERE event > $1 AND event > 0
         ORDER BY event
         LIMIT 1000",
    );
    Ok(rows.bind(after).fetch_all(pool).await?)
}
