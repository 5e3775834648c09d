//! Claims: each cluster says itself to which tenant it gave a database.
//!
//! What the registry knows may be older than what it did: its database is
//! restored from a backup, or loses its last transactions in a failover. So the
//! cluster has a row for each database that was given away, which nothing takes
//! back. A tenant is made in this order: the registry's transaction locks the
//! spare; the claim commits in the cluster; the registry commits; the claim is
//! confirmed; the caller is answered. Cut off before the end, the claim is one
//! that nobody was told of, and its spare is given to nobody any more.
//!
//! What was confirmed must be what the registry says. Where they differ, no
//! database of that cluster is given out, and no login opened, until an operator
//! has settled it ([`Claims::reconcile`]).

mod error;
pub(crate) mod model;
mod reconcile;
mod store;

use std::time::Duration;

use chrono::TimeDelta;
use crm_clock::Clock;
use crm_proto::registry::v1::tenant::State;
use crm_tenancy::StoreError;
use futures_util::future::join_all;
use sqlx::PgConnection;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

pub(crate) use error::{ClaimError, cluster_refused, is_outdated, unreconciled};
pub(crate) use reconcile::{Restored, Settled};

use crate::cluster::ClusterAdmin;
use crate::cluster::store as clusters;
use crate::database::Database;
use model::{Claim, Difference, Holder, differences};

/// How often clusters are compared that were the same the last time; others
/// are at every [`LOOK_EVERY`].
const COMPARE_EVERY: u32 = 5;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a cluster may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// When what was found is looked for again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// After how long a claim that nobody confirmed was cut off.
const CUT_OFF_AFTER: TimeDelta = TimeDelta::seconds(30);

/// A claim that is to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewClaim<'a> {
    pub(crate) tenant_id: Uuid,
    pub(crate) claim_id: Uuid,
    pub(crate) state_id: Uuid,
    pub(crate) slug: &'a str,
}

/// The use cases of claims.
#[derive(Clone, Debug)]
pub(crate) struct Claims {
    database: Database,
    clock: Clock,
}

impl Claims {
    pub(crate) fn new(database: Database, clock: Clock) -> Self {
        Self { database, clock }
    }

    /// Gives a spare to a tenant that is about to be committed. Answers whether
    /// it was free in its cluster.
    pub(crate) async fn claim(&self, cluster: &str, new: NewClaim<'_>) -> Result<bool, ClaimError> {
        let cluster = self.database.cluster(cluster).await?;
        let NewClaim { tenant_id, claim_id, state_id, slug } = new;
        let pool = cluster.pool();
        let claim = store::claim(pool, tenant_id, claim_id, slug, state_id, State::Active);
        let is_free = in_time(claim).await?;
        Ok(is_free || cfg!(bug_claim_unchecked))
    }

    /// Takes a spare out that its cluster had given to another tenant.
    pub(crate) async fn spoil(&self, spare_id: Uuid) -> Result<(), ClaimError> {
        if store::spoil(&self.database.registry, spare_id).await? {
            tracing::warn!(%spare_id, "a spare belongs to a tenant already: it is given to nobody");
        }
        Ok(())
    }

    /// Tells the cluster that a tenant is committed. Whoever is told of a tenant
    /// is told after that.
    pub(crate) async fn confirm(&self, tenant_id: Uuid) -> Result<(), ClaimError> {
        let mut registry = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let held = store::holder(&mut registry, tenant_id).await?;
        drop(registry);
        let (cluster, holder) = held.ok_or(ClaimError::NotFound)?;
        let cluster = self.database.cluster(&cluster).await?;
        in_time(store::confirm(cluster.pool(), tenant_id, holder.claim_id)).await
    }

    /// Has the cluster of a tenant know its claim. Nothing is to do for a
    /// database that has no tenant, or whose claim is there.
    pub(crate) async fn ensure(
        &self,
        registry: &mut PgConnection,
        tenant_id: Uuid,
    ) -> Result<(), ClaimError> {
        match store::holder(registry, tenant_id).await? {
            Some((cluster, holder)) if !holder.is_claimed => {
                let cluster = self.database.cluster(&cluster).await?;
                make(registry, &cluster, &holder).await
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Compares all clusters with the registry, once.
    pub(crate) async fn look(&self) -> Result<(), ClaimError> {
        let ids = clusters::ids(&self.database.registry).await?;
        join_all(ids.iter().map(|id| self.look_at(id))).await;
        Ok(())
    }

    /// Compares clusters with the registry, for as long as this process runs.
    pub(crate) async fn keep(self) {
        let mut round = 0;
        loop {
            sleep(LOOK_EVERY).await;
            round = (round + 1) % COMPARE_EVERY;
            if let Err(error) = self.keep_once(round == 0).await {
                tracing::warn!(cause = crm_error::chain(&error), "claims cannot be compared");
            }
        }
    }

    async fn keep_once(&self, is_for_all: bool) -> Result<(), ClaimError> {
        let mut ids = Vec::new();
        for id in clusters::ids(&self.database.registry).await? {
            let cluster = self.database.cluster(&id).await?;
            if is_for_all || !cluster.is_reconciled() {
                ids.push(id);
            }
        }
        join_all(ids.iter().map(|id| self.look_at(id))).await;
        Ok(())
    }

    /// Compares one cluster with the registry, and opens or closes it.
    pub(crate) async fn look_at(&self, id: &str) {
        match self.compared(id).await {
            Ok(count) => metrics::gauge!("crm_claims_different", "cluster" => id.to_owned())
                .set(u32::try_from(count).unwrap_or(u32::MAX)),
            Err(error) => {
                let cause = crm_error::chain(&error);
                tracing::warn!(cluster = id, cause, "the claims of a cluster cannot be compared");
            }
        }
    }

    async fn compared(&self, id: &str) -> Result<usize, ClaimError> {
        let cluster = self.database.cluster(id).await?;
        let found = self.differences(id, None).await?;
        let was_reconciled = cluster.set_reconciled(found.is_empty());
        if let (true, Some(first)) = (was_reconciled, found.first()) {
            tracing::error!(
                cluster = id,
                count = found.len(),
                tenant_id = %first.tenant_id,
                detail = first.detail(),
                "the cluster and the registry differ on tenants: no database is given out there, \
                 and no login opened, before `tenant-registry reconcile`"
            );
        }
        self.finish(id, &cluster).await?;
        Ok(found.len())
    }

    /// How a cluster and the registry differ, all of it or what is about one
    /// tenant. What is found is looked for again a moment later.
    pub(crate) async fn differences(
        &self,
        cluster: &str,
        only: Option<Uuid>,
    ) -> Result<Vec<Difference>, ClaimError> {
        let first = self.read(cluster, only).await?.differences();
        if first.is_empty() {
            return Ok(first);
        }
        sleep(LOOK_AGAIN_AFTER).await;
        let mut found = self.read(cluster, only).await?.differences();
        found.retain(|difference| first.contains(difference));
        Ok(found)
    }

    /// Finishes what was cut off: claims that are to be made or confirmed, and
    /// those of tenants that were never committed.
    async fn finish(&self, id: &str, cluster: &ClusterAdmin) -> Result<(), ClaimError> {
        let Reading { claims, after, .. } = self.read(id, None).await?;
        for holder in after.iter().filter(|holder| holder.is_unclaimed()) {
            let mut registry = self.database.registry.acquire().await.map_err(StoreError::from)?;
            // One that cannot be claimed keeps no other from it.
            if let Err(error) = make(&mut registry, cluster, holder).await {
                let (tenant_id, cause) = (holder.tenant_id, crm_error::chain(&error));
                tracing::warn!(%tenant_id, cause, "a tenant's database cannot be claimed");
            }
        }
        let before = self.clock.now() - CUT_OFF_AFTER;
        for claim in claims.iter().filter(|claim| !claim.is_confirmed) {
            let is_ours = |holder: &&Holder| holder.claim_id == claim.claim_id;
            if after.iter().any(|holder| is_ours(&holder)) {
                in_time(store::confirm(cluster.pool(), claim.tenant_id, claim.claim_id)).await?;
            } else if claim.claim_time < before {
                self.spoil(claim.tenant_id).await?;
            }
        }
        Ok(())
    }

    async fn read(&self, id: &str, only: Option<Uuid>) -> Result<Reading, ClaimError> {
        let registry = &self.database.registry;
        let cluster = self.database.cluster(id).await?;
        let before = store::holders(registry, id, only).await?;
        let claims = in_time(store::claims(cluster.pool(), only)).await?;
        let after = store::holders(registry, id, only).await?;
        Ok(Reading { before, claims, after })
    }
}

/// What both sides said, one after the other.
struct Reading {
    before: Vec<Holder>,
    claims: Vec<Claim>,
    after: Vec<Holder>,
}

impl Reading {
    fn differences(&self) -> Vec<Difference> {
        differences(&self.before, &self.claims, &self.after)
    }
}

impl Holder {
    /// Whether its claim is to be made, and nobody is at it: a tenant that is
    /// being made gets its claim with its database.
    fn is_unclaimed(&self) -> bool {
        !self.is_claimed && self.state != State::Provisioning
    }
}

/// Makes the claim of a tenant that the registry has committed.
async fn make(
    registry: &mut PgConnection,
    cluster: &ClusterAdmin,
    holder: &Holder,
) -> Result<(), ClaimError> {
    let Holder { tenant_id, claim_id, state_id, .. } = *holder;
    // One that is in the making is open by the time that it is told.
    let is_in_the_making = holder.state == State::Provisioning;
    let state = if is_in_the_making { State::Active } else { holder.state };
    let pool = cluster.pool();
    let claim = store::claim(pool, tenant_id, claim_id, &holder.slug, state_id, state);
    if !in_time(claim).await? {
        return Err(ClaimError::Taken(tenant_id));
    }
    in_time(store::confirm(pool, tenant_id, claim_id)).await?;
    Ok(store::claimed(registry, tenant_id, claim_id).await?)
}

async fn in_time<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, ClaimError> {
    let answer = timeout(ANSWER_WITHIN, asked).await;
    answer.map_err(|_| ClaimError::TooSlow)?.map_err(ClaimError::Cluster)
}
