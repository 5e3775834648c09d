//! What the processes of data services tell of themselves: that they live,
//! how many sessions they may have, and what tenants do in them.

mod error;
mod store;

use chrono::{DateTime, TimeDelta, Utc};
use crm_clock::Clock;
use crm_tenancy::StoreError;
use futures_util::future::join_all;
use sqlx::PgConnection;
use uuid::Uuid;

pub(crate) use error::ActivityError;
pub(crate) use store::{ActivityRow, Sums, TenantReport};

use crate::database::{Database, owned};

/// How long a process counts after its last sign of life, which comes every
/// few seconds.
const ALIVE_FOR: TimeDelta = TimeDelta::seconds(15);
/// How long the figures of a process are kept after its last report.
const KEPT_FOR: TimeDelta = TimeDelta::days(7);
/// How long a process is known after its last report, if it died without a
/// word.
const KNOWN_FOR: TimeDelta = TimeDelta::days(1);
/// Connections of each cluster that are not the data services': the
/// registry's own, and some for operators.
pub const RESERVED_CONNECTIONS: i64 = 24;

/// A process and its report.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) service: String,
    pub(crate) instance: String,
    pub(crate) number: i64,
    pub(crate) session_budget: i32,
    pub(crate) tenants: Vec<TenantReport>,
}

/// What a tenant does.
#[derive(Debug)]
pub(crate) struct Activity {
    pub(crate) processes: Vec<ActivityRow>,
    pub(crate) session_count: i64,
    pub(crate) size_bytes: i64,
}

/// How many connections a cluster must take for all processes that are alive,
/// the reserve included.
pub(crate) async fn connections_needed(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
) -> Result<i64, StoreError> {
    Ok(store::budgets(connection, now - ALIVE_FOR).await? + RESERVED_CONNECTIONS)
}

/// The use cases of activity.
#[derive(Clone, Debug)]
pub(crate) struct Activities {
    database: Database,
    clock: Clock,
}

impl Activities {
    pub(crate) fn new(database: Database, clock: Clock) -> Self {
        Self { database, clock }
    }

    /// Takes a report in, once. A process that was not alive, or was with fewer
    /// sessions before it was started again, joins if its sessions have room in
    /// every cluster beside those of all others.
    pub(crate) async fn report(&self, report: Report) -> Result<(), ActivityError> {
        let this = self.clone();
        owned(async move { this.report_owned(&report).await }).await
    }

    async fn report_owned(&self, report: &Report) -> Result<(), ActivityError> {
        let now = self.clock.now();
        let mut tx = self.database.registry.begin().await.map_err(StoreError::from)?;
        let mut last = store::last_report(&mut tx, report, now - ALIVE_FOR).await?;
        let held = last.map_or(0, |last| last.session_budget);
        let is_new = last.is_none_or(|last| last.number < report.number);
        if is_new && report.session_budget > held {
            // Clusters are asked with no connection in hand: they may be slow,
            // and many may join at once.
            tx.rollback().await.map_err(StoreError::from)?;
            let connections = self.connections().await?;
            tx = self.database.registry.begin().await.map_err(StoreError::from)?;
            self.make_room(&mut tx, report, connections).await?;
            last = store::last_report(&mut tx, report, now - ALIVE_FOR).await?;
        }
        if last.is_some_and(|last| last.number >= report.number) {
            return Ok(());
        }
        if report.session_budget > 0 {
            store::upsert_instance(&mut tx, report, now).await?;
        } else {
            store::delete_instance(&mut tx, report).await?;
        }
        store::add_activity(&mut tx, report, now).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(())
    }

    /// One process joins at a time, so that two do not take the same room of
    /// so many connections.
    async fn make_room(
        &self,
        tx: &mut PgConnection,
        report: &Report,
        connections: i64,
    ) -> Result<(), ActivityError> {
        let now = self.clock.now();
        store::lock_joins(tx).await?;
        store::delete_old(tx, now - KEPT_FOR, now - KNOWN_FOR).await?;
        let taken = store::budgets_of_others(tx, report, now - ALIVE_FOR).await?;
        let needed = taken + i64::from(report.session_budget) + RESERVED_CONNECTIONS;
        if needed > connections {
            return Err(ActivityError::BudgetExceeded { needed, connections });
        }
        Ok(())
    }

    /// How many connections every cluster takes that answers.
    async fn connections(&self) -> Result<i64, ActivityError> {
        let asked = self
            .database
            .clusters()
            .await?
            .into_iter()
            .map(|cluster| async move { store::connections(cluster.pool()).await });
        let answers = join_all(asked).await;
        let fewest = answers.iter().filter_map(|answer| answer.as_ref().ok()).min().copied();
        match (fewest, answers.into_iter().find_map(Result::err)) {
            (Some(fewest), _) => Ok(fewest),
            (None, Some(error)) => Err(error.into()),
            (None, None) => Ok(0),
        }
    }

    /// What a tenant does, in the database of this name.
    pub(crate) async fn get(
        &self,
        tenant_id: Uuid,
        cluster: String,
        database: String,
    ) -> Result<Activity, ActivityError> {
        let this = self.clone();
        owned(async move {
            let processes = store::activity(&this.database.registry, tenant_id).await?;
            let cluster = this.database.cluster(&cluster).await?;
            let (session_count, size_bytes) =
                store::database_figures(cluster.pool(), &database).await?;
            Ok(Activity { processes, session_count, size_bytes })
        })
        .await
    }
}
