//! All SQL of databases that are being made.

use std::time::Duration;

use chrono::{DateTime, Utc};
use crm_proto::registry::v1::cluster::State as ClusterState;
use crm_proto::registry::v1::tenant::State;
use crm_tenancy::StoreError;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// What is known to be done for a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It has an id and a name.
    Planned,
    /// It exists, closed to connections.
    Created,
    /// PUBLIC has no rights in it.
    Locked,
    /// Its logins exist.
    Granted,
    /// It takes connections.
    Ready,
}

const STEPS: [(Step, &str); 5] = [
    (Step::Planned, "planned"),
    (Step::Created, "created"),
    (Step::Locked, "locked"),
    (Step::Granted, "granted"),
    (Step::Ready, "ready"),
];

impl Step {
    /// The step after this one.
    pub(super) fn next(self) -> Option<Self> {
        let index = STEPS.iter().position(|(step, _)| *step == self)?;
        STEPS.get(index + 1).map(|(step, _)| *step)
    }

    pub(crate) fn as_str(self) -> &'static str {
        STEPS.iter().find(|(step, _)| *step == self).map_or("planned", |(_, name)| name)
    }

    /// An unknown name is the first step: every step may run twice.
    pub(crate) fn parse(name: &str) -> Self {
        STEPS.iter().find(|(_, known)| *known == name).map_or(Self::Planned, |(step, _)| *step)
    }
}

/// A database that is being made.
#[derive(Debug)]
pub(super) struct PlannedDatabase {
    pub(super) cluster: String,
    pub(super) name: String,
    pub(super) template: String,
    pub(super) step: Step,
}

pub(super) async fn planned(
    connection: &mut PgConnection,
    tenant_id: Uuid,
) -> Result<Option<PlannedDatabase>, StoreError> {
    let row: Option<(String, String, String, String)> = sqlx::query_as(
        "SELECT d.cluster, d.name, t.name, d.step
         FROM databases AS d
         JOIN databases AS t ON t.database_id = d.template_id
         WHERE d.database_id = $1",
    )
    .bind(tenant_id)
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(cluster, name, template, step)| PlannedDatabase {
        cluster,
        name,
        template,
        step: Step::parse(&step),
    }))
}

/// Writes down that a step is done; with the last, the tenant is active.
pub(super) async fn done(
    connection: &mut PgConnection,
    tenant_id: Uuid,
    step: Step,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "WITH stepped AS (
             UPDATE databases SET step = $2 WHERE database_id = $1 RETURNING template_id
         ), versions AS (
             INSERT INTO schema_versions (database_id, service, version)
             SELECT $1, v.service, v.version
             FROM schema_versions AS v
             JOIN stepped ON stepped.template_id = v.database_id
             WHERE $2 = 'created'
             ON CONFLICT DO NOTHING
         )
         UPDATE tenants
         SET state = $4, update_time = greatest(update_time, $3)
         WHERE tenant_id = $1 AND $2 = 'ready' AND state = $5",
    )
    .bind(tenant_id)
    .bind(step.as_str())
    .bind(now)
    .bind(State::Active as i16)
    .bind(State::Provisioning as i16)
    .execute(connection)
    .await?;
    Ok(())
}

/// The services whose sessions need a login; the platform's functions are
/// called by theirs.
pub(super) async fn services_with_logins(pool: &PgPool) -> Result<Vec<String>, StoreError> {
    let services = sqlx::query_scalar(
        "SELECT service FROM services WHERE service <> 'platform' ORDER BY service",
    );
    Ok(services.fetch_all(pool).await?)
}

/// Tenants that have been in the making for long, but for those in silent
/// clusters.
pub(super) async fn unfinished(
    pool: &PgPool,
    before: DateTime<Utc>,
    silent: &[String],
) -> Result<Vec<Uuid>, StoreError> {
    let tenants = sqlx::query_scalar(
        "SELECT t.tenant_id
         FROM tenants AS t
         JOIN databases AS d ON d.database_id = t.tenant_id
         WHERE t.state = $1 AND t.create_time < $2 AND d.cluster <> ALL($3)
         ORDER BY t.create_time",
    );
    let tenants = tenants.bind(State::Provisioning as i16).bind(before).bind(silent);
    Ok(tenants.fetch_all(pool).await?)
}

/// The cluster for a new tenant: of those that take tenants and have room, the
/// one with the fewest; a silent one only if there is no other, and one that is
/// closed never.
pub(super) async fn place(
    tx: &mut PgConnection,
    silent: &[String],
    closed: &[String],
) -> Result<Option<String>, StoreError> {
    let cluster = sqlx::query_scalar(
        "SELECT c.cluster
         FROM clusters AS c
         CROSS JOIN LATERAL (
             SELECT count(*) AS tenants
             FROM databases AS d
             WHERE d.cluster = c.cluster AND d.purpose = 'tenant'
         ) AS held
         WHERE c.state = $1 AND held.tenants < c.tenant_capacity AND is_current(c.template_id)
             AND c.cluster <> ALL($3)
         ORDER BY c.cluster = ANY($2), held.tenants, c.create_time
         LIMIT 1",
    );
    let cluster = cluster.bind(ClusterState::Active as i16).bind(silent).bind(closed);
    Ok(cluster.fetch_optional(tx).await?)
}

/// Whether one of the clusters with room, be their templates current or not, is
/// not closed. `None`: none has room.
pub(super) async fn has_room(
    tx: &mut PgConnection,
    closed: &[String],
) -> Result<Option<bool>, StoreError> {
    let has_room = sqlx::query_scalar(
        "SELECT bool_or(c.cluster <> ALL($2))
         FROM clusters AS c
         WHERE c.state = $1 AND c.tenant_capacity > (
             SELECT count(*) FROM databases AS d
             WHERE d.cluster = c.cluster AND d.purpose = 'tenant'
         )",
    );
    Ok(has_room.bind(ClusterState::Active as i16).bind(closed).fetch_one(tx).await?)
}

/// Makes a spare of the cluster a tenant's, if there is one that nobody else
/// is taking. It is taken when the transaction commits.
pub(super) async fn claim_spare(
    tx: &mut PgConnection,
    cluster: &str,
) -> Result<Option<Uuid>, StoreError> {
    let claimed = sqlx::query_scalar(
        "UPDATE databases SET purpose = 'tenant'
         WHERE database_id = (
             SELECT database_id
             FROM databases
             WHERE cluster = $1 AND purpose = 'spare' AND step = 'ready'
                 AND is_current(database_id)
             ORDER BY create_time
             LIMIT 1
             FOR UPDATE SKIP LOCKED
         )
         RETURNING database_id",
    );
    Ok(claimed.bind(cluster).fetch_optional(tx).await?)
}

/// Plans a tenant's database, of the cluster's current template.
pub(super) async fn plan_tenant(
    tx: &mut PgConnection,
    tenant_id: Uuid,
    cluster: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO databases (database_id, cluster, name, purpose, step, template_id, create_time)
         SELECT $1, cluster, $2, 'tenant', 'planned', template_id, $3
         FROM clusters
         WHERE cluster = $4",
    )
    .bind(tenant_id)
    .bind(database_name(tenant_id))
    .bind(now)
    .bind(cluster)
    .execute(tx)
    .await?;
    Ok(())
}

/// The spares of a cluster.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct SpareLevel {
    pub(super) cluster: String,
    /// How many there should be.
    pub(super) target: i32,
    /// How many can be claimed.
    pub(super) ready: i64,
    /// Whether the cluster should have more.
    pub(super) is_short: bool,
}

pub(super) async fn spare_levels(pool: &PgPool) -> Result<Vec<SpareLevel>, StoreError> {
    let levels = sqlx::query_as(
        "SELECT c.cluster, c.spare_target AS target, held.ready,
             c.state = $1 AND is_current(c.template_id) AND held.kept < c.spare_target AS is_short
         FROM clusters AS c
         CROSS JOIN LATERAL (
             -- A spare with an old schema counts: a wave raises it, unless
             -- that has failed.
             SELECT count(*) FILTER (WHERE is_current(d.database_id)) AS ready
                  , count(*) FILTER (WHERE NOT EXISTS (
                        SELECT FROM database_migrations AS m
                        WHERE m.database_id = d.database_id AND m.state = 4
                    )) AS kept
             FROM databases AS d
             WHERE d.cluster = c.cluster AND d.purpose = 'spare' AND d.step = 'ready'
         ) AS held
         ORDER BY c.cluster",
    );
    Ok(levels.bind(ClusterState::Active as i16).fetch_all(pool).await?)
}

/// Plans a spare in a cluster that is short of them, unless one is in the
/// making there or was planned within the pace, by whatever process. Answers
/// how many were planned so far.
pub(super) async fn plan_spare(
    pool: &PgPool,
    spare_id: Uuid,
    cluster: &str,
    pace: Duration,
    now: DateTime<Utc>,
) -> Result<Option<i64>, StoreError> {
    // The row of the cluster is the lock: who waited for it sees a refill_time
    // that is yet to come.
    let planned = sqlx::query_scalar(
        "WITH turn AS (
             UPDATE clusters AS c
             SET refill_time = clock_timestamp() + $4 * interval '1 second',
                 spares_made = spares_made + 1
             WHERE c.cluster = $2 AND c.state = $6 AND c.refill_time <= clock_timestamp()
                 AND is_current(c.template_id)
                 AND NOT EXISTS (
                     SELECT FROM databases AS d
                     WHERE d.cluster = c.cluster AND d.purpose = 'spare' AND d.step <> 'ready'
                 )
             RETURNING c.template_id, c.spares_made
         ), planned AS (
             INSERT INTO databases
                 (database_id, cluster, name, purpose, step, template_id, create_time)
             SELECT $1, $2, $3, 'spare', 'planned', template_id, $5 FROM turn
         )
         SELECT spares_made FROM turn",
    );
    let planned = planned
        .bind(spare_id)
        .bind(cluster)
        .bind(database_name(spare_id))
        .bind(pace.as_secs_f64())
        .bind(now)
        .bind(ClusterState::Active as i16);
    Ok(planned.fetch_optional(pool).await?)
}

/// Spares that have been in the making for long, but for those in silent
/// clusters.
pub(super) async fn unfinished_spares(
    pool: &PgPool,
    before: DateTime<Utc>,
    silent: &[String],
) -> Result<Vec<Uuid>, StoreError> {
    let spares = sqlx::query_scalar(
        "SELECT database_id
         FROM databases
         WHERE purpose = 'spare' AND step <> 'ready' AND create_time < $1
             AND cluster <> ALL($2)
         ORDER BY create_time",
    );
    Ok(spares.bind(before).bind(silent).fetch_all(pool).await?)
}

/// The name of a tenant's database: opaque, since any role can list names.
fn database_name(tenant_id: Uuid) -> String {
    format!("tenant_{}", tenant_id.as_simple())
}
