//! Fences: PostgreSQL itself refuses the logins of a suspended or deleted
//! tenant, whatever the services know.
//!
//! A tenant's state is what is wanted, and it is settled once its cluster
//! enforces it. Whoever changes the state settles it before answering;
//! [`Fences::keep`] settles what was left by a process that died.

mod store;

use std::sync::Arc;
use std::time::Duration;

use crm_error::ApiError;
use crm_tenancy::StoreError;
use futures_util::future::join_all;
use sqlx::postgres::PgAdvisoryLock;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::claim::{ClaimError, Claims, cluster_refused, unreconciled};
use crate::cluster::ClusterAdmin;
use crate::database::Database;
use store::Wanted;

/// How many tenants one process settles at once. Each holds a connection to
/// the registry's database.
const AT_ONCE: usize = 4;
/// How long the sessions of a fenced tenant may take to end.
const END_WITHIN: Duration = Duration::from_secs(2);
/// How often they are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// How many looks in a row must find none: a session that was opening when the
/// fence came shows a moment later.
const QUIET_LOOKS: u32 = 3;
// Services trust a session for less, which was seen open before.
const _: () =
    assert!(LOOK_EVERY.as_millis() * QUIET_LOOKS as u128 > crm_tenancy::ASK_AFTER.as_millis());
/// How long a cluster may take to compare its fences.
const COMPARE_WITHIN: Duration = Duration::from_secs(3);
/// How long a cluster may take to enforce one state.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);
/// How often all fences are looked over.
const KEEP_EVERY: Duration = Duration::from_secs(5);

/// Why a tenant's state could not be enforced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FenceError {
    #[error("sessions of a fenced tenant do not end")]
    SessionsLeft,
    #[error("the cluster does not answer in time")]
    TooSlow,
    #[error("the cluster and the registry differ on tenants")]
    Unreconciled,
    #[error("the tenant's database could not be claimed")]
    Claim(#[from] ClaimError),
    #[error("the cluster refused")]
    Cluster(#[source] StoreError),
    #[error("a statement failed")]
    Store(#[from] StoreError),
}

impl From<FenceError> for ApiError {
    fn from(error: FenceError) -> Self {
        match error {
            FenceError::SessionsLeft | FenceError::TooSlow => Self::unavailable(error),
            FenceError::Unreconciled => unreconciled(),
            FenceError::Claim(error) => error.into(),
            FenceError::Cluster(error) => cluster_refused(error),
            FenceError::Store(error) => error.into(),
        }
    }
}

/// What whoever settles this tenant holds, in the registry's database.
pub(crate) fn lock(tenant_id: Uuid) -> PgAdvisoryLock {
    PgAdvisoryLock::new(format!("crm fence {tenant_id}"))
}

/// Enforces the states of tenants in their clusters.
#[derive(Clone, Debug)]
pub(crate) struct Fences {
    database: Database,
    claims: Claims,
    turns: Arc<Semaphore>,
}

impl Fences {
    pub(crate) fn new(database: Database, claims: Claims) -> Self {
        Self { database, claims, turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Has the tenant's cluster enforce the tenant's state, and then tells
    /// everyone. Nothing is left to do for a tenant that is settled.
    pub(crate) async fn settle(&self, tenant_id: Uuid) -> Result<(), FenceError> {
        let _turn = self.turns.acquire().await;
        // One process at a time; the lock goes with its connection.
        let lock = lock(tenant_id);
        let connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let mut connection = lock.acquire(connection).await.map_err(StoreError::from)?;
        // The state may change meanwhile: then once more.
        while let Some(wanted) = store::unsettled(&mut connection, tenant_id).await? {
            let cluster = self.database.cluster(&wanted.cluster).await?;
            if !wanted.is_fenced() && !cluster.is_reconciled() {
                return Err(FenceError::Unreconciled);
            }
            self.claims.ensure(&mut connection, tenant_id).await?;
            // Before it is enforced: no lease has a password that is gone.
            store::unready_logins(&mut connection, tenant_id).await?;
            let enforced = timeout(SETTLE_WITHIN, enforce(&cluster, tenant_id, &wanted));
            enforced.await.map_err(|_| FenceError::TooSlow)??;
            store::settled(&mut connection, tenant_id, &wanted).await?;
        }
        connection.release_now().await.map_err(StoreError::from)?;
        Ok(())
    }

    /// Settles what others left unsettled, or moved, for as long as this process
    /// runs.
    pub(crate) async fn keep(self) {
        loop {
            tokio::time::sleep(KEEP_EVERY).await;
            if let Err(error) = self.keep_once().await {
                tracing::warn!(cause = crm_error::chain(&error), "fences cannot be looked over");
            }
        }
    }

    async fn keep_once(&self) -> Result<(), FenceError> {
        // A cluster that does not answer keeps nobody else waiting for long.
        let clusters = self.database.clusters().await?;
        let compared =
            clusters.iter().map(|cluster| timeout(COMPARE_WITHIN, self.compare(cluster)));
        for outcome in join_all(compared).await {
            if let Err(error) = outcome.unwrap_or(Err(FenceError::TooSlow)) {
                tracing::warn!(cause = crm_error::chain(&error), "fences cannot be compared");
            }
        }
        let silent = self.database.silent_clusters();
        for tenant_id in store::all_unsettled(&self.database.registry, &silent).await? {
            match self.settle(tenant_id).await {
                Ok(()) => tracing::info!(%tenant_id, "settled a tenant"),
                Err(error) => tracing::warn!(
                    %tenant_id,
                    cause = crm_error::chain(&error),
                    "an unsettled tenant cannot be settled"
                ),
            }
        }
        Ok(())
    }

    /// Compares the fences of one cluster with what they should be, and ends
    /// sessions behind them.
    async fn compare(&self, cluster: &ClusterAdmin) -> Result<(), FenceError> {
        // What is settled from here on is not in what the cluster says.
        let before = store::newest_event(&self.database.registry).await?;
        let found = cluster.fenced().await?;
        let wrong = store::unsettle(&self.database.registry, &found, before).await?;
        if wrong > 0 {
            tracing::error!(wrong, "fences were not what they should be");
        }
        let ended = cluster.end_sessions(None).await?;
        if ended > 0 {
            tracing::warn!(ended, "sessions behind fences were ended");
        }
        Ok(())
    }
}

/// Opens a tenant's logins; or shuts them, and ends its sessions. Their passwords
/// are gone either way: one that somebody else gave them opens nothing.
async fn enforce(
    cluster: &ClusterAdmin,
    tenant_id: Uuid,
    wanted: &Wanted,
) -> Result<(), FenceError> {
    if cfg!(bug_fence_left_out) {
        return Ok(());
    }
    // Committed first: once they are shut, no session can begin to open.
    let enforced = store::enforce(cluster.pool(), tenant_id, wanted);
    enforced.await.map_err(FenceError::Cluster)?;
    if !wanted.is_fenced() {
        return Ok(());
    }
    let until = Instant::now() + END_WITHIN;
    let mut quiet = 0;
    while quiet < QUIET_LOOKS {
        if cluster.end_sessions(Some(tenant_id)).await? == 0 {
            quiet += 1;
        } else if Instant::now() >= until {
            return Err(FenceError::SessionsLeft);
        } else {
            quiet = 0;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
