//! Removing for good what is not needed any more: deleted tenants whose time has
//! come, spares that nobody gets, templates that nothing is cloned from.
//!
//! It is never done on a request, and slowly: the row of the cluster makes all
//! processes take turns. Each step may run twice, so that whoever comes next
//! goes on. The database goes first, then its logins; the cluster keeps its
//! claim, so that a registry that is restored cannot revive it; the registry
//! keeps a certificate, and lets the slug rest.

mod error;
mod model;
mod store;

use std::time::Duration;

use crm_clock::Clock;
use crm_tenancy::StoreError;
use sqlx::Connection as _;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

pub(crate) use error::PurgeError;
pub(crate) use model::Certificate;

use crate::cluster::store as clusters;
use crate::config::PurgeSettings;
use crate::database::{Database, owned};
use crate::fence::Fences;
use crate::provisioning;
use crate::tenant::TenantKey;
use store::Rubbish;

/// How often it is looked what there is to remove.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long removing one database may take.
const REMOVE_WITHIN: Duration = Duration::from_secs(60);

/// The use cases of purging.
#[derive(Clone, Debug)]
pub(crate) struct Purges {
    database: Database,
    fences: Fences,
    settings: PurgeSettings,
    clock: Clock,
}

impl Purges {
    pub(crate) fn new(
        database: Database,
        fences: Fences,
        settings: PurgeSettings,
        clock: Clock,
    ) -> Self {
        Self { database, fences, settings, clock }
    }

    /// Has a deleted tenant purged before its time, and answers how far that
    /// is. Asking again is safe, and answers the certificate once it is done.
    pub(crate) async fn request(
        &self,
        key: TenantKey,
        uid: Uuid,
        caller: String,
        validate_only: bool,
    ) -> Result<Certificate, PurgeError> {
        let this = self.clone();
        owned(async move { this.request_owned(&key, uid, &caller, validate_only).await }).await
    }

    async fn request_owned(
        &self,
        key: &TenantKey,
        uid: Uuid,
        caller: &str,
        validate_only: bool,
    ) -> Result<Certificate, PurgeError> {
        let mut registry = self.database.registry.acquire().await.map_err(StoreError::from)?;
        loop {
            if let Some(certificate) = store::certificate(&mut registry, key, uid).await? {
                return Ok(certificate);
            }
            let Some(tenant) = store::deleted(&mut registry, key, uid).await? else {
                // It may have gone right now.
                let certificate = store::certificate(&mut registry, key, uid).await?;
                return certificate.ok_or(PurgeError::NotFound);
            };
            if tenant.is_purging || (tenant.is_deleted && validate_only) {
                return Ok(tenant.certificate());
            }
            if !tenant.is_deleted {
                return Err(PurgeError::NotDeleted);
            }
            let (now, state_id) = (self.clock.now(), self.clock.new_id());
            // Where it is not deleted any more, it is looked at once more.
            if store::begin(&mut registry, uid, state_id, Some(caller), now).await? {
                return Ok(tenant.certificate());
            }
        }
    }

    /// Removes what is to be removed, for as long as this process runs.
    pub(crate) async fn keep(self) {
        let Some(pace) = self.settings.pace() else { return };
        loop {
            if let Err(error) = self.keep_once(pace).await {
                let cause = crm_error::chain(&error);
                tracing::warn!(cause, "what is to be purged cannot be looked for");
            }
            sleep(LOOK_EVERY.min(pace)).await;
        }
    }

    async fn keep_once(&self, pace: Duration) -> Result<(), PurgeError> {
        self.begin_due().await?;
        let mut left_alone = self.database.silent_clusters();
        left_alone.extend(self.database.closed_clusters());
        for cluster in clusters::ids(&self.database.registry).await? {
            if left_alone.contains(&cluster) {
                continue;
            }
            let registry = &self.database.registry;
            for tenant_id in store::unsettled(registry, &cluster).await? {
                if let Err(error) = self.fences.settle(tenant_id).await {
                    let cause = crm_error::chain(&error);
                    tracing::warn!(%tenant_id, cause, "a tenant to purge cannot be shut");
                }
            }
            let Some(rubbish) = store::next(registry, &cluster).await? else { continue };
            if !store::take_turn(registry, &cluster, pace).await? {
                continue;
            }
            let removed = timeout(REMOVE_WITHIN, self.remove(&cluster, &rubbish)).await;
            if let Err(error) = removed.unwrap_or(Err(PurgeError::TooSlow)) {
                let cause = crm_error::chain(&error);
                tracing::warn!(cluster, ?rubbish, cause, "a database cannot be removed");
            }
        }
        Ok(())
    }

    /// Takes up deleted tenants whose time has come; none of them where there
    /// are more than are expected, as after an error of somebody or of a clock.
    async fn begin_due(&self) -> Result<(), PurgeError> {
        let now = self.clock.now();
        let due = store::due(&self.database.registry, now).await?;
        metrics::gauge!("crm_tenants_to_purge").set(u32::try_from(due.len()).unwrap_or(u32::MAX));
        if due.len() > self.settings.limit {
            tracing::error!(
                due = due.len(),
                limit = self.settings.limit,
                "more tenants are to be purged than expected: none is, until PurgeTenant asks for \
                 each, or CRM_PURGE_LIMIT allows it"
            );
            return Ok(());
        }
        for tenant_id in due {
            let mut registry = self.database.registry.acquire().await.map_err(StoreError::from)?;
            store::begin(&mut registry, tenant_id, self.clock.new_id(), None, now).await?;
        }
        Ok(())
    }

    async fn remove(&self, cluster: &str, rubbish: &Rubbish) -> Result<(), PurgeError> {
        match rubbish {
            Rubbish::Tenant(id) => self.purge(cluster, *id).await,
            Rubbish::Spare(id) => self.discard(cluster, *id).await,
            Rubbish::Template(id) => self.remove_template(cluster, *id).await,
        }
    }

    async fn purge(&self, cluster: &str, tenant_id: Uuid) -> Result<(), PurgeError> {
        // One process at a time; the lock goes with its connection.
        let lock = provisioning::lock(tenant_id);
        let connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let mut connection = lock.acquire(connection).await.map_err(StoreError::from)?;
        if let Some(name) = store::purging(&mut connection, tenant_id).await? {
            let admin = self.database.cluster(cluster).await?;
            admin.drop(&name).await.map_err(PurgeError::Cluster)?;
            let logins = store::bury(admin.pool(), tenant_id).await.map_err(PurgeError::Cluster)?;
            let retention = self.settings.backup_retention;
            let mut tx = connection.begin().await.map_err(StoreError::from)?;
            store::forget(&mut tx, tenant_id, logins, retention, self.clock.now()).await?;
            tx.commit().await.map_err(StoreError::from)?;
            metrics::counter!("crm_tenants_purged_total").increment(1);
            tracing::info!(%tenant_id, "a deleted tenant was removed for good");
        }
        connection.release_now().await.map_err(StoreError::from)?;
        Ok(())
    }

    async fn discard(&self, cluster: &str, spare_id: Uuid) -> Result<(), PurgeError> {
        // Whoever takes it for a tenant holds its row until that is committed.
        let mut tx = self.database.registry.begin().await.map_err(StoreError::from)?;
        store::hold(&mut tx, &provisioning::lock(spare_id)).await?;
        let Some(name) = store::lock_spare(&mut tx, spare_id).await? else { return Ok(()) };
        let admin = self.database.cluster(cluster).await?;
        if !store::discard(admin.pool(), spare_id).await.map_err(PurgeError::Cluster)? {
            return Err(PurgeError::Claimed(spare_id));
        }
        admin.drop(&name).await.map_err(PurgeError::Cluster)?;
        store::bury(admin.pool(), spare_id).await.map_err(PurgeError::Cluster)?;
        store::delete_database(&mut tx, spare_id).await?;
        tx.commit().await.map_err(StoreError::from)?;
        tracing::info!(%spare_id, "a spare that nobody gets was removed");
        Ok(())
    }

    async fn remove_template(&self, cluster: &str, id: Uuid) -> Result<(), PurgeError> {
        let mut tx = self.database.registry.begin().await.map_err(StoreError::from)?;
        store::hold(&mut tx, &provisioning::lock(id)).await?;
        let Some(name) = store::lock_template(&mut tx, id).await? else { return Ok(()) };
        let admin = self.database.cluster(cluster).await?;
        admin.drop(&name).await.map_err(PurgeError::Cluster)?;
        store::delete_template(&mut tx, id).await?;
        tx.commit().await.map_err(StoreError::from)?;
        tracing::info!(template = name, "an old template was removed");
        Ok(())
    }
}
