//! What a server says of itself: whether it can be a cluster, and how full it
//! is.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;

use super::admin::{ClusterAdmin, DATABASE};
use super::error::ClusterError;
use super::model::Figures;
use super::store::{self, ProbeRow};

/// The oldest version, as PostgreSQL numbers it.
const OLDEST_VERSION: i32 = 150_000;
/// The version of `cluster-setup.sql` that the registry needs.
const SETUP_VERSION: i32 = 2;
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
    match row.setup_version {
        Some(SETUP_VERSION..) => {}
        Some(version) => missing.push(format!(
            "cluster-setup.sql of version {version} was run there; {SETUP_VERSION} is needed"
        )),
        None => missing.push("the functions of cluster-setup.sql are not there".to_owned()),
    }
    for function in &row.refused_functions {
        missing.push(format!("the role crm_registry may not call crm_cluster.{function}"));
    }
    for database in &row.open_databases {
        missing.push(format!("everyone may connect to the database {database}"));
    }
    if !row.knows_letters {
        let text = "its databases are not in UTF-8 with ICU; initdb --encoding=UTF8 makes them so";
        return Err(ClusterError::NotReady(vec![text.to_owned()]));
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
    let row = store::probe(&mut session).await?;
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
    let usage = timeout(PATIENCE, store::usage(admin.pool())).await.ok()?.ok()?;
    let size = timeout(MEASURING, store::size(admin.pool())).await;
    let size_bytes = size.ok().and_then(Result::ok).unwrap_or_default();
    let (version, session_count) = usage;
    Some(Figures { version, session_count, size_bytes })
}
