//! All SQL of activity.

use chrono::{DateTime, Utc};
use crm_tenancy::StoreError;
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::Report;

/// What one tenant did since the report before.
#[derive(Debug, Serialize)]
pub(crate) struct TenantReport {
    pub(crate) tenant_id: Uuid,
    pub(crate) sessions_in_use: u32,
    pub(crate) sessions_idle: u32,
    pub(crate) calls_waiting: u32,
    #[serde(flatten)]
    pub(crate) sums: Sums,
}

/// What is summed up from report to report.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub(crate) struct Sums {
    pub(crate) sessions_opened: i64,
    pub(crate) closed_idle: i64,
    pub(crate) closed_lifetime: i64,
    pub(crate) closed_evicted: i64,
    pub(crate) closed_busy: i64,
    pub(crate) closed_broken: i64,
    pub(crate) closed_revoked: i64,
    pub(crate) calls: i64,
    pub(crate) calls_refused: i64,
    pub(crate) last_call_time: Option<DateTime<Utc>>,
}

/// What a tenant did in one process.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct ActivityRow {
    pub(crate) service: String,
    pub(crate) instance: String,
    pub(crate) sessions_in_use: i32,
    pub(crate) sessions_idle: i32,
    pub(crate) calls_waiting: i32,
    #[sqlx(flatten)]
    pub(crate) sums: Sums,
    pub(crate) report_time: DateTime<Utc>,
}

/// What the last report of a process said.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
pub(super) struct LastReport {
    #[sqlx(rename = "report_number")]
    pub(super) number: i64,
    pub(super) session_budget: i32,
}

/// The last report of a process that is alive.
pub(super) async fn last_report(
    connection: &mut PgConnection,
    report: &Report,
    alive_since: DateTime<Utc>,
) -> Result<Option<LastReport>, StoreError> {
    let last = sqlx::query_as(
        "SELECT report_number, session_budget
         FROM instances
         WHERE service = $1 AND instance = $2 AND report_time > $3
         FOR UPDATE",
    );
    let last = last.bind(&report.service).bind(&report.instance).bind(alive_since);
    Ok(last.fetch_optional(connection).await?)
}

pub(super) async fn lock_joins(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('crm instances', 0))")
        .execute(connection)
        .await?;
    Ok(())
}

/// How many sessions all other processes that are alive may have.
pub(super) async fn budgets_of_others(
    connection: &mut PgConnection,
    report: &Report,
    alive_since: DateTime<Utc>,
) -> Result<i64, StoreError> {
    let sum = sqlx::query_scalar(
        "SELECT coalesce(sum(session_budget), 0)
         FROM instances
         WHERE (service, instance) <> ($1, $2) AND report_time > $3",
    );
    let sum = sum.bind(&report.service).bind(&report.instance).bind(alive_since);
    Ok(sum.fetch_one(connection).await?)
}

/// How many sessions all processes that are alive may have.
pub(super) async fn budgets(
    connection: &mut PgConnection,
    alive_since: DateTime<Utc>,
) -> Result<i64, StoreError> {
    let sum = sqlx::query_scalar(
        "SELECT coalesce(sum(session_budget), 0) FROM instances WHERE report_time > $1",
    );
    Ok(sum.bind(alive_since).fetch_one(connection).await?)
}

/// How many connections a cluster takes from others than superusers.
pub(super) async fn connections(cluster: &PgPool) -> Result<i64, StoreError> {
    let connections = sqlx::query_scalar(
        "SELECT current_setting('max_connections')::bigint
             - current_setting('superuser_reserved_connections')::bigint",
    );
    Ok(connections.fetch_one(cluster).await?)
}

pub(super) async fn upsert_instance(
    connection: &mut PgConnection,
    report: &Report,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO instances (service, instance, session_budget, report_number, report_time)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (service, instance) DO UPDATE
         SET session_budget = excluded.session_budget,
             report_number = excluded.report_number,
             report_time = excluded.report_time",
    )
    .bind(&report.service)
    .bind(&report.instance)
    .bind(report.session_budget)
    .bind(report.number)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) async fn delete_instance(
    connection: &mut PgConnection,
    report: &Report,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM instances WHERE service = $1 AND instance = $2")
        .bind(&report.service)
        .bind(&report.instance)
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes what was reported before the first time, and the processes that
/// reported for the last time before the second.
pub(super) async fn delete_old(
    connection: &mut PgConnection,
    reported_before: DateTime<Utc>,
    died_before: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "WITH died AS (
             DELETE FROM instances WHERE report_time < $2
         )
         DELETE FROM tenant_activity WHERE report_time < $1",
    )
    .bind(reported_before)
    .bind(died_before)
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds what the tenants of a report did to what they had done. Those that are
/// not known are left out.
pub(super) async fn add_activity(
    connection: &mut PgConnection,
    report: &Report,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO tenant_activity AS a
             (tenant_id, service, instance, sessions_in_use, sessions_idle, calls_waiting,
              sessions_opened, closed_idle, closed_lifetime, closed_evicted, closed_busy,
              closed_broken, closed_revoked, calls, calls_refused, last_call_time, report_time)
         SELECT r.tenant_id, $1, $2, r.sessions_in_use, r.sessions_idle, r.calls_waiting,
             r.sessions_opened, r.closed_idle, r.closed_lifetime, r.closed_evicted, r.closed_busy,
             r.closed_broken, r.closed_revoked, r.calls, r.calls_refused, r.last_call_time, $4
         FROM jsonb_to_recordset($3) AS r (
             tenant_id uuid, sessions_in_use integer, sessions_idle integer,
             calls_waiting integer, sessions_opened bigint, closed_idle bigint,
             closed_lifetime bigint, closed_evicted bigint, closed_busy bigint,
             closed_broken bigint, closed_revoked bigint, calls bigint, calls_refused bigint,
             last_call_time timestamptz)
         JOIN tenants USING (tenant_id)
         ON CONFLICT (tenant_id, service, instance) DO UPDATE
         SET sessions_in_use = excluded.sessions_in_use,
             sessions_idle = excluded.sessions_idle,
             calls_waiting = excluded.calls_waiting,
             sessions_opened = a.sessions_opened + excluded.sessions_opened,
             closed_idle = a.closed_idle + excluded.closed_idle,
             closed_lifetime = a.closed_lifetime + excluded.closed_lifetime,
             closed_evicted = a.closed_evicted + excluded.closed_evicted,
             closed_busy = a.closed_busy + excluded.closed_busy,
             closed_broken = a.closed_broken + excluded.closed_broken,
             closed_revoked = a.closed_revoked + excluded.closed_revoked,
             calls = a.calls + excluded.calls,
             calls_refused = a.calls_refused + excluded.calls_refused,
             last_call_time = coalesce(excluded.last_call_time, a.last_call_time),
             report_time = excluded.report_time",
    )
    .bind(&report.service)
    .bind(&report.instance)
    .bind(Json(&report.tenants))
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// What a tenant did, the latest report first.
pub(super) async fn activity(
    pool: &PgPool,
    tenant_id: Uuid,
) -> Result<Vec<ActivityRow>, StoreError> {
    let rows = sqlx::query_as(
        "SELECT service, instance, sessions_in_use, sessions_idle, calls_waiting, sessions_opened,
             closed_idle, closed_lifetime, closed_evicted, closed_busy, closed_broken,
             closed_revoked, calls, calls_refused, last_call_time, report_time
         FROM tenant_activity
         WHERE tenant_id = $1
         ORDER BY report_time DESC, service, instance",
    );
    Ok(rows.bind(tenant_id).fetch_all(pool).await?)
}

/// The number of sessions of a database, and its size in bytes. PostgreSQL's own
/// workers are nobody's, and no sessions.
pub(super) async fn database_figures(
    cluster: &PgPool,
    database: &str,
) -> Result<(i64, i64), StoreError> {
    let figures = sqlx::query_as(
        "SELECT (SELECT count(*) FROM pg_stat_activity AS a
                 WHERE a.datid = d.oid AND a.usesysid IS NOT NULL),
             pg_database_size(d.oid)
         FROM pg_database AS d
         WHERE d.datname = $1",
    );
    Ok(figures.bind(database).fetch_optional(cluster).await?.unwrap_or_default())
}
