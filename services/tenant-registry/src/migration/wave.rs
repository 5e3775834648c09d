//! The wave: every schema below its newest version is raised, a few databases
//! at a time.
//!
//! Each replica of the registry runs one. They share the work by a lock for
//! each database, which a replica that dies lets go. What was applied stands
//! in the database itself, so that whoever comes next neither applies it again
//! nor leaves it out. A database that is busy is tried again later, while
//! others go on; one whose migration does not run waits for an operator.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crm_clock::Clock;
use crm_proto::registry::v1::tenant_migration::State;
use crm_tenancy::StoreError;
use sqlx::Connection as _;
use tokio::sync::{Notify, OnceCell};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::model::ServiceMigrations;
use super::store::{self, Claimed, Due, NotRaised};
use crate::database::Database;
use crate::schema::{self, Migrator, Migrators, Raised, SchemaError, raise};

/// How many databases one replica raises at once.
const AT_ONCE: usize = 4;
/// How often a replica looks for work: others may have registered it, and
/// what was busy comes up again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The migrators of each cluster, made once in a wave.
#[derive(Debug, Default)]
struct Ready(Mutex<HashMap<String, Arc<ClusterMigrators>>>);

type ClusterMigrators = OnceCell<Vec<(String, Migrator)>>;

/// Raises the schemas of databases.
#[derive(Clone, Debug)]
pub(crate) struct Wave {
    database: Database,
    migrators: Migrators,
    /// Told when there is something to do.
    due: Arc<Notify>,
    clock: Clock,
}

impl Wave {
    pub(crate) fn new(
        database: Database,
        migrators: Migrators,
        due: Arc<Notify>,
        clock: Clock,
    ) -> Self {
        Self { database, migrators, due, clock }
    }

    /// Raises what is to be raised, for as long as this process runs.
    pub(crate) async fn run(self) {
        loop {
            if let Err(error) = self.look().await {
                let cause = crm_error::chain(&error);
                tracing::warn!(cause, "the migrations of tenants cannot go on");
            }
            let _told = tokio::time::timeout(LOOK_EVERY, self.due.notified()).await;
        }
    }

    async fn look(&self) -> Result<(), SchemaError> {
        let summary = self.measure().await?;
        if summary.iter().any(|service| !service.stopped && service.pending + service.running > 0) {
            self.raise_all().await?;
            for service in self.measure().await?.iter().filter(|service| service.stopped) {
                tracing::error!(
                    service = service.service,
                    failed = service.failed,
                    "the wave has stopped: too many databases failed"
                );
            }
        }
        Ok(())
    }

    async fn measure(&self) -> Result<Vec<ServiceMigrations>, StoreError> {
        let summary = store::summary(&self.database.registry).await?;
        for service in &summary {
            for (state, count) in [
                ("current", service.current),
                ("pending", service.pending),
                ("running", service.running),
                ("failed", service.failed),
            ] {
                let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
                let labels = [("service", service.service.clone()), ("state", state.to_owned())];
                metrics::gauge!("crm_migrations", &labels).set(count);
            }
        }
        Ok(summary)
    }

    /// Raises databases until none is due that nobody else is at.
    async fn raise_all(&self) -> Result<(), SchemaError> {
        // The locks live on a connection of their own, and go with it.
        let connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let mut locks = connection.detach();
        let ready = Arc::new(Ready::default());
        let mut running = JoinSet::new();
        let mut taken: Vec<Uuid> = Vec::new();
        loop {
            // One that does not answer would only hold the others up.
            let silent = self.database.silent_clusters();
            let now = self.clock.now();
            while taken.len() < AT_ONCE
                && let Some(claimed) = store::claim(&mut locks, &taken, &silent, now).await?
            {
                taken.push(claimed.database_id);
                let (this, ready) = (self.clone(), ready.clone());
                running.spawn(async move {
                    this.raise_database(&claimed, &ready).await;
                    claimed.database_id
                });
            }
            if taken.is_empty() {
                locks.close().await.map_err(StoreError::from)?;
                return Ok(());
            }
            // While one takes its time, others may become due.
            let ended = tokio::time::timeout(LOOK_EVERY, running.join_next()).await;
            match ended {
                Ok(Some(Ok(database_id))) => {
                    store::release(&mut locks, database_id).await?;
                    taken.retain(|id| *id != database_id);
                }
                // A panic: its lock goes with the connection, and so do all.
                Ok(Some(Err(_)) | None) => return Ok(()),
                Err(_) => {}
            }
        }
    }

    /// Raises the schemas of one database, whose lock this process has.
    async fn raise_database(&self, claimed: &Claimed, ready: &Ready) {
        let registry = &self.database.registry;
        loop {
            let due = store::begin(registry, claimed.database_id, self.clock.now()).await;
            let outcome = match due {
                Ok(Some(due)) => {
                    let raised = self.raise_schema(claimed, &due, ready).await;
                    self.write_down(claimed, &due, raised).await
                }
                Ok(None) => return,
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                // Not written down: it is due still, for whoever looks next.
                let cause = crm_error::chain(&error);
                tracing::warn!(database = claimed.name, cause, "a database cannot be raised");
                return;
            }
        }
    }

    async fn raise_schema(
        &self,
        claimed: &Claimed,
        due: &Due,
        ready: &Ready,
    ) -> Result<Raised, SchemaError> {
        let admin = self.database.cluster(&claimed.cluster).await?;
        let mut registry = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let set = schema::migrations(&mut registry, &due.service).await?;
        let cell = ready.of(&claimed.cluster);
        let making = async {
            let services = schema::services(&mut registry).await?;
            self.migrators.ensure(&admin, &services).await
        };
        let migrators = cell.get_or_try_init(|| making).await?;
        drop(registry);
        let migrator = migrators.iter().find(|(service, _)| *service == due.service);
        let (_, migrator) = migrator.ok_or(SchemaError::UnknownService)?;
        Ok(raise(&admin, migrator, &claimed.name, due.current_version, &set).await)
    }

    /// Writes down what came of a schema.
    async fn write_down(
        &self,
        claimed: &Claimed,
        due: &Due,
        raised: Result<Raised, SchemaError>,
    ) -> Result<(), StoreError> {
        let registry = &self.database.registry;
        let failed = |failure| Raised { version: due.current_version, failure: Some(failure) };
        let raised = raised.unwrap_or_else(failed);
        let now = self.clock.now();
        let Some(failure) = raised.failure else {
            return store::raised(registry, claimed.database_id, &due.service, raised.version, now)
                .await;
        };
        let state = if failure.is_passing() { State::Pending } else { State::Failed };
        let error = failure.report();
        tracing::warn!(
            database = claimed.name,
            service = due.service,
            attempts = due.attempts,
            state = state.as_str_name(),
            error,
            "a schema was not raised"
        );
        let outcome = NotRaised { version: raised.version, state, error };
        store::not_raised(registry, claimed.database_id, due, &outcome, now).await
    }
}

impl Ready {
    fn of(&self, cluster: &str) -> Arc<ClusterMigrators> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cells.entry(cluster.to_owned()).or_default().clone()
    }
}
