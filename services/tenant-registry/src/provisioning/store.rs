//! All SQL of databases that are being made.

use chrono::{DateTime, Utc};
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
    fn parse(name: &str) -> Self {
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

/// Tenants that have been in the making for long.
pub(super) async fn unfinished(
    pool: &PgPool,
    before: DateTime<Utc>,
) -> Result<Vec<Uuid>, StoreError> {
    let tenants = sqlx::query_scalar(
        "SELECT tenant_id FROM tenants WHERE state = $1 AND create_time < $2 ORDER BY create_time",
    );
    Ok(tenants.bind(State::Provisioning as i16).bind(before).fetch_all(pool).await?)
}
