//! Making a tenant's database: a saga of idempotent steps.
//!
//! `CREATE DATABASE` stands outside transactions, so that each step is written
//! down when it is done, and a step may run twice. Whoever finds a tenant that
//! is not finished takes up where it was left: a repeated request, or
//! [`Provisioner::resume`].
//!
//! The order keeps a fresh clone shut: it is made closed to connections, since
//! a clone has the default privileges of PUBLIC, and opens only when those are
//! gone and its own logins are there.
//!
//! A spare is such a database before it has a tenant. Nobody has the secrets
//! of its logins: there is no lease without a tenant.

mod spares;
mod store;

use std::sync::Arc;
use std::time::Duration;

use crm_clock::Clock;
use crm_error::{ApiError, ErrorReason};
use crm_tenancy::StoreError;
use sqlx::PgConnection;
use sqlx::postgres::PgAdvisoryLock;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use uuid::Uuid;

pub(crate) use store::Step;

use crate::claim::{ClaimError, Claims, unreconciled};
use crate::database::Database;
use crate::lease::{LeaseError, Logins};

/// How long another process may take over a tenant before it is helped.
const RESUME_AFTER: chrono::TimeDelta = chrono::TimeDelta::seconds(15);
/// How often unfinished tenants are looked for.
const RESUME_EVERY: Duration = Duration::from_secs(5);
/// How long making one may take: a cluster that was lost on the way must not
/// keep the others' from being made.
const FINISH_WITHIN: Duration = Duration::from_secs(20);
/// How many databases one process makes at once. Each holds a connection to
/// the registry's database, and needs another one now and then.
const AT_ONCE: usize = 4;

/// Why a database could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProvisionError {
    #[error("the template has not the schemas of all services yet")]
    NoTemplate,
    #[error("no cluster takes another tenant")]
    NoRoom,
    #[error("the clusters with room and the registry differ on tenants")]
    Unreconciled,
    #[error("the tenant's database could not be claimed")]
    Claim(#[from] ClaimError),
    #[error("the tenant is not planned")]
    NotPlanned,
    #[error("the cluster does not answer in time")]
    TooSlow,
    #[error("the tenant's logins could not be made")]
    Login(#[from] Box<LeaseError>),
    #[error("a step of the database's making failed")]
    Store(#[from] StoreError),
}

impl From<ProvisionError> for ApiError {
    fn from(error: ProvisionError) -> Self {
        match error {
            ProvisionError::NoTemplate => Self::new(
                ErrorReason::DependencyUnavailable,
                "the services are starting; repeat the call later",
            )
            .with_retry_after(Duration::from_secs(1)),
            ProvisionError::NoRoom => Self::new(
                ErrorReason::ClustersFull,
                "no cluster takes another tenant; an operator has to add one",
            ),
            ProvisionError::Unreconciled => unreconciled(),
            ProvisionError::Claim(error) => error.into(),
            ProvisionError::NotPlanned => Self::internal(error),
            ProvisionError::TooSlow => Self::unavailable(error),
            ProvisionError::Login(error) => (*error).into(),
            ProvisionError::Store(error) => error.into(),
        }
    }
}

/// What whoever makes this database holds, in the registry's database.
pub(crate) fn lock(tenant_id: Uuid) -> PgAdvisoryLock {
    PgAdvisoryLock::new(format!("crm provisioning {tenant_id}"))
}

/// Where a new tenant is to live.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) tenant_id: Uuid,
    pub(crate) cluster: String,
    /// Whether the database was a spare, and can be used at once.
    pub(crate) is_ready: bool,
}

/// Makes tenant databases.
#[derive(Clone, Debug)]
pub(crate) struct Provisioner {
    database: Database,
    logins: Logins,
    claims: Claims,
    turns: Arc<Semaphore>,
    /// Is told when spares may be missing.
    refill_soon: Arc<Notify>,
    clock: Clock,
}

impl Provisioner {
    pub(crate) fn new(database: Database, logins: Logins, claims: Claims, clock: Clock) -> Self {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        Self { database, logins, claims, turns, refill_soon: Arc::default(), clock }
    }

    /// Finds a new tenant its cluster and its database: a spare, or one that
    /// [`Provisioner::finish`] has to make. Both stand when `tx` commits; the
    /// tenant's id is the database's.
    pub(crate) async fn place(&self, tx: &mut PgConnection) -> Result<Placed, ProvisionError> {
        let silent = self.database.silent_clusters();
        let closed = self.database.closed_clusters();
        let Some(cluster) = store::place(tx, &silent, &closed).await? else {
            return Err(match store::has_room(tx, &closed).await? {
                Some(true) => ProvisionError::NoTemplate,
                Some(false) => ProvisionError::Unreconciled,
                None => ProvisionError::NoRoom,
            });
        };
        if let Some(tenant_id) = store::claim_spare(tx, &cluster).await? {
            return Ok(Placed { tenant_id, cluster, is_ready: true });
        }
        let tenant_id = self.clock.new_id();
        store::plan_tenant(tx, tenant_id, &cluster, self.clock.now()).await?;
        Ok(Placed { tenant_id, cluster, is_ready: false })
    }

    /// Counts a tenant whose transaction was committed, and has its spare
    /// replaced.
    pub(crate) fn placed(&self, is_ready: bool) {
        let from = if is_ready { "spare" } else { "inline" };
        metrics::counter!("crm_tenants_created_total", "from" => from).increment(1);
        self.refill_soon();
    }

    /// Has clusters looked after that may be short of spares.
    pub(crate) fn refill_soon(&self) {
        self.refill_soon.notify_one();
    }

    /// Takes a tenant through the steps that are left, until it is active.
    pub(crate) async fn finish(&self, tenant_id: Uuid) -> Result<(), ProvisionError> {
        let _turn = self.turns.acquire().await;
        let finished = timeout(FINISH_WITHIN, self.take_steps(tenant_id)).await;
        finished.unwrap_or(Err(ProvisionError::TooSlow))
    }

    async fn take_steps(&self, tenant_id: Uuid) -> Result<(), ProvisionError> {
        // One process at a time; the lock goes with its connection.
        let lock = lock(tenant_id);
        let connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let mut connection = lock.acquire(connection).await.map_err(StoreError::from)?;
        let planned = store::planned(&mut connection, tenant_id).await?;
        let planned = planned.ok_or(ProvisionError::NotPlanned)?;
        let cluster = self.database.cluster(&planned.cluster).await?;
        let mut step = planned.step;
        while let Some(next) = step.next() {
            match next {
                Step::Planned => {}
                Step::Created => cluster.clone_closed(&planned.name, &planned.template).await?,
                Step::Locked => cluster.lock(&planned.name).await?,
                Step::Granted => self.ensure_logins(tenant_id).await?,
                Step::Ready => {
                    self.claims.ensure(&mut connection, tenant_id).await?;
                    cluster.allow_connections(&planned.name, true).await?;
                }
            }
            store::done(&mut connection, tenant_id, next, self.clock.now()).await?;
            step = next;
        }
        connection.release_now().await.map_err(StoreError::from)?;
        Ok(())
    }

    async fn ensure_logins(&self, tenant_id: Uuid) -> Result<(), ProvisionError> {
        for service in store::services_with_logins(&self.database.registry).await? {
            self.logins.ensure(tenant_id, &service).await.map_err(Box::new)?;
        }
        Ok(())
    }

    /// Finishes what others left unfinished, for as long as this process runs.
    pub(crate) async fn resume(self) {
        loop {
            let before = self.clock.now() - RESUME_AFTER;
            let silent = self.database.silent_clusters();
            match store::unfinished(&self.database.registry, before, &silent).await {
                Ok(tenants) => {
                    for tenant_id in tenants {
                        match self.finish(tenant_id).await {
                            Ok(()) => tracing::info!(%tenant_id, "finished a tenant"),
                            Err(error) => tracing::warn!(
                                %tenant_id,
                                cause = crm_error::chain(&error),
                                "an unfinished tenant cannot be finished"
                            ),
                        }
                    }
                }
                Err(error) => tracing::warn!(
                    cause = crm_error::chain(&error),
                    "cannot look for unfinished tenants"
                ),
            }
            tokio::time::sleep(RESUME_EVERY).await;
        }
    }
}
