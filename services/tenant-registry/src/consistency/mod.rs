//! Whether the clusters are as the registry says. It tells, and changes
//! nothing.
//!
//! What is being worked at is not out of order, and is told apart in three
//! ways. A database's row says how far its making has come, so that only what
//! must be there by then is missed, and what the next step makes is known.
//! Unfinished work counts as left only when it is old and nobody holds its
//! lock, which whoever works at it does. And what is found is looked for once
//! more a moment later, in a new reading of both sides, which are not read at
//! once: it is told if it is there both times.
//!
//! The schemas inside of databases are not compared: the registry's login may
//! not read them, and the waves do it over the logins that may.

mod compare;
mod model;
mod store;

use std::collections::HashSet;
use std::time::Duration;

use chrono::TimeDelta;
use crm_clock::Clock;
use crm_tenancy::StoreError;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

pub use model::{Finding, FindingKind};

use crate::claim::model::{Difference, DifferenceKind};
use crate::claim::{Claims, is_outdated};
use crate::cluster::store as clusters;
use crate::database::Database;
use crate::seal::MasterKey;
use crate::{fence, provisioning, schema};
use compare::Comparison;
use model::{Found, Known, Purpose};

/// How old unfinished work must be to count as left: twice what it takes
/// until another process takes it up.
const LEFT_AFTER: TimeDelta = TimeDelta::seconds(30);
/// How long a cluster may take to say what is there.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// When what was found is looked for again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Compares the registry with its clusters.
#[derive(Clone, Debug)]
pub struct Consistency {
    database: Database,
    claims: Claims,
    master_key: MasterKey,
    clock: Clock,
}

impl Consistency {
    pub(crate) fn new(database: Database, master_key: MasterKey, clock: Clock) -> Self {
        let claims = Claims::new(database.clone(), clock.clone());
        Self { database, claims, master_key, clock }
    }

    /// Everything that is not as it should be, in order; nothing when all is
    /// well. A cluster that does not answer is a finding.
    ///
    /// # Errors
    ///
    /// When the registry's own database does not answer.
    pub async fn report(&self) -> Result<Vec<Finding>, StoreError> {
        self.confirmed(None).await
    }

    /// What is not as it should be about one tenant: its database, its logins,
    /// and what the registry keeps of it.
    ///
    /// # Errors
    ///
    /// When the registry's own database does not answer.
    pub async fn report_of(&self, tenant_id: Uuid) -> Result<Vec<Finding>, StoreError> {
        self.confirmed(Some(tenant_id)).await
    }

    async fn confirmed(&self, only: Option<Uuid>) -> Result<Vec<Finding>, StoreError> {
        let first = self.look(only).await?;
        if first.is_empty() {
            return Ok(first);
        }
        sleep(LOOK_AGAIN_AFTER).await;
        let mut findings = self.look(only).await?;
        // What it says of it is the same, too: where that has changed, someone
        // works at it.
        findings.retain(|finding| first.contains(finding));
        findings.sort();
        Ok(findings)
    }

    async fn look(&self, only: Option<Uuid>) -> Result<Vec<Finding>, StoreError> {
        let registry = &self.database.registry;
        let mut known = store::known(registry, &self.master_key, only).await?;
        if only.is_none() {
            // One without a database of the registry's may have others.
            for cluster in clusters::ids(registry).await? {
                known.entry(cluster).or_default();
            }
        }
        let busy = self.busy(known.values().flatten()).await?;
        let compared =
            known.iter().map(|(cluster, known)| self.compare(cluster, known, &busy, only));
        let mut findings = join_all(compared).await.concat();
        let claimed = known.keys().map(|cluster| self.claims(cluster, only));
        findings.extend(join_all(claimed).await.concat());
        for (tenant_id, tables) in store::rows_of_no_tenant(registry, only).await? {
            let first = clusters::ids(registry).await?.into_iter().next();
            findings.push(Finding {
                kind: FindingKind::RowsOfNoTenant,
                // The first has the registry's database.
                cluster: first.unwrap_or_default(),
                subject: format!("tenants/{tenant_id}"),
                detail: tables,
            });
        }
        Ok(findings)
    }

    async fn compare(
        &self,
        cluster: &str,
        known: &[Known],
        busy: &HashSet<Uuid>,
        only: Option<Uuid>,
    ) -> Vec<Finding> {
        let found = match timeout(ANSWER_WITHIN, self.found(cluster, only)).await {
            Ok(Ok(found)) => found,
            // What it lacks is told with its claims.
            Ok(Err(error)) if is_outdated(&error) => return Vec::new(),
            silent => {
                if let Ok(Err(error)) = silent {
                    let cause = crm_error::chain(&error);
                    tracing::warn!(cluster, cause, "a cluster cannot be compared");
                }
                return vec![Finding {
                    kind: FindingKind::ClusterUnreachable,
                    cluster: cluster.to_owned(),
                    subject: format!("clusters/{cluster}"),
                    detail: "its databases were not looked at".to_owned(),
                }];
            }
        };
        let before = self.clock.now() - LEFT_AFTER;
        Comparison { cluster, known, found: &found, before, busy }.findings()
    }

    /// Whether the cluster gave its databases to the tenants that the registry
    /// knows. One that is silent is told of elsewhere.
    async fn claims(&self, cluster: &str, only: Option<Uuid>) -> Vec<Finding> {
        let finding =
            |kind, subject, detail| Finding { kind, cluster: cluster.to_owned(), subject, detail };
        match timeout(ANSWER_WITHIN, self.claims.differences(cluster, only)).await {
            Ok(Ok(found)) => {
                let told = |found: Difference| {
                    let tenant = format!("tenants/{}", found.tenant_id);
                    finding(found.kind.into(), tenant, found.detail())
                };
                found.into_iter().map(told).collect()
            }
            Ok(Err(error)) if error.is_of_outdated_cluster() => {
                let detail = "run deploy/postgres/cluster-setup.sql there".to_owned();
                let subject = format!("clusters/{cluster}");
                vec![finding(FindingKind::ClusterOutdated, subject, detail)]
            }
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    async fn found(&self, cluster: &str, only: Option<Uuid>) -> Result<Found, StoreError> {
        let admin = self.database.cluster(cluster).await?;
        store::found(admin.pool(), only).await
    }

    /// The databases whose lock someone holds.
    async fn busy(&self, known: impl Iterator<Item = &Known>) -> Result<HashSet<Uuid>, StoreError> {
        let registry = &self.database.registry;
        let held = store::held_locks(registry).await?;
        let is_held = |lock: sqlx::postgres::PgAdvisoryLock| {
            lock.key().as_bigint().is_some_and(|key| held.contains(&key))
        };
        if held.is_empty() {
            return Ok(HashSet::new());
        }
        let (ids, purposes): (Vec<_>, Vec<_>) =
            known.map(|known| (known.id, known.purpose)).unzip();
        let waves = store::migration_locks(registry, &ids).await?;
        let all = ids.into_iter().zip(purposes).zip(waves);
        let busy = all.filter(|((id, purpose), wave)| {
            held.contains(wave)
                || is_held(provisioning::lock(*id))
                || is_held(fence::lock(*id))
                || *purpose == Purpose::Template && is_held(schema::lock())
        });
        Ok(busy.map(|((id, _), _)| id).collect())
    }
}

impl From<DifferenceKind> for FindingKind {
    fn from(kind: DifferenceKind) -> Self {
        match kind {
            DifferenceKind::Forgotten => Self::TenantForgotten,
            DifferenceKind::Missing => Self::ClaimMissing,
            DifferenceKind::OtherClaim => Self::ClaimDifferent,
            DifferenceKind::OtherState => Self::StateDifferent,
            DifferenceKind::Removed => Self::TenantRemoved,
        }
    }
}
