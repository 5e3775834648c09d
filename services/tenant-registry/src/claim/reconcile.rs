//! Settling what a cluster and the registry say differently, and giving a
//! restored database its claim back. Nothing is ever dropped here.

use crm_tenancy::StoreError;
use sqlx::PgConnection;
use uuid::Uuid;

use super::model::{Difference, DifferenceKind};
use super::{ClaimError, Claims, in_time, store};
use crate::cluster::ClusterAdmin;
use crate::lease::login_name;

/// What was restored, and so may be behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restored {
    /// The registry's own database, or it lost its last transactions.
    Registry,
    /// The cluster.
    Cluster,
}

/// One difference, and what becomes of it.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    /// The tenant, `tenants/{uuid}`.
    pub(crate) tenant: String,
    /// What was found.
    pub(crate) found: String,
    /// What is done about it.
    pub(crate) done: &'static str,
}

/// What settles a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// The registry takes the tenant back in.
    TakeIn,
    /// The registry takes the cluster's state.
    TakeState,
    /// The cluster is to take the registry's state.
    EnforceState,
    /// The registry takes the cluster's claim.
    TakeClaim,
    /// The cluster is to take the registry's claim.
    GiveClaim,
    /// The cluster is to have a claim.
    Claim,
    /// What is left of the tenant is to be purged.
    Purge,
}

impl Remedy {
    /// What was restored is behind, and follows the other.
    fn of(kind: DifferenceKind, restored: Restored) -> Self {
        match (kind, restored) {
            (DifferenceKind::Forgotten, _) => Self::TakeIn,
            (DifferenceKind::Missing, _) => Self::Claim,
            (DifferenceKind::Removed, _) => Self::Purge,
            (DifferenceKind::OtherState, Restored::Registry) => Self::TakeState,
            (DifferenceKind::OtherState, Restored::Cluster) => Self::EnforceState,
            (DifferenceKind::OtherClaim, Restored::Registry) => Self::TakeClaim,
            (DifferenceKind::OtherClaim, Restored::Cluster) => Self::GiveClaim,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::TakeIn => "the registry takes it in, with its slug as its name",
            Self::TakeState => "the registry takes the cluster's state",
            Self::EnforceState => "the cluster is to enforce the registry's state",
            Self::TakeClaim => "the registry takes the cluster's claim",
            Self::GiveClaim => "the cluster takes the registry's claim",
            Self::Claim => "the cluster is to have a claim",
            Self::Purge => "what the registry has of it is to be purged",
        }
    }
}

impl Claims {
    /// What would settle the differences of a cluster; and with `apply` does.
    /// The registry's processes notice within seconds.
    pub(crate) async fn reconcile(
        &self,
        cluster: &str,
        restored: Restored,
        apply: bool,
    ) -> Result<Vec<Settled>, ClaimError> {
        let admin = self.database.cluster(cluster).await?;
        let mut tx = self.database.registry.begin().await.map_err(StoreError::from)?;
        // Of two who do it at once, the second finds nothing left.
        store::lock(&mut tx, cluster).await?;
        let mut settled = Vec::new();
        for difference in self.differences(cluster, None).await? {
            let remedy = Remedy::of(difference.kind, restored);
            if apply {
                self.settle(&mut tx, cluster, &admin, &difference, remedy).await?;
            }
            settled.push(Settled {
                tenant: format!("tenants/{}", difference.tenant_id),
                found: difference.detail(),
                done: remedy.describe(),
            });
        }
        if apply {
            tx.commit().await.map_err(StoreError::from)?;
        }
        Ok(settled)
    }

    async fn settle(
        &self,
        tx: &mut PgConnection,
        cluster: &str,
        admin: &ClusterAdmin,
        difference: &Difference,
        remedy: Remedy,
    ) -> Result<(), ClaimError> {
        let (id, now) = (difference.tenant_id, self.clock.now());
        let claim = difference.claim.as_ref();
        match (remedy, claim) {
            (Remedy::TakeIn, Some(claim)) => store::take_in(tx, cluster, claim, now).await?,
            (Remedy::TakeState, Some(claim)) => store::take_state(tx, claim, now).await?,
            (Remedy::EnforceState, Some(claim)) => store::know_state(tx, claim).await?,
            (Remedy::TakeClaim, Some(claim)) => store::take_claim(tx, id, claim.claim_id).await?,
            (Remedy::GiveClaim, Some(claim)) => {
                let (_, holder) = store::holder(tx, id).await?.ok_or(ClaimError::NotFound)?;
                let given = store::reclaim(admin.pool(), id, claim.claim_id, holder.claim_id);
                if !in_time(given).await? {
                    return Err(ClaimError::Taken(id));
                }
            }
            (Remedy::Claim, _) => store::unclaim(tx, id).await?,
            (Remedy::Purge, _) => store::purge_now(tx, id, now).await?,
            // A difference that is about a claim has one.
            (_, None) => {}
        }
        Ok(())
    }

    /// Gives a restored database a new claim, and makes it what a tenant's
    /// database is: shut to all but its logins. Its schemas are looked at again.
    pub(crate) async fn reclaim(&self, tenant_id: Uuid) -> Result<(), ClaimError> {
        let mut tx = self.database.registry.begin().await.map_err(StoreError::from)?;
        let (id, holder) = store::holder(&mut tx, tenant_id).await?.ok_or(ClaimError::NotFound)?;
        store::lock(&mut tx, &id).await?;
        let cluster = self.database.cluster(&id).await?;
        let name = format!("tenant_{}", tenant_id.as_simple());
        in_time(cluster.lock(&name)).await?;
        for (service, generation) in store::logins(&mut tx, tenant_id).await? {
            let login = login_name(tenant_id, &service, generation);
            in_time(cluster.grant("CONNECT", &name, &login)).await?;
        }
        // The cluster first: where this is cut off, the registry takes its claim.
        let new = self.clock.new_id();
        if !in_time(store::reclaim(cluster.pool(), tenant_id, holder.claim_id, new)).await? {
            return Err(ClaimError::Taken(tenant_id));
        }
        in_time(cluster.allow_connections(&name, true)).await?;
        store::take_claim(&mut tx, tenant_id, new).await?;
        store::forget_schemas(&mut tx, tenant_id).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(())
    }
}
