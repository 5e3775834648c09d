//! What the registry tells of tenants: whose calls are refused, and what is
//! outdated.
//!
//! What was told holds while the registry is away, until something else is
//! told. Safety is not here: PostgreSQL itself refuses the logins of a
//! suspended or deleted tenant. This gives it a name.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use crm_auth::TenantId;
use crm_proto::registry::v1::tenant::State;
use crm_proto::registry::v1::watch_tenants_response::Event;
use crm_proto::registry::v1::{TenantStatus, WatchTenantsResponse};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tonic::{Status, Streaming};
use uuid::Uuid;

use crate::error::SessionError;
use crate::registry::RegistryClient;
use crate::sessions::Shared;

/// A stream without a message for so long is dead: the registry sends one every
/// second.
const DEAD_AFTER: Duration = Duration::from_secs(3);
/// How long to wait before the stream is opened again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the registry refused: {0}")]
    Refused(#[from] Status),
    #[error("no message came in time")]
    Silent(#[from] Elapsed),
    #[error("the registry ended it")]
    Over,
}

/// Why a tenant's calls are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Suspended,
    Deleted,
}

/// The tenants whose calls are refused. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals(Arc<RwLock<HashMap<Uuid, Refusal>>>);

impl Refusals {
    /// Refuses the calls of a tenant that is known to be suspended or deleted.
    pub(crate) fn check(&self, tenant: TenantId) -> Result<(), SessionError> {
        let refused = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match refused.get(&tenant.as_uuid()) {
            None => Ok(()),
            Some(Refusal::Suspended) => Err(SessionError::Suspended),
            Some(Refusal::Deleted) => Err(SessionError::Deleted),
        }
    }

    fn set(&self, tenant: Uuid, refusal: Option<Refusal>) {
        let mut refused = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match refusal {
            Some(refusal) => refused.insert(tenant, refusal),
            None => refused.remove(&tenant),
        };
    }

    /// Takes a whole snapshot, and answers the tenants that it changes.
    fn replace(&self, snapshot: HashMap<Uuid, Refusal>) -> Vec<Uuid> {
        let mut refused = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let both = refused.keys().chain(snapshot.keys());
        let changed = both.filter(|tenant| refused.get(tenant) != snapshot.get(tenant));
        let changed = changed.copied().collect();
        *refused = snapshot;
        changed
    }
}

/// Follows what the registry tells, for as long as the sessions are used.
pub(crate) async fn follow(sessions: Weak<Shared>, registry: RegistryClient, refusals: Refusals) {
    let mut pause = FIRST_PAUSE;
    while sessions.upgrade().is_some_and(|sessions| !sessions.is_closed()) {
        let mut snapshot = HashMap::new();
        let ended = match open(&registry).await {
            Ok(mut stream) => loop {
                match next(&mut stream).await {
                    Ok(event) => {
                        pause = FIRST_PAUSE;
                        let outdated = apply(event, &refusals, &mut snapshot);
                        let Some(sessions) = sessions.upgrade() else { return };
                        for tenant in outdated {
                            sessions.forget(tenant).await;
                        }
                    }
                    Err(ended) => break ended,
                }
            },
            Err(ended) => ended,
        };
        if pause == FIRST_PAUSE {
            tracing::info!(cause = %ended, "the registry's word on tenants is interrupted");
        }
        // Replicas that lost the registry together do not come back together.
        let chance = f64::from(registry.clock().new_id().as_bytes()[15]) / 255.0;
        tokio::time::sleep(pause.mul_f64(0.5 + chance)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn open(registry: &RegistryClient) -> Result<Streaming<WatchTenantsResponse>, Ended> {
    Ok(timeout(DEAD_AFTER, registry.watch_tenants()).await??)
}

async fn next(stream: &mut Streaming<WatchTenantsResponse>) -> Result<Event, Ended> {
    let message = timeout(DEAD_AFTER, stream.message()).await??;
    message.and_then(|message| message.event).ok_or(Ended::Over)
}

/// Takes one message in, and answers the tenants of which everything that was
/// known is outdated. `snapshot` has the parts of a snapshot so far.
fn apply(event: Event, refusals: &Refusals, snapshot: &mut HashMap<Uuid, Refusal>) -> Vec<Uuid> {
    match event {
        Event::Snapshot(part) => {
            let refused = part.tenants.iter().filter_map(|status| {
                let (tenant, refusal) = read(status)?;
                Some((tenant, refusal?))
            });
            snapshot.extend(refused);
            if part.complete { refusals.replace(std::mem::take(snapshot)) } else { Vec::new() }
        }
        Event::Changed(status) => {
            let Some((tenant, refusal)) = read(&status) else { return Vec::new() };
            refusals.set(tenant, refusal);
            vec![tenant]
        }
        Event::Heartbeat(_) => Vec::new(),
    }
}

fn read(status: &TenantStatus) -> Option<(Uuid, Option<Refusal>)> {
    let tenant = Uuid::try_parse(status.tenant.strip_prefix("tenants/")?).ok()?;
    let refusal = match status.state() {
        State::Suspended => Some(Refusal::Suspended),
        State::Deleted | State::Purging => Some(Refusal::Deleted),
        State::Unspecified | State::Provisioning | State::Active => None,
    };
    Some((tenant, refusal))
}

#[cfg(test)]
mod tests {
    use crm_proto::registry::v1::TenantSnapshot;

    use super::*;

    fn status(tenant: Uuid, state: State) -> TenantStatus {
        TenantStatus {
            tenant: format!("tenants/{tenant}"),
            state: state.into(),
            ..TenantStatus::default()
        }
    }

    #[test]
    fn a_snapshot_counts_when_it_is_whole_and_names_what_it_changes() {
        let [resumed, kept, deleted] = [1, 2, 3].map(Uuid::from_u128);
        let refusals = Refusals::default();
        let mut parts = HashMap::new();
        for tenant in [resumed, kept, deleted] {
            let event = Event::Changed(status(tenant, State::Suspended));
            assert_eq!(apply(event, &refusals, &mut parts), [tenant]);
        }
        let part = |tenants, complete| Event::Snapshot(TenantSnapshot { tenants, complete });

        let first = part(vec![status(kept, State::Suspended)], false);
        assert!(apply(first, &refusals, &mut parts).is_empty());
        assert_eq!(refusals.0.read().unwrap().len(), 3);
        let last = part(vec![status(deleted, State::Deleted)], true);
        let mut changed = apply(last, &refusals, &mut parts);

        changed.sort();
        changed.dedup();
        assert_eq!(changed, [resumed, deleted]);
        let known = refusals.0.read().unwrap().clone();
        assert_eq!(known, [(kept, Refusal::Suspended), (deleted, Refusal::Deleted)].into());
        assert!(parts.is_empty());
    }
}
