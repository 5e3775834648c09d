//! All SQL of claims, in the clusters and in the registry's database.

use chrono::{DateTime, TimeDelta, Utc};
use crm_proto::registry::v1::tenant::{Kind, State};
use crm_tenancy::StoreError;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::model::{Claim, Holder};
use crate::tenant::GRACE;

#[derive(sqlx::FromRow)]
struct ClaimRow {
    database_id: Uuid,
    claim_id: Uuid,
    slug: String,
    state: i16,
    state_id: Uuid,
    claim_time: DateTime<Utc>,
    is_confirmed: bool,
    purge_time: Option<DateTime<Utc>>,
}

#[derive(sqlx::FromRow)]
struct HolderRow {
    tenant_id: Uuid,
    slug: String,
    claim_id: Uuid,
    is_claimed: bool,
    state: i16,
    state_id: Uuid,
    known_state_ids: Vec<Uuid>,
}

/// The claims in a cluster, all or one.
pub(super) async fn claims(cluster: &PgPool, only: Option<Uuid>) -> Result<Vec<Claim>, StoreError> {
    let rows: Vec<ClaimRow> = sqlx::query_as(
        "SELECT database_id, claim_id, slug, state, state_id, claim_time, is_confirmed, purge_time
         FROM crm_cluster.claims
         WHERE $1::uuid IS NULL OR database_id = $1",
    )
    .bind(only)
    .fetch_all(cluster)
    .await?;
    Ok(rows.into_iter().map(Claim::from).collect())
}

/// The tenants of a cluster, all or one.
pub(super) async fn holders(
    registry: &PgPool,
    cluster: &str,
    only: Option<Uuid>,
) -> Result<Vec<Holder>, StoreError> {
    let rows: Vec<HolderRow> = sqlx::query_as(
        "SELECT t.tenant_id, t.slug, t.claim_id, t.is_claimed, t.state, t.state_id,
             t.known_state_ids
         FROM tenants AS t
         JOIN databases AS d ON d.database_id = t.tenant_id
         WHERE d.cluster = $1 AND ($2::uuid IS NULL OR t.tenant_id = $2)",
    )
    .bind(cluster)
    .bind(only)
    .fetch_all(registry)
    .await?;
    Ok(rows.into_iter().map(Holder::from).collect())
}

/// A tenant, and its cluster.
pub(super) async fn holder(
    registry: &mut PgConnection,
    tenant_id: Uuid,
) -> Result<Option<(String, Holder)>, StoreError> {
    #[derive(sqlx::FromRow)]
    struct Row {
        cluster: String,
        #[sqlx(flatten)]
        holder: HolderRow,
    }
    let row: Option<Row> = sqlx::query_as(
        "SELECT d.cluster, t.tenant_id, t.slug, t.claim_id, t.is_claimed, t.state, t.state_id,
             t.known_state_ids
         FROM tenants AS t
         JOIN databases AS d ON d.database_id = t.tenant_id
         WHERE t.tenant_id = $1",
    )
    .bind(tenant_id)
    .fetch_optional(registry)
    .await?;
    Ok(row.map(|Row { cluster, holder }| (cluster, holder.into())))
}

/// Gives a database to a tenant. Answers whether it is this claim's; another
/// may have been first.
pub(super) async fn claim(
    cluster: &PgPool,
    tenant_id: Uuid,
    claim_id: Uuid,
    slug: &str,
    state_id: Uuid,
    state: State,
) -> Result<bool, StoreError> {
    let is_ours = sqlx::query_scalar("SELECT crm_cluster.claim_database($1, $2, $3, $4, $5)");
    let is_ours = is_ours.bind(tenant_id).bind(claim_id).bind(slug).bind(state_id);
    Ok(is_ours.bind(state as i16).fetch_one(cluster).await?)
}

/// Tells the cluster that the tenant of a claim is committed.
pub(super) async fn confirm(
    cluster: &PgPool,
    tenant_id: Uuid,
    claim_id: Uuid,
) -> Result<(), StoreError> {
    let confirm = sqlx::query("SELECT crm_cluster.confirm_claim($1, $2)");
    confirm.bind(tenant_id).bind(claim_id).execute(cluster).await?;
    Ok(())
}

/// Gives a database the claim anew. Answers whether its old claim was this.
pub(super) async fn reclaim(
    cluster: &PgPool,
    tenant_id: Uuid,
    old: Uuid,
    new: Uuid,
) -> Result<bool, StoreError> {
    let reclaim = sqlx::query_scalar("SELECT crm_cluster.reclaim_database($1, $2, $3)");
    Ok(reclaim.bind(tenant_id).bind(old).bind(new).fetch_one(cluster).await?)
}

/// Notes that the cluster has the claim.
pub(super) async fn claimed(
    registry: &mut PgConnection,
    tenant_id: Uuid,
    claim_id: Uuid,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE tenants SET is_claimed = true WHERE tenant_id = $1 AND claim_id = $2")
        .bind(tenant_id)
        .bind(claim_id)
        .execute(registry)
        .await?;
    Ok(())
}

/// Takes a spare out that was given to a tenant which there is not. Answers
/// whether it was one.
pub(super) async fn spoil(registry: &PgPool, spare_id: Uuid) -> Result<bool, StoreError> {
    let spoiled = sqlx::query(
        "UPDATE databases SET purpose = 'spoiled' WHERE database_id = $1 AND purpose = 'spare'",
    );
    Ok(spoiled.bind(spare_id).execute(registry).await?.rows_affected() == 1)
}

/// Lets nobody else settle the differences of a cluster until the transaction
/// ends.
pub(super) async fn lock(tx: &mut PgConnection, cluster: &str) -> Result<(), StoreError> {
    let lock =
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('crm claims ' || $1, 0))");
    lock.bind(cluster).execute(tx).await?;
    Ok(())
}

/// Takes a tenant in that the registry does not know, under its slug, or one
/// with its id where another has that by now. Its database may be known as a
/// spare; the logins of one that is not known get new secrets when they are
/// needed. What was deleted keeps its grace.
pub(super) async fn take_in(
    tx: &mut PgConnection,
    cluster: &str,
    claim: &Claim,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let hex = claim.tenant_id.as_simple();
    sqlx::query(
        "INSERT INTO databases (database_id, cluster, name, purpose, step, create_time)
         VALUES ($1, $2, $3, 'tenant', 'ready', $4)
         ON CONFLICT (database_id) DO UPDATE SET purpose = 'tenant', step = 'ready'",
    )
    .bind(claim.tenant_id)
    .bind(cluster)
    .bind(format!("tenant_{hex}"))
    .bind(claim.claim_time)
    .execute(&mut *tx)
    .await?;
    let taken = sqlx::query_scalar("SELECT EXISTS (SELECT FROM tenants WHERE slug = $1)");
    let is_taken: bool = taken.bind(&claim.slug).fetch_one(&mut *tx).await?;
    let slug = if is_taken { format!("recovered-{hex}") } else { claim.slug.clone() };
    sqlx::query(
        "INSERT INTO tenants
             (tenant_id, slug, display_name, kind, state, labels, claim_id, is_claimed, state_id,
              is_settled, create_time, update_time)
         VALUES ($1, $2, $3, $4, $5, '{}', $6, true, $7, false, $8, $9)",
    )
    .bind(claim.tenant_id)
    .bind(slug)
    .bind(&claim.slug)
    .bind(Kind::Organization as i16)
    .bind(State::Active as i16)
    .bind(claim.claim_id)
    .bind(claim.state_id)
    .bind(claim.claim_time)
    .bind(now)
    .execute(&mut *tx)
    .await?;
    take_state(tx, claim, now).await
}

/// Has the registry want the state that the cluster enforces.
pub(super) async fn take_state(
    tx: &mut PgConnection,
    claim: &Claim,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let deleted = (!matches!(claim.state, State::Active | State::Suspended)).then_some(now);
    let grace = if claim.state == State::Purging { TimeDelta::zero() } else { GRACE };
    sqlx::query(
        "UPDATE tenants
         SET state = $2, state_id = $3, known_state_ids = '{}', is_settled = false,
             delete_time = $4, purge_time = $5,
             restore_state = CASE WHEN $4 IS NULL THEN NULL WHEN state = $6 THEN $6 ELSE $7 END,
             update_time = greatest(update_time, $8), revision = revision + 1
         WHERE tenant_id = $1",
    )
    .bind(claim.tenant_id)
    .bind(claim.state as i16)
    .bind(claim.state_id)
    .bind(deleted)
    .bind(deleted.map(|at| at + grace))
    .bind(State::Suspended as i16)
    .bind(State::Active as i16)
    .bind(now)
    .execute(tx)
    .await?;
    Ok(())
}

/// Has the registry know of the state that the cluster enforces, so that its
/// own can be enforced instead.
pub(super) async fn know_state(tx: &mut PgConnection, claim: &Claim) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE tenants
         SET known_state_ids = known_state_ids || $2, is_settled = false
         WHERE tenant_id = $1",
    )
    .bind(claim.tenant_id)
    .bind(claim.state_id)
    .execute(tx)
    .await?;
    Ok(())
}

/// Has the registry know a claim by its new id. Leases are told anew.
pub(super) async fn take_claim(
    tx: &mut PgConnection,
    tenant_id: Uuid,
    claim_id: Uuid,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE tenants SET claim_id = $2, is_claimed = true, is_settled = false
         WHERE tenant_id = $1",
    )
    .bind(tenant_id)
    .bind(claim_id)
    .execute(tx)
    .await?;
    Ok(())
}

/// Has the claim made again.
pub(super) async fn unclaim(tx: &mut PgConnection, tenant_id: Uuid) -> Result<(), StoreError> {
    let unclaim = sqlx::query("UPDATE tenants SET is_claimed = false WHERE tenant_id = $1");
    unclaim.bind(tenant_id).execute(tx).await?;
    Ok(())
}

/// Has a tenant purged whose database is gone already.
pub(super) async fn purge_now(
    tx: &mut PgConnection,
    tenant_id: Uuid,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE tenants
         SET state = $2, is_settled = true, delete_time = coalesce(delete_time, $3),
             purge_time = $3, restore_state = coalesce(restore_state, $4),
             update_time = greatest(update_time, $3), revision = revision + 1
         WHERE tenant_id = $1",
    )
    .bind(tenant_id)
    .bind(State::Purging as i16)
    .bind(now)
    .bind(State::Active as i16)
    .execute(tx)
    .await?;
    Ok(())
}

/// Which schemas a database has is not known any more: the waves look.
pub(super) async fn forget_schemas(
    tx: &mut PgConnection,
    tenant_id: Uuid,
) -> Result<(), StoreError> {
    let forget = sqlx::query("DELETE FROM schema_versions WHERE database_id = $1");
    forget.bind(tenant_id).execute(tx).await?;
    Ok(())
}

/// The logins that were made for a database: services and generations.
pub(super) async fn logins(
    tx: &mut PgConnection,
    tenant_id: Uuid,
) -> Result<Vec<(String, i32)>, StoreError> {
    let logins = sqlx::query_as("SELECT service, generation FROM logins WHERE tenant_id = $1");
    Ok(logins.bind(tenant_id).fetch_all(tx).await?)
}

impl From<ClaimRow> for Claim {
    fn from(row: ClaimRow) -> Self {
        Self {
            tenant_id: row.database_id,
            claim_id: row.claim_id,
            slug: row.slug,
            state: State::try_from(i32::from(row.state)).unwrap_or_default(),
            state_id: row.state_id,
            claim_time: row.claim_time,
            is_confirmed: row.is_confirmed,
            purge_time: row.purge_time,
        }
    }
}

impl From<HolderRow> for Holder {
    fn from(row: HolderRow) -> Self {
        Self {
            tenant_id: row.tenant_id,
            slug: row.slug,
            claim_id: row.claim_id,
            is_claimed: row.is_claimed,
            state: State::try_from(i32::from(row.state)).unwrap_or_default(),
            state_id: row.state_id,
            known_state_ids: row.known_state_ids,
        }
    }
}
