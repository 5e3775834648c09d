//! All SQL of purging, in the registry's database and in the clusters.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use crm_proto::registry::v1::tenant::State;
use crm_tenancy::StoreError;
use sqlx::postgres::PgAdvisoryLock;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::model::{Certificate, Deleted, SLUG_RESTS};
use crate::tenant::TenantKey;

/// What can be removed.
#[derive(Clone, Debug)]
pub(super) enum Rubbish {
    /// A deleted tenant.
    Tenant(Uuid),
    /// A spare that nobody gets.
    Spare(Uuid),
    /// A template that nothing is cloned from.
    Template(Uuid),
}

/// The certificate of a tenant that was purged.
pub(super) async fn certificate(
    registry: &mut PgConnection,
    key: &TenantKey,
    uid: Uuid,
) -> Result<Option<Certificate>, StoreError> {
    let certificate: Option<Certificate> =
        sqlx::query_as("SELECT * FROM purged_tenants WHERE tenant_id = $1")
            .bind(uid)
            .fetch_optional(registry)
            .await?;
    Ok(certificate.filter(|found| match key {
        TenantKey::Id(id) => *id == uid,
        TenantKey::Slug(slug) => *slug == found.slug,
    }))
}

/// The tenant that both the name and the id are of.
pub(super) async fn deleted(
    registry: &mut PgConnection,
    key: &TenantKey,
    uid: Uuid,
) -> Result<Option<Deleted>, StoreError> {
    let tenant: Option<Deleted> = sqlx::query_as(
        "SELECT t.tenant_id, t.slug, d.cluster, d.name AS database, t.delete_time,
             t.state = $2 AS is_deleted, t.state = $3 AS is_purging
         FROM tenants AS t
         JOIN databases AS d ON d.database_id = t.tenant_id
         WHERE t.tenant_id = $1",
    )
    .bind(uid)
    .bind(State::Deleted as i16)
    .bind(State::Purging as i16)
    .fetch_optional(registry)
    .await?;
    Ok(tenant.filter(|found| match key {
        TenantKey::Id(id) => *id == uid,
        TenantKey::Slug(slug) => *slug == found.slug,
    }))
}

/// The deleted tenants whose time has come.
pub(super) async fn due(pool: &PgPool, now: DateTime<Utc>) -> Result<Vec<Uuid>, StoreError> {
    let due = sqlx::query_scalar(
        "SELECT tenant_id FROM tenants
         WHERE state = $1 AND purge_time <= $2
         ORDER BY purge_time",
    );
    Ok(due.bind(State::Deleted as i16).bind(now).fetch_all(pool).await?)
}

/// From here on there is no way back: the tenant cannot be undeleted. Answers
/// whether it was deleted: it stays as it is where it was not, or is being
/// purged already.
pub(super) async fn begin(
    registry: &mut PgConnection,
    tenant_id: Uuid,
    state_id: Uuid,
    requester: Option<&str>,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let begun = sqlx::query(
        "UPDATE tenants
         SET state = $2, state_id = $3, known_state_ids = known_state_ids || state_id,
             is_settled = false, purge_requester = $4, purge_time = least(purge_time, $5),
             update_time = greatest(update_time, $5), revision = revision + 1
         WHERE tenant_id = $1 AND state = $6",
    )
    .bind(tenant_id)
    .bind(State::Purging as i16)
    .bind(state_id)
    .bind(requester)
    .bind(now)
    .bind(State::Deleted as i16)
    .execute(registry)
    .await?;
    Ok(begun.rows_affected() == 1)
}

/// The tenants of a cluster that are to be purged, and that PostgreSQL does not
/// know of yet.
pub(super) async fn unsettled(pool: &PgPool, cluster: &str) -> Result<Vec<Uuid>, StoreError> {
    let unsettled = sqlx::query_scalar(
        "SELECT t.tenant_id
         FROM tenants AS t
         JOIN databases AS d ON d.database_id = t.tenant_id
         WHERE d.cluster = $1 AND t.state = $2 AND NOT t.is_settled",
    );
    Ok(unsettled.bind(cluster).bind(State::Purging as i16).fetch_all(pool).await?)
}

/// What is to be removed next in a cluster: tenants that PostgreSQL lets nobody
/// into, spares that are spoiled, failed or too many, and old templates.
pub(super) async fn next(pool: &PgPool, cluster: &str) -> Result<Option<Rubbish>, StoreError> {
    let found: Option<(i32, Uuid)> = sqlx::query_as(
        "SELECT r.rank, r.database_id
         FROM (
             SELECT 1 AS rank, t.tenant_id AS database_id, t.purge_time AS since
             FROM tenants AS t
             JOIN databases AS d ON d.database_id = t.tenant_id
             WHERE d.cluster = $1 AND t.state = $2 AND t.is_settled
             UNION ALL
             SELECT 2, s.database_id, s.create_time
             FROM (
                 SELECT d.database_id, d.create_time, d.purpose, c.spare_target,
                     EXISTS (
                         SELECT FROM database_migrations AS m
                         WHERE m.database_id = d.database_id AND m.state = 4
                     ) AS has_failed,
                     row_number() OVER (
                         PARTITION BY d.purpose ORDER BY d.create_time DESC
                     ) AS number
                 FROM databases AS d
                 JOIN clusters AS c USING (cluster)
                 WHERE d.cluster = $1 AND d.purpose IN ('spare', 'spoiled') AND d.step = 'ready'
             ) AS s
             WHERE s.purpose = 'spoiled' OR s.has_failed OR s.number > s.spare_target
             UNION ALL
             SELECT 3, d.database_id, d.create_time
             FROM databases AS d
             JOIN clusters AS c USING (cluster)
             JOIN databases AS t ON t.database_id = c.template_id
             WHERE d.cluster = $1 AND d.purpose = 'template' AND d.step = 'ready'
                 AND d.create_time < t.create_time
         ) AS r
         ORDER BY r.rank, r.since
         LIMIT 1",
    )
    .bind(cluster)
    .bind(State::Purging as i16)
    .fetch_optional(pool)
    .await?;
    Ok(found.map(|(rank, id)| match rank {
        1 => Rubbish::Tenant(id),
        2 => Rubbish::Spare(id),
        _ => Rubbish::Template(id),
    }))
}

/// Whether it is this process's turn to remove a database.
pub(super) async fn take_turn(
    pool: &PgPool,
    cluster: &str,
    pace: Duration,
) -> Result<bool, StoreError> {
    let taken = sqlx::query(
        "UPDATE clusters
         SET purge_turn_time = clock_timestamp() + $2 * interval '1 second'
         WHERE cluster = $1 AND purge_turn_time <= clock_timestamp()",
    );
    let taken = taken.bind(cluster).bind(pace.as_secs_f64()).execute(pool).await?;
    Ok(taken.rows_affected() == 1)
}

/// The database of a tenant that is purged, and that nobody can reach.
pub(super) async fn purging(
    registry: &mut PgConnection,
    tenant_id: Uuid,
) -> Result<Option<String>, StoreError> {
    let name = sqlx::query_scalar(
        "SELECT d.name
         FROM tenants AS t
         JOIN databases AS d ON d.database_id = t.tenant_id
         WHERE t.tenant_id = $1 AND t.state = $2 AND t.is_settled",
    );
    Ok(name.bind(tenant_id).bind(State::Purging as i16).fetch_optional(registry).await?)
}

/// Removes the logins of a database that was removed. Answers how many.
pub(super) async fn bury(cluster: &PgPool, database_id: Uuid) -> Result<i32, StoreError> {
    let bury = sqlx::query_scalar("SELECT crm_cluster.bury_database($1)");
    Ok(bury.bind(database_id).fetch_one(cluster).await?)
}

/// Has a spare be nobody's in its cluster. Answers whether it is no tenant's.
pub(super) async fn discard(cluster: &PgPool, spare_id: Uuid) -> Result<bool, StoreError> {
    let discard = sqlx::query_scalar("SELECT crm_cluster.discard_database($1)");
    Ok(discard.bind(spare_id).fetch_one(cluster).await?)
}

/// Keeps the certificate of a tenant, and forgets all else.
pub(super) async fn forget(
    tx: &mut PgConnection,
    tenant_id: Uuid,
    login_count: i32,
    backup_retention: TimeDelta,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    // Rows of the tenant in other tables go with its database's.
    sqlx::query(
        "WITH gone AS (
             DELETE FROM tenants WHERE tenant_id = $1 RETURNING *
         ), kept AS (
             INSERT INTO purged_tenants
                 (tenant_id, slug, cluster, database, requester, login_count, delete_time,
                  purge_time, backup_expire_time, slug_free_time)
             SELECT g.tenant_id, g.slug, d.cluster, d.name, g.purge_requester, $2, g.delete_time,
                 $3, $4, $5
             FROM gone AS g JOIN databases AS d ON d.database_id = g.tenant_id
         ), idle AS (
             DELETE FROM tenant_activity WHERE tenant_id = $1
         )
         SELECT FROM gone",
    )
    .bind(tenant_id)
    .bind(login_count)
    .bind(now)
    .bind(now + backup_retention)
    .bind(now + SLUG_RESTS)
    .execute(&mut *tx)
    .await?;
    delete_database(tx, tenant_id).await
}

/// Says until the end of the transaction that someone is at a database.
pub(super) async fn hold(tx: &mut PgConnection, lock: &PgAdvisoryLock) -> Result<(), StoreError> {
    let hold = sqlx::query("SELECT pg_advisory_xact_lock($1)");
    hold.bind(lock.key().as_bigint()).execute(tx).await?;
    Ok(())
}

/// The name of a spare, which nobody takes until the transaction ends. `None`:
/// it is being taken, or is no spare any more.
pub(super) async fn lock_spare(
    tx: &mut PgConnection,
    spare_id: Uuid,
) -> Result<Option<String>, StoreError> {
    let name = sqlx::query_scalar(
        "SELECT name FROM databases
         WHERE database_id = $1 AND purpose IN ('spare', 'spoiled')
         FOR UPDATE SKIP LOCKED",
    );
    Ok(name.bind(spare_id).fetch_optional(tx).await?)
}

/// The name of a template that no database is being cloned from.
pub(super) async fn lock_template(
    tx: &mut PgConnection,
    id: Uuid,
) -> Result<Option<String>, StoreError> {
    let name = sqlx::query_scalar(
        "SELECT t.name FROM databases AS t
         WHERE t.database_id = $1 AND t.purpose = 'template'
             AND NOT EXISTS (
                 SELECT FROM databases AS d
                 WHERE d.template_id = t.database_id AND d.step <> 'ready'
             )
             AND NOT EXISTS (SELECT FROM clusters AS c WHERE c.template_id = t.database_id)
         FOR UPDATE SKIP LOCKED",
    );
    Ok(name.bind(id).fetch_optional(tx).await?)
}

/// Forgets a template, and that databases were cloned from it.
pub(super) async fn delete_template(tx: &mut PgConnection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query("UPDATE databases SET template_id = NULL WHERE template_id = $1")
        .bind(id)
        .execute(&mut *tx)
        .await?;
    delete_database(tx, id).await
}

pub(super) async fn delete_database(
    registry: &mut PgConnection,
    id: Uuid,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM databases WHERE database_id = $1").bind(id).execute(registry).await?;
    Ok(())
}
