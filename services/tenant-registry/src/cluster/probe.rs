//! What a server says of itself: whether it can be a cluster, and how full it
//! is.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;

use super::admin::{ClusterAdmin, DATABASE};
use super::error::ClusterError;
use super::model::Figures;

/// The oldest version, as PostgreSQL numbers it.
const OLDEST_VERSION: i32 = 150_000;
/// What `cluster-setup.sql` makes, and the registry calls.
const FUNCTIONS: [&str; 5] =
    ["ensure_service", "ensure_login", "fence_tenant", "unfence_tenant", "end_sessions"];
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long it may take to measure its databases.
const MEASURING: Duration = Duration::from_secs(2);

/// A server that can be a cluster.
#[derive(Debug)]
pub(super) struct Probe {
    /// What PostgreSQL calls the server.
    pub(super) system_identifier: i64,
    /// How many connections it takes from others than superusers.
    pub(super) connections: i64,
    pub(super) figures: Figures,
}

#[derive(sqlx::FromRow)]
struct ProbeRow {
    number: i32,
    system_identifier: i64,
    connections: i64,
    makes_databases: bool,
    checkpoints: bool,
    functions: Vec<String>,
    open_databases: Vec<String>,
}

/// Checks that a server can be a cluster.
pub(super) async fn check(admin: &ClusterAdmin) -> Result<Probe, ClusterError> {
    let row = match timeout(PATIENCE, probe(admin)).await {
        Ok(Ok(row)) => row,
        Ok(Err(error)) => return Err(ClusterError::NotReady(vec![refusal(&error).to_owned()])),
        Err(_) => {
            return Err(ClusterError::NotReady(vec!["the server does not answer".to_owned()]));
        }
    };
    let mut missing = Vec::new();
    if row.number < OLDEST_VERSION {
        let major = row.number / 10_000;
        missing.push(format!("PostgreSQL is of version {major}; 15 or newer is needed"));
    }
    if !row.makes_databases {
        missing.push("the role crm_registry may not create databases".to_owned());
    }
    if !row.checkpoints {
        missing.push("the role crm_registry may not checkpoint".to_owned());
    }
    for function in FUNCTIONS {
        if !row.functions.iter().any(|found| found == function) {
            missing.push(format!("the function crm_cluster.{function} is not there"));
        }
    }
    for database in &row.open_databases {
        missing.push(format!("everyone may connect to the database {database}"));
    }
    if !missing.is_empty() {
        missing.push("run deploy/postgres/cluster-setup.sql there".to_owned());
        return Err(ClusterError::NotReady(missing));
    }
    let figures = figures(admin).await.unwrap_or_default();
    let ProbeRow { system_identifier, connections, .. } = row;
    Ok(Probe { system_identifier, connections, figures })
}

/// Over a connection of its own: the server may be no cluster at all.
async fn probe(admin: &ClusterAdmin) -> Result<ProbeRow, sqlx::Error> {
    let mut session = PgConnection::connect_with(&admin.options(DATABASE)).await?;
    let row = sqlx::query_as(
        "SELECT current_setting('server_version_num')::int AS number,
             (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
             current_setting('max_connections')::bigint
                 - current_setting('superuser_reserved_connections')::bigint AS connections,
             r.rolcreatedb OR r.rolsuper AS makes_databases,
             r.rolsuper OR EXISTS (
                 SELECT FROM pg_auth_members AS m
                 WHERE m.member = r.oid AND m.roleid::regrole::text = 'pg_checkpoint'
             ) AS checkpoints,
             ARRAY(
                 SELECT p.proname::text
                 FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
                 WHERE n.nspname = 'crm_cluster' AND has_schema_privilege(n.oid, 'USAGE')
                     AND has_function_privilege(p.oid, 'EXECUTE')
             ) AS functions,
             ARRAY(
                 SELECT datname::text FROM pg_database
                 WHERE datname IN ('postgres', 'template1')
                     AND has_database_privilege('public', oid, 'CONNECT')
             ) AS open_databases
         FROM pg_roles AS r
         WHERE r.rolname = current_user",
    );
    let row = row.fetch_one(&mut session).await?;
    session.close().await?;
    Ok(row)
}

/// Why a server was not even asked, in words for an operator.
fn refusal(error: &sqlx::Error) -> &'static str {
    let state = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    match state.as_deref() {
        Some("28P01" | "28000") => {
            "the server refuses the role crm_registry: no such role, another password, or \
             pg_hba.conf; run deploy/postgres/cluster-setup.sql there"
        }
        Some("42501" | "3D000") => {
            "the role crm_registry may not connect to the database postgres; run \
             deploy/postgres/cluster-setup.sql there"
        }
        Some(_) => "the server refuses connections",
        None if matches!(error, sqlx::Error::Tls(_)) => {
            "the server has no TLS that can be verified"
        }
        None => "the server does not answer",
    }
}

/// How full a cluster is. `None`: it does not answer.
pub(super) async fn figures(admin: &ClusterAdmin) -> Option<Figures> {
    // The names of tenants' logins begin with `t_`, and with no other's.
    let asked = sqlx::query_as(
        "SELECT split_part(current_setting('server_version'), ' ', 1),
             (SELECT count(*) FROM pg_stat_activity WHERE starts_with(usename::text, 't_'))",
    );
    let answered = timeout(PATIENCE, asked.fetch_one(admin.pool())).await.ok()?.ok()?;
    let (version, session_count): (String, i64) = answered;
    let size = sqlx::query_scalar(
        "SELECT coalesce(sum(pg_database_size(d.oid)), 0)::bigint
         FROM pg_database AS d JOIN pg_roles AS r ON r.oid = d.datdba
         WHERE r.rolname = current_user",
    );
    let size = timeout(MEASURING, size.fetch_one(admin.pool())).await;
    let size_bytes = size.ok().and_then(Result::ok).unwrap_or_default();
    Some(Figures { version, session_count, size_bytes })
}
