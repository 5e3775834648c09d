//! Running a use case's work on a session of its tenant.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crm_auth::{TenantClaims, TenantContext, TenantId};
use crm_proto::registry::v1::TenantCalls;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use opentelemetry::trace::FutureExt as _;
use sqlx::Connection as _;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::activity::{Activity, Closed};
use crate::checkout::{Checkout, TenantSession};
use crate::cluster::{ClusterSessions, OpenError};
use crate::error::SessionError;
use crate::lease::{Lease, Leases};
use crate::pages::Pages;
use crate::pool::Grant;
use crate::registry::RegistryClient;
use crate::report::{REPORT_EVERY, Reporter};
use crate::share::{Counts, Size};
use crate::watch::{self, Refusals};

/// How often idle sessions are looked over.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How often their number is published.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// How long the work that still runs is waited for at the end.
const DRAIN: Duration = Duration::from_secs(1);

/// Work that reads more rows than this is large.
const MANY_ROWS: i64 = 64;

/// What a service needs of its sessions.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of the service.
    pub service: &'static str,
    /// Where this process listens: its name among those of the service.
    pub instance: String,
    /// The name that the database sees.
    pub application: &'static str,
    /// The most sessions that this process may have open in one cluster.
    pub budget: usize,
    /// The schema version that this service needs.
    pub schema_version: u32,
}

/// The sessions of one process with tenants, in whatever clusters. Clones share
/// them.
#[derive(Clone, Debug)]
pub struct TenantSessions(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    settings: Settings,
    leases: Leases,
    activity: Activity,
    reporter: tokio::sync::Mutex<Reporter>,
    /// By host and port.
    clusters: Mutex<HashMap<(String, u16), Arc<ClusterSessions>>>,
    tasks: TaskTracker,
    pages: Pages,
}

impl TenantSessions {
    /// No session is opened until one is needed.
    pub fn new(settings: Settings, registry: RegistryClient) -> Self {
        let reporter = Reporter::new(registry.clone(), settings.instance.clone(), settings.budget);
        let refusals = Refusals::default();
        let shared = Arc::new(Shared {
            activity: Activity::new(settings.service, registry.clock()),
            leases: Leases::new(
                registry.clone(),
                settings.service,
                settings.application,
                refusals.clone(),
            ),
            reporter: reporter.into(),
            settings,
            clusters: Mutex::default(),
            tasks: TaskTracker::new(),
            pages: Pages::start(),
        });
        tokio::spawn(sweep(Arc::downgrade(&shared)));
        tokio::spawn(publish(Arc::downgrade(&shared)));
        tokio::spawn(watch::follow(Arc::downgrade(&shared), registry, refusals));
        Self(shared)
    }

    /// Waits until the registry has room for the sessions of this process
    /// beside those of all others, and reports to it from then on.
    ///
    /// # Errors
    ///
    /// When the registry refuses the service.
    pub async fn join(&self) -> Result<(), tonic::Status> {
        self.0.reporter.lock().await.join().await?;
        tokio::spawn(report(Arc::downgrade(&self.0)));
        Ok(())
    }

    /// Runs work on a session of the caller's tenant, to its end, in a task of
    /// its own: a client that vanishes interrupts nothing.
    ///
    /// # Errors
    ///
    /// The work's own error; or a [`SessionError`] where there was no session,
    /// or the work did not end.
    pub async fn run<T, E, W>(&self, context: &TenantContext, work: W) -> Result<T, E>
    where
        W: for<'s> FnOnce(&'s mut TenantSession) -> BoxFuture<'s, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<SessionError> + Send + 'static,
    {
        self.run_sized(context, Size::Small, work).await
    }

    /// As [`TenantSessions::run`], for work that reads as many rows: if they
    /// are many, it is done in a thread of its own, below all other, and a
    /// tenant that has had more than its share does little of it at once.
    ///
    /// # Errors
    ///
    /// As [`TenantSessions::run`].
    pub async fn list<T, E, W>(&self, context: &TenantContext, rows: i64, work: W) -> Result<T, E>
    where
        W: for<'s> FnOnce(&'s mut TenantSession) -> BoxFuture<'s, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<SessionError> + Send + 'static,
    {
        let size = if rows > MANY_ROWS { Size::Large } else { Size::Small };
        self.run_sized(context, size, work).await
    }

    async fn run_sized<T, E, W>(&self, context: &TenantContext, size: Size, work: W) -> Result<T, E>
    where
        W: for<'s> FnOnce(&'s mut TenantSession) -> BoxFuture<'s, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<SessionError> + Send + 'static,
    {
        let shared = self.0.clone();
        let turn = shared.activity.admit(context.tenant())?;
        let claims = context.tenant_claims();
        let tenant = context.tenant();
        // It is large, and moved several times on its way into its task.
        let task = Box::pin(async move {
            let checkout = shared.check_out(tenant, claims, size).await?;
            let used = checkout.use_up(work);
            let outcome = match size {
                Size::Small => used.await,
                Size::Large => {
                    let used = used.with_current_context().instrument(tracing::Span::current());
                    let used = shared.pages.spawn_work(used).await;
                    used.unwrap_or_else(|_| Err(SessionError::Panicked.into()))
                }
            };
            drop(turn);
            outcome
        });
        // It belongs to the call in the log, and in the trace.
        let task = task.with_current_context().instrument(tracing::Span::current());
        #[cfg(bug_plain_pool)]
        return task.await;
        #[cfg(not(bug_plain_pool))]
        self.0.tasks.spawn(task).await.unwrap_or_else(|_| Err(SessionError::Panicked.into()))
    }

    /// Whether work for the caller could be done: the tenant is served, and the
    /// token is still good for it. For answers that need nothing of its
    /// database. That is asked all the same: it alone always knows.
    ///
    /// # Errors
    ///
    /// Why [`TenantSessions::run`] would not do it.
    pub async fn check(&self, context: &TenantContext) -> Result<(), SessionError> {
        self.run(context, |session| {
            async move { session.connection().ping().await.map_err(unreachable) }.boxed()
        })
        .await
    }

    /// Waits for the work that still runs, for a second at most: what takes
    /// longer is undone when its session ends. Call it when no more comes.
    pub async fn drain(&self) {
        self.0.tasks.close();
        let _ended = timeout(DRAIN, self.0.tasks.wait()).await;
        let last = async {
            let mut reporter = self.0.reporter.lock().await;
            reporter.send(|| self.0.news()).await;
            reporter.leave().await;
        };
        let _reported = timeout(DRAIN, last).await;
    }
}

impl Shared {
    /// Whether no more work comes.
    pub(crate) fn is_closed(&self) -> bool {
        self.tasks.is_closed()
    }

    /// Forgets all that is known of a tenant: its lease, and its idle sessions.
    pub(crate) async fn forget(&self, tenant: Uuid) {
        self.leases.forget(tenant).await;
        for cluster in self.clusters() {
            tokio::spawn(async move { cluster.close_idle_of(tenant).await });
        }
    }

    /// The sessions in the cluster that a lease leads to.
    fn cluster(&self, lease: &Lease) -> Arc<ClusterSessions> {
        let find = || {
            let address = (lease.options.get_host().to_owned(), lease.options.get_port());
            let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || ClusterSessions::new(self.settings.budget, self.activity.clone()).into();
            clusters.entry(address).or_insert_with(new).clone()
        };
        lease.cluster.get_or_init(find).clone()
    }

    fn clusters(&self) -> Vec<Arc<ClusterSessions>> {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.values().cloned().collect()
    }

    /// The tenant's sessions in all clusters: it has some in two while it
    /// moves.
    fn counts_of(&self, tenant: TenantId) -> Counts {
        let counts = self.clusters().into_iter().map(|cluster| cluster.pool().counts_of(tenant));
        counts.fold(Counts::default(), |sum, counts| sum + counts)
    }

    /// What tenants did since the last time.
    fn news(&self) -> Vec<TenantCalls> {
        self.activity.take_news(|tenant| self.counts_of(tenant))
    }

    /// A lease that this service can use, for a token that is not void.
    async fn lease(
        &self,
        tenant: TenantId,
        claims: TenantClaims,
    ) -> Result<Arc<Lease>, SessionError> {
        let wanted = self.settings.schema_version;
        let mut lease = self.leases.get(tenant).await?;
        if lease.schema_version < wanted {
            lease = self.leases.get_newer(tenant, wanted).await?;
        }
        self.check_lease(&lease, claims)?;
        Ok(lease)
    }

    async fn check_out(
        self: &Arc<Self>,
        tenant: TenantId,
        claims: TenantClaims,
        size: Size,
    ) -> Result<Checkout, SessionError> {
        let lease = self.lease(tenant, claims).await?;
        let error = match self.check_out_with(tenant, &lease, size).await {
            Err(error @ SessionError::Unavailable(..)) => error,
            outcome => return outcome,
        };
        // Where the server did not honour the lease, it was forgotten, and the
        // registry says why; or it has a better one, as after a resumption.
        let newer = self.lease(tenant, claims).await?;
        if Arc::ptr_eq(&newer, &lease) {
            return Err(error);
        }
        self.check_out_with(tenant, &newer, size).await
    }

    async fn check_out_with(
        &self,
        tenant: TenantId,
        lease: &Lease,
        size: Size,
    ) -> Result<Checkout, SessionError> {
        let cluster = self.cluster(lease);
        let mut checkout = loop {
            if let Some(checkout) = self.take_turn(&cluster, tenant, lease, size).await? {
                break checkout;
            }
        };
        if !checkout.is_opening() {
            return Ok(checkout);
        }
        let opened = cluster.open(tenant, lease).await;
        if opened.as_ref().is_err_and(is_lease_void) {
            // Before the checkout ends, and those who wait for it ask why.
            // Where the login is mended, idle sessions are ended, too.
            self.leases.login_refused(tenant.as_uuid()).await;
            self.forget(tenant.as_uuid()).await;
        }
        checkout.lend(Box::new(opened.map_err(unreachable)?));
        Ok(checkout)
    }

    /// A session, or the right to open one. `None`: the session cannot be used
    /// any more, and another caller opens one already.
    async fn take_turn(
        &self,
        cluster: &Arc<ClusterSessions>,
        tenant: TenantId,
        lease: &Lease,
        size: Size,
    ) -> Result<Option<Checkout>, SessionError> {
        let grant = cluster.acquire(tenant, lease.session_cap, size).await;
        let grant = grant.inspect_err(|_| self.activity.refused(tenant))?;
        // From here on the permit is ours, and goes back however this ends.
        let is_opening = !matches!(grant, Grant::Session(_));
        let mut checkout = Checkout::new(cluster.clone(), tenant, size, is_opening);
        match grant {
            Grant::Session(mut session) => {
                let why = if session.generation != lease.generation {
                    Closed::Revoked
                } else if !cluster.is_usable(&mut session).await {
                    Closed::Broken
                } else {
                    checkout.lend(session);
                    return Ok(Some(checkout));
                };
                cluster.close(*session, why).await;
                checkout.open_instead();
            }
            Grant::Replace(session) => cluster.close(*session, Closed::Evicted).await,
            Grant::Permit => {}
        }
        Ok(checkout.is_opening().then_some(checkout))
    }

    fn check_lease(&self, lease: &Lease, claims: TenantClaims) -> Result<(), SessionError> {
        if lease.tenant_generation != claims.generation || lease.access_version > claims.ver {
            return Err(SessionError::TokenVoid);
        }
        let (found, wanted) = (lease.schema_version, self.settings.schema_version);
        // A newer schema serves as well, unless it says that it does not.
        if found < wanted || wanted < lease.oldest_service_version {
            return Err(SessionError::SchemaVersion { found, wanted });
        }
        Ok(())
    }
}

fn unreachable(error: impl Into<OpenError>) -> SessionError {
    SessionError::Unavailable("the tenant's database cannot be reached", error.into().into())
}

/// Whether the server knows nothing of the lease's login or database, does not
/// let it in, has another database under its name, or begins no session that is
/// of use: the registry is asked again. A server that is merely away takes no
/// lease with it.
fn is_lease_void(error: &OpenError) -> bool {
    let OpenError::Connect(error) = error else { return true };
    let code = error.as_database_error().and_then(|error| error.code());
    // No connection, no room, and stopping or starting are the server's; all
    // else is the lease's: a login's settings fail in any way (PostgreSQL,
    // appendix A).
    let servers = ["08", "53", "57P01", "57P02", "57P03"];
    code.is_some_and(|code| !servers.iter().any(|of| code.starts_with(of)))
}

/// Closes idle sessions that are too old, as long as anyone has a use for the
/// others.
async fn sweep(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        // One that does not answer keeps no other waiting.
        let clusters = shared.clusters();
        join_all(clusters.iter().map(|cluster| cluster.sweep())).await;
    }
}

/// Publishes how many sessions and leases there are.
async fn publish(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(PUBLISH_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        let counts = shared.clusters().into_iter().map(|cluster| cluster.pool().counts());
        shared.leases.publish().await;
        shared.activity.publish(counts.fold(Counts::default(), |sum, counts| sum + counts));
    }
}

/// Reports to the registry.
async fn report(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.reporter.lock().await.send(|| shared.news()).await;
    }
}
