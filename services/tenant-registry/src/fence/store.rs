//! All SQL of fences, on the registry's side.

use crm_proto::registry::v1::tenant::State;
use crm_tenancy::StoreError;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// A state that is wanted, and not enforced yet.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Wanted {
    pub(super) cluster: String,
    state: i16,
    pub(super) state_id: Uuid,
    /// States that were wanted before, one of which may be enforced still.
    pub(super) known_state_ids: Vec<Uuid>,
}

impl Wanted {
    /// The state, by its number.
    pub(super) fn state(&self) -> i16 {
        self.state
    }

    /// Whether the tenant's logins must be shut.
    pub(super) fn is_fenced(&self) -> bool {
        self.state != State::Active as i16
    }
}

pub(super) async fn unsettled(
    connection: &mut PgConnection,
    tenant_id: Uuid,
) -> Result<Option<Wanted>, StoreError> {
    let row = sqlx::query_as(
        "SELECT d.cluster, t.state, t.state_id, t.known_state_ids
         FROM tenants AS t
         JOIN databases AS d ON d.database_id = t.tenant_id
         WHERE t.tenant_id = $1 AND NOT t.is_settled",
    );
    Ok(row.bind(tenant_id).fetch_optional(connection).await?)
}

/// All tenants that are not settled, but for those in silent clusters.
pub(super) async fn all_unsettled(
    pool: &PgPool,
    silent: &[String],
) -> Result<Vec<Uuid>, StoreError> {
    let tenants = sqlx::query_scalar(
        "SELECT t.tenant_id
         FROM tenants AS t
         JOIN databases AS d ON d.database_id = t.tenant_id
         WHERE NOT t.is_settled AND d.cluster <> ALL($1)",
    );
    Ok(tenants.bind(silent).fetch_all(pool).await?)
}

/// Writes down that a state is enforced, if it is still the one that is
/// wanted, and tells it. The counter's lock puts the events in order.
pub(super) async fn settled(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    wanted: &Wanted,
) -> Result<(), StoreError> {
    sqlx::query(
        "WITH next AS (
             UPDATE tenant_events SET last = last + 1 RETURNING last
         ), settled AS (
             UPDATE tenants
             SET is_settled = true, known_state_ids = '{}', event = next.last
             FROM next
             WHERE tenant_id = $1 AND state_id = $2 AND NOT is_settled
             RETURNING tenant_id
         )
         SELECT pg_notify('tenant_events', '') FROM settled",
    )
    .bind(tenant_id)
    .bind(wanted.state_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// The number of the newest event.
pub(super) async fn newest_event(pool: &PgPool) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT last FROM tenant_events").fetch_one(pool).await?)
}

/// Marks the tenants that are fenced and should not be, or should be and are
/// not, of those that were settled `before`. Answers how many there are.
/// `found` has the tenants that have a shut login (true), and those that have
/// an open one (false).
pub(super) async fn unsettle(
    pool: &PgPool,
    found: &[(Uuid, bool)],
    before: i64,
) -> Result<u64, StoreError> {
    let (tenants, fenced): (Vec<Uuid>, Vec<bool>) = found.iter().copied().unzip();
    let marked = sqlx::query(
        "UPDATE tenants AS t
         SET is_settled = false
         FROM unnest($1::uuid[], $2::boolean[]) AS found (tenant_id, is_fenced)
         WHERE t.tenant_id = found.tenant_id AND t.is_settled AND t.event <= $3
             AND found.is_fenced <> (t.state IN (3, 4, 5))",
    )
    .bind(tenants)
    .bind(fenced)
    .bind(before)
    .execute(pool)
    .await?;
    Ok(marked.rows_affected())
}

/// Has all logins of a tenant made anew: they lose their passwords with the
/// state that is enforced next.
pub(super) async fn unready_logins(
    connection: &mut PgConnection,
    tenant_id: Uuid,
) -> Result<(), StoreError> {
    let unready =
        sqlx::query("UPDATE logins SET is_ready = false WHERE tenant_id = $1 AND is_ready");
    unready.bind(tenant_id).execute(connection).await?;
    Ok(())
}

/// Has the cluster enforce a state, whatever it enforces of those before it.
pub(super) async fn enforce(
    cluster: &PgPool,
    tenant_id: Uuid,
    wanted: &Wanted,
) -> Result<(), StoreError> {
    sqlx::query("SELECT crm_cluster.enforce_state($1, $2, $3, $4)")
        .bind(tenant_id)
        .bind(&wanted.known_state_ids)
        .bind(wanted.state_id)
        .bind(wanted.state())
        .execute(cluster)
        .await?;
    Ok(())
}
