//! Keeping spares: databases that are made before their tenants, so that these
//! need not wait.
//!
//! Every process of the registry looks after all clusters; the row of the
//! cluster makes them take turns. The pace is slow, since making databases
//! without pause slows the neighbours' writes down.

use std::time::Duration;

use futures_util::future::join_all;

use super::store::{self, SpareLevel};
use super::{ProvisionError, Provisioner, RESUME_AFTER};

/// How far apart spares are made in one cluster, by all processes together.
const PACE: Duration = Duration::from_millis(700);
/// How often a process looks that took no spare itself.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// After how many spares their pages are written down, before they pile up.
const CHECKPOINT_EVERY: i64 = 20;

impl Provisioner {
    /// Keeps every cluster's spares at their target, for as long as this
    /// process runs.
    pub(crate) async fn refill(self) {
        loop {
            match self.refill_once().await {
                Ok(true) => tokio::time::sleep(PACE).await,
                Ok(false) => {
                    tokio::select! {
                        () = self.refill_soon.notified() => {}
                        () = tokio::time::sleep(LOOK_EVERY) => {}
                    }
                }
                Err(error) => {
                    let cause = crm_error::chain(&error);
                    tracing::warn!(cause, "cannot look for clusters without spares");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    }

    /// Makes at most one spare in every cluster that is short of them and not
    /// silent: the others would wait until it is given up. Answers whether there
    /// was such a cluster.
    async fn refill_once(&self) -> Result<bool, ProvisionError> {
        let registry = &self.database.registry;
        let before = self.clock.now() - RESUME_AFTER;
        let mut silent = self.database.silent_clusters();
        // Nor is one made where no database may be given out.
        silent.extend(self.database.closed_clusters());
        let unfinished = store::unfinished_spares(registry, before, &silent).await?;
        join_all(unfinished.into_iter().map(|spare_id| async move {
            match self.finish(spare_id).await {
                Ok(()) => tracing::info!(%spare_id, "finished a spare"),
                Err(error) => tracing::warn!(
                    %spare_id,
                    cause = crm_error::chain(&error),
                    "an unfinished spare cannot be finished"
                ),
            }
        }))
        .await;
        let levels = store::spare_levels(registry).await?;
        for SpareLevel { cluster, target, ready, .. } in &levels {
            metrics::gauge!("crm_spares", "cluster" => cluster.clone()).set(*ready as f64);
            metrics::gauge!("crm_spare_target", "cluster" => cluster.clone()).set(*target);
        }
        let short =
            levels.iter().filter(|level| level.is_short && !silent.contains(&level.cluster));
        let made = join_all(short.map(|level| async move {
            if let Err(error) = self.make_spare(&level.cluster).await {
                let cause = crm_error::chain(&error);
                tracing::warn!(cluster = level.cluster, cause, "a spare could not be made");
            }
        }));
        Ok(!made.await.is_empty())
    }

    async fn make_spare(&self, cluster: &str) -> Result<(), ProvisionError> {
        let (spare_id, now) = (self.clock.new_id(), self.clock.now());
        let planned = store::plan_spare(&self.database.registry, spare_id, cluster, PACE, now);
        let Some(planned) = planned.await? else { return Ok(()) };
        self.finish(spare_id).await?;
        if planned % CHECKPOINT_EVERY == 0 {
            self.database.cluster(cluster).await?.checkpoint().await?;
        }
        Ok(())
    }
}
