//! Leases: cached, renewed on use, and good without the registry.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crm_auth::TenantId;
use crm_error::ErrorReason;
use crm_proto::registry::v1::AcquireLeaseResponse;
use crm_proto::registry::v1::acquire_lease_response::TlsMode;
use moka::future::Cache;
use moka::ops::compute::Op;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::time::Instant;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::cluster::ClusterSessions;
use crate::error::SessionError;
use crate::registry::RegistryClient;
use crate::watch::Refusals;

/// A lease older than this is renewed when it is used.
const RENEW_AFTER: Duration = Duration::from_secs(5 * 60);
/// A lease dies at this age.
const DIES_AFTER: Duration = Duration::from_secs(15 * 60);
/// How long it is known that a tenant's lease was forgotten: longer than any
/// lives that was asked for before.
const REMEMBERS_FOR: Duration = Duration::from_secs(20 * 60);
/// How long the registry's word holds that a tenant is suspended or deleted, from
/// when it was asked. Whoever opens a tenant answers only when so much time has
/// passed since: by then nobody goes by an older word.
pub const REFUSAL_HOLDS: Duration = Duration::from_millis(50);
/// A tenant whose schema is too old, or whose login is refused, is asked about
/// again only after this.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How many tenants' leases are kept.
const CACHED_LEASES: u64 = 100_000;

/// How one tenant's database is reached.
pub(crate) struct Lease {
    pub(crate) options: PgConnectOptions,
    pub(crate) session_cap: usize,
    pub(crate) schema_version: u32,
    pub(crate) oldest_service_version: u32,
    pub(crate) generation: u32,
    pub(crate) tenant_generation: u32,
    pub(crate) access_version: u64,
    /// What the tenant's database carries as its comment.
    pub(crate) claim_id: String,
    /// The sessions of this process there, once they are known.
    pub(crate) cluster: OnceLock<Arc<ClusterSessions>>,
    acquired: Instant,
    /// How often leases had been forgotten when the registry was asked for it.
    asked: u64,
    renewing: AtomicBool,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// The leases of one service.
#[derive(Clone, Debug)]
pub(crate) struct Leases {
    registry: RegistryClient,
    service: &'static str,
    application: &'static str,
    refusals: Refusals,
    kept: Kept,
    /// The tenants that were asked about lately, since their schema is too old.
    asked: Cache<Uuid, ()>,
    /// Those whose login was refused, and those of which the registry was told so
    /// lately.
    refused_logins: Cache<Uuid, ()>,
    told: Cache<Uuid, ()>,
}

impl Leases {
    pub(crate) fn new(
        registry: RegistryClient,
        service: &'static str,
        application: &'static str,
        refusals: Refusals,
    ) -> Self {
        let [asked, refused_logins, told] = [(); 3].map(|()| {
            Cache::builder().max_capacity(CACHED_LEASES).time_to_live(ASK_AGAIN_AFTER).build()
        });
        Self {
            registry,
            service,
            application,
            refusals,
            kept: Kept::new(),
            asked,
            refused_logins,
            told,
        }
    }

    /// The lease of a tenant: one call to the registry at a time for each.
    pub(crate) async fn get(&self, tenant: TenantId) -> Result<Arc<Lease>, SessionError> {
        let acquire = || self.acquire(tenant);
        let lease = self.kept.get(tenant.as_uuid(), acquire).await;
        let lease = lease.map_err(|no_lease| self.refused(tenant, &no_lease))?;
        if lease.acquired.elapsed() > RENEW_AFTER && !lease.renewing.swap(true, Ordering::Relaxed) {
            self.renew(tenant, lease.clone());
        }
        Ok(lease)
    }

    /// The lease of a tenant whose schema was older than `wanted`: the registry
    /// may have raised it meanwhile. It is asked once in a second at most, and
    /// by one caller; others get what is known.
    pub(crate) async fn get_newer(
        &self,
        tenant: TenantId,
        wanted: u32,
    ) -> Result<Arc<Lease>, SessionError> {
        let id = tenant.as_uuid();
        let asking = |known: Option<moka::Entry<Uuid, Arc<Lease>>>| async move {
            let is_new = known.is_some_and(|known| known.value().schema_version >= wanted);
            if is_new || !self.asked.entry(id).or_insert(()).await.is_fresh() {
                return Ok(Op::Nop);
            }
            self.acquire(tenant).await.map(Op::Put)
        };
        match self.kept.leases.entry(id).and_try_compute_with(asking).await {
            Ok(_) => {}
            Err(no_lease) if no_lease.is_final() => return Err(self.refused(tenant, &no_lease)),
            // Without the registry's word, what is known stands.
            Err(no_lease) => tracing::debug!(%no_lease, "a newer lease could not be had"),
        }
        self.get(tenant).await
    }

    /// Forgets a lease that is outdated or was not honoured, and what the registry
    /// was asked for before now.
    pub(crate) async fn forget(&self, tenant: Uuid) {
        self.kept.forget(tenant).await;
    }

    /// Has the registry told, when it is asked for the next lease, that the
    /// database did not honour this one: it mends a login that was changed.
    pub(crate) async fn login_refused(&self, tenant: Uuid) {
        self.refused_logins.insert(tenant, ()).await;
    }

    /// Publishes how many leases there are.
    pub(crate) async fn publish(&self) {
        // Before that, the cache counts what has expired, too.
        self.kept.leases.run_pending_tasks().await;
        let count = u32::try_from(self.kept.leases.entry_count()).unwrap_or(u32::MAX);
        metrics::gauge!("crm_leases", "service" => self.service).set(count);
    }

    fn renew(&self, tenant: TenantId, old: Arc<Lease>) {
        let leases = self.clone();
        tokio::spawn(async move {
            match leases.acquire(tenant).await {
                Ok(lease) => leases.kept.leases.insert(tenant.as_uuid(), lease).await,
                // The registry's word; without one the old lease goes on.
                Err(no_lease) if no_lease.is_final() => leases.forget(tenant.as_uuid()).await,
                Err(_) => old.renewing.store(false, Ordering::Relaxed),
            }
        });
    }

    async fn acquire(&self, tenant: TenantId) -> Result<Arc<Lease>, NoLease> {
        let (asked, asked_at) = (self.kept.times_forgotten(), Instant::now());
        let id = tenant.as_uuid();
        let login_refused = self.refused_logins.remove(&id).await.is_some()
            && self.told.entry(id).or_insert(()).await.is_fresh();
        let granted = self.registry.acquire_lease(tenant, login_refused).await;
        let granted = granted.map_err(|status| NoLease { status, asked_at });
        let outcome = match &granted {
            Ok(_) => "granted",
            Err(no_lease) if no_lease.is_final() => "refused",
            Err(_) => "unavailable",
        };
        let labels = [("service", self.service), ("outcome", outcome)];
        metrics::counter!("crm_lease_acquire_total", &labels).increment(1);
        Ok(Arc::new(Lease::new(&granted?, self.application, asked)))
    }

    /// Why there is no lease. Where the registry does not answer, what it told
    /// before holds.
    fn refused(&self, tenant: TenantId, no_lease: &NoLease) -> SessionError {
        if !no_lease.is_final()
            && let Err(told) = self.refusals.check(tenant)
        {
            return told;
        }
        match crm_error::reason(&no_lease.status) {
            Some(ErrorReason::ResourceNotFound) => SessionError::TokenVoid,
            Some(ErrorReason::TenantInactive) => SessionError::Inactive,
            Some(ErrorReason::TenantSuspended) => SessionError::Suspended,
            Some(ErrorReason::TenantDeleted) => SessionError::Deleted,
            _ => {
                let cause = no_lease.clone().into();
                SessionError::Unavailable("the tenant-registry gave no lease", cause)
            }
        }
    }
}

/// The registry gave no lease.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{status}")]
struct NoLease {
    status: Status,
    /// When it was asked, at the earliest.
    asked_at: Instant,
}

impl NoLease {
    /// Whether this is the registry's word on the tenant, rather than its
    /// silence.
    fn is_final(&self) -> bool {
        matches!(self.status.code(), Code::NotFound | Code::FailedPrecondition)
    }

    /// Whether the tenant is refused until somebody opens it.
    fn is_refusal(&self) -> bool {
        let reason = crm_error::reason(&self.status);
        matches!(reason, Some(ErrorReason::TenantSuspended | ErrorReason::TenantDeleted))
    }

    /// Whether it holds for a call that came then.
    fn holds_for(&self, arrived: Instant) -> bool {
        arrived < self.asked_at + REFUSAL_HOLDS
    }
}

impl Lease {
    fn new(granted: &AcquireLeaseResponse, application: &str, asked: u64) -> Self {
        Self {
            options: connect_options(granted, application),
            session_cap: granted.session_cap as usize,
            schema_version: granted.schema_version,
            oldest_service_version: granted.oldest_service_version,
            generation: granted.generation,
            tenant_generation: granted.tenant_generation,
            access_version: granted.access_version,
            claim_id: granted.claim_id.clone(),
            cluster: OnceLock::new(),
            acquired: Instant::now(),
            asked,
            renewing: AtomicBool::new(false),
        }
    }
}

/// The leases that are kept. A lease that was asked for may come when it is
/// outdated already: what was forgotten is remembered for a while.
#[derive(Clone, Debug)]
struct Kept {
    leases: Cache<Uuid, Arc<Lease>>,
    /// How often leases had been forgotten when a tenant's was last.
    forgotten: Cache<Uuid, u64>,
    times_forgotten: Arc<AtomicU64>,
    /// Tenants that were refused a moment ago: a flood of their calls does not
    /// become one of questions.
    refused: Cache<Uuid, NoLease>,
}

impl Kept {
    fn new() -> Self {
        let leases = Cache::builder().max_capacity(CACHED_LEASES).time_to_live(DIES_AFTER).build();
        let forgotten =
            Cache::builder().max_capacity(CACHED_LEASES).time_to_live(REMEMBERS_FOR).build();
        let refused =
            Cache::builder().max_capacity(CACHED_LEASES).time_to_live(REMEMBERS_FOR).build();
        Self { leases, forgotten, times_forgotten: Arc::default(), refused }
    }

    /// Read before the registry is asked for a lease.
    fn times_forgotten(&self) -> u64 {
        self.times_forgotten.load(Ordering::SeqCst)
    }

    /// The lease of a tenant, acquired where there is none, or only one that
    /// was asked for before it was forgotten. A refusal is no older than it
    /// holds when the caller comes.
    async fn get<F>(
        &self,
        tenant: Uuid,
        acquire: impl Fn() -> F,
    ) -> Result<Arc<Lease>, Arc<NoLease>>
    where
        F: Future<Output = Result<Arc<Lease>, NoLease>>,
    {
        let arrived = Instant::now();
        let ask = async || match self.refused.get(&tenant).await {
            Some(refused) if refused.holds_for(arrived) => Err(refused),
            Some(_) | None => acquire().await,
        };
        loop {
            let lease = match self.leases.try_get_with(tenant, ask()).await {
                Ok(lease) => lease,
                // Another caller had asked, too long ago.
                Err(refused) if refused.is_refusal() && !refused.holds_for(arrived) => continue,
                Err(no_lease) => {
                    if no_lease.is_refusal() {
                        self.refused.insert(tenant, no_lease.as_ref().clone()).await;
                    }
                    return Err(no_lease);
                }
            };
            let forgotten = self.forgotten.get(&tenant).await.unwrap_or_default();
            if lease.asked >= forgotten {
                return Ok(lease);
            }
            // Another caller may have brought a new one meanwhile.
            let remove_old = |known: Option<moka::Entry<Uuid, Arc<Lease>>>| async move {
                let is_old = known.is_some_and(|known| known.value().asked < forgotten);
                if is_old { Op::Remove } else { Op::Nop }
            };
            self.leases.entry(tenant).and_compute_with(remove_old).await;
        }
    }

    async fn forget(&self, tenant: Uuid) {
        let times = self.times_forgotten.fetch_add(1, Ordering::SeqCst) + 1;
        self.forgotten.insert(tenant, times).await;
        self.leases.invalidate(&tenant).await;
        self.refused.invalidate(&tenant).await;
    }
}

fn connect_options(lease: &AcquireLeaseResponse, application: &str) -> PgConnectOptions {
    let timeout = lease.statement_timeout.unwrap_or_default();
    let timeout = timeout.seconds * 1000 + i64::from(timeout.nanos) / 1_000_000;
    let ssl_mode = match lease.tls_mode() {
        TlsMode::Disabled => PgSslMode::Disable,
        TlsMode::Unspecified | TlsMode::VerifyFull => PgSslMode::VerifyFull,
    };
    PgConnectOptions::new_without_pgpass()
        .host(&lease.host)
        .port(u16::try_from(lease.port).unwrap_or_default())
        .database(&lease.database)
        .username(&lease.user)
        .password(&lease.secret)
        .ssl_mode(ssl_mode)
        .application_name(application)
        // Settings of the session come before those of the role, which the
        // role itself could change (PostgreSQL, ALTER ROLE).
        .options([
            ("statement_timeout", format!("{timeout}ms")),
            ("lock_timeout", format!("{timeout}ms")),
            ("idle_in_transaction_session_timeout", "10s".to_owned()),
            ("default_transaction_read_only", "off".to_owned()),
            // The server notices a dead client while it runs a statement.
            ("client_connection_check_interval", "1s".to_owned()),
        ])
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use crm_error::ApiError;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_lease_that_was_asked_for_before_it_was_forgotten_is_asked_for_again() {
        let (kept, tenant) = (Kept::new(), Uuid::from_u128(1));
        let (asked, forgotten, times) = (Notify::new(), Notify::new(), AtomicU32::new(0));
        let acquire = || async {
            let generation = times.fetch_add(1, Ordering::SeqCst) + 1;
            let granted = AcquireLeaseResponse { generation, ..AcquireLeaseResponse::default() };
            let lease = Lease::new(&granted, "test", kept.times_forgotten());
            if generation == 1 {
                asked.notify_one();
                forgotten.notified().await;
            }
            Ok(Arc::new(lease))
        };
        let forget = async {
            asked.notified().await;
            kept.forget(tenant).await;
            forgotten.notify_one();
        };

        let (first, ()) = tokio::join!(kept.get(tenant, acquire), forget);
        let second = kept.get(tenant, acquire).await;

        assert_eq!((first.unwrap().generation, second.unwrap().generation), (2, 2));
        assert_eq!(times.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_refusal_holds_for_a_moment_and_for_nobody_who_came_later() {
        let (kept, tenant, times) = (Kept::new(), Uuid::from_u128(1), AtomicU32::new(0));
        let acquire = || async {
            let now = Instant::now();
            // The first was asked for too long ago, the others are ever fresh.
            let asked_at = match times.fetch_add(1, Ordering::SeqCst) {
                0 => now - 2 * REFUSAL_HOLDS,
                _ => now + REMEMBERS_FOR,
            };
            let suspended = ApiError::new(ErrorReason::TenantSuspended, "the tenant is suspended");
            Err(NoLease { status: suspended.into(), asked_at })
        };
        let asked = async || {
            assert!(kept.get(tenant, acquire).await.unwrap_err().is_refusal());
            times.load(Ordering::SeqCst)
        };

        assert_eq!([asked().await, asked().await], [2, 2]);
        kept.forget(tenant).await;
        assert_eq!(asked().await, 3);
    }
}
