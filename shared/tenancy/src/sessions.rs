//! Running a use case's work on a session of its tenant.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crm_auth::{TenantClaims, TenantContext, TenantId};
use futures_util::future::BoxFuture;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::error::{SessionError, StoreError};
use crate::lease::{Lease, Leases};
use crate::pool::{Grant, Pool, Session};
use crate::registry::RegistryClient;

/// How long a caller waits for a session.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many calls of one tenant may be under way, waiting ones included.
const CALLS_PER_TENANT: usize = 128;
/// How many sessions may be opening at once.
const CONNECTS_AT_ONCE: usize = 8;
/// How long opening one may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long closing one may take, before its socket is just dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the server takes to end a session whose client is gone, as a rule.
const CLOSE_GRACE: Duration = Duration::from_millis(5);
/// How long a session may lie idle.
const IDLE_FOR: Duration = Duration::from_secs(120);
/// After how long an idle session is asked whether it is still there.
const ASK_AFTER: Duration = Duration::from_secs(1);
/// How old a session may become, more or less a fifth.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// How often idle sessions are looked over.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How long any work may take. Statements have timeouts of their own; this
/// catches what hangs all the same.
const WORK_TIMEOUT: Duration = Duration::from_secs(35);

/// How long the work that still runs is waited for at the end.
const DRAIN: Duration = Duration::from_secs(1);

/// What a service needs of its sessions.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The name that the database sees.
    pub application: &'static str,
    /// The most sessions that this process may have open.
    pub budget: usize,
    /// The schema version that this service needs.
    pub schema_version: u32,
}

/// The sessions of one process with the tenants of one PostgreSQL cluster.
/// Clones share them.
#[derive(Clone, Debug)]
pub struct TenantSessions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: Settings,
    leases: Leases,
    pool: Mutex<Pool>,
    /// Calls under way, by tenant.
    calls: Mutex<HashMap<TenantId, usize>>,
    connects: Semaphore,
    tasks: TaskTracker,
}

/// A session of the caller's tenant, for the length of one use case.
#[derive(Debug)]
pub struct TenantSession {
    connection: PgConnection,
}

impl TenantSession {
    /// The connection, to run statements on.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Runs work in a transaction: committed if it answers `Ok`, rolled back
    /// otherwise.
    ///
    /// # Errors
    ///
    /// The work's own error, or that of the transaction.
    pub async fn transaction<T, E, W>(&mut self, work: W) -> Result<T, E>
    where
        W: for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, E>> + Send,
        E: From<StoreError>,
    {
        let mut transaction = self.connection.begin().await.map_err(StoreError::from)?;
        let outcome = work(&mut transaction).await;
        match outcome {
            Ok(value) => {
                transaction.commit().await.map_err(StoreError::from)?;
                Ok(value)
            }
            Err(error) => {
                transaction.rollback().await.map_err(StoreError::from)?;
                Err(error)
            }
        }
    }
}

impl TenantSessions {
    /// No session is opened until one is needed.
    pub fn new(settings: Settings, registry: RegistryClient) -> Self {
        let shared = Arc::new(Shared {
            settings,
            leases: Leases::new(registry, settings.application),
            pool: Mutex::new(Pool::new(settings.budget)),
            calls: Mutex::default(),
            connects: Semaphore::new(CONNECTS_AT_ONCE),
            tasks: TaskTracker::new(),
        });
        tokio::spawn(sweep(Arc::downgrade(&shared)));
        Self(shared)
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
        let shared = self.0.clone();
        let turn = shared.admit(context.tenant())?;
        let claims = context.tenant_claims();
        let tenant = context.tenant();
        let task = async move {
            let mut checkout = shared.check_out(tenant, claims).await?;
            let outcome = checkout.use_for(work).await;
            checkout.check_in();
            drop(turn);
            outcome
        };
        let task = self.0.tasks.spawn(task.instrument(tracing::Span::current()));
        task.await.unwrap_or_else(|_| Err(SessionError::Panicked.into()))
    }

    /// Waits for the work that still runs, for a second at most: what takes
    /// longer is undone when its session ends. Call it when no more comes.
    pub async fn drain(&self) {
        self.0.tasks.close();
        let _ended = timeout(DRAIN, self.0.tasks.wait()).await;
    }
}

impl Shared {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a call in, unless its tenant has too many under way already: one
    /// tenant must not fill the queue for all.
    fn admit(self: &Arc<Self>, tenant: TenantId) -> Result<Turn, SessionError> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let count = calls.entry(tenant).or_insert(0);
        if *count >= CALLS_PER_TENANT {
            return Err(SessionError::Exhausted);
        }
        *count += 1;
        Ok(Turn { shared: self.clone(), tenant })
    }

    async fn check_out(
        self: &Arc<Self>,
        tenant: TenantId,
        claims: TenantClaims,
    ) -> Result<Checkout, SessionError> {
        let lease = self.leases.get(tenant).await?;
        self.check_lease(&lease, claims)?;
        let asked = self.pool().acquire(tenant, lease.session_cap);
        let grant = match asked {
            Ok(grant) => grant,
            Err(granted) => self.wait(tenant, granted).await?,
        };
        // From here on the permit is ours, and goes back however this ends.
        let mut checkout = Checkout { shared: self.clone(), tenant, session: None, busy: true };
        match grant {
            Grant::Session(mut session) => {
                if session.generation == lease.generation && self.is_usable(&mut session).await {
                    checkout.session = Some(session);
                    return Ok(checkout);
                }
                close(session.connection).await;
            }
            Grant::Replace(session) => close(session.connection).await,
            Grant::Permit => {}
        }
        checkout.session = Some(Box::new(self.open(tenant, &lease).await?));
        Ok(checkout)
    }

    /// Whether an idle session is still there. It is asked only if it has been
    /// idle for a while, or if another broke since.
    async fn is_usable(&self, session: &mut Session) -> bool {
        let fresh = session.last_used.elapsed() < ASK_AFTER
            && self.pool().last_broken().is_none_or(|broken| broken < session.last_used);
        fresh || is_settled(&mut session.connection).await
    }

    fn check_lease(&self, lease: &Lease, claims: TenantClaims) -> Result<(), SessionError> {
        if lease.tenant_generation != claims.generation || lease.access_version > claims.ver {
            return Err(SessionError::TokenVoid);
        }
        let (found, wanted) = (lease.schema_version, self.settings.schema_version);
        // Migrations only expand, so that a newer schema serves as well.
        if found < wanted { Err(SessionError::SchemaVersion { found, wanted }) } else { Ok(()) }
    }

    async fn wait(
        &self,
        tenant: TenantId,
        mut granted: oneshot::Receiver<Grant>,
    ) -> Result<Grant, SessionError> {
        if let Ok(Ok(grant)) = timeout(ACQUIRE_TIMEOUT, &mut granted).await {
            return Ok(grant);
        }
        // A grant may have come in the very last moment.
        granted.close();
        if let Ok(grant) = granted.try_recv() {
            let replaced = self.pool().give_back(grant, tenant);
            if let Some(session) = replaced {
                close(session.connection).await;
                self.pool().release_permit(tenant);
            }
        }
        Err(SessionError::Exhausted)
    }

    async fn open(&self, tenant: TenantId, lease: &Lease) -> Result<Session, SessionError> {
        let closed = |error: tokio::sync::AcquireError| {
            SessionError::Unavailable("no more sessions are opened", error.into())
        };
        let _turn = self.connects.acquire().await.map_err(closed)?;
        let opened = timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&lease.options)).await;
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            SessionError::Unavailable("the tenant's database cannot be reached", error)
        };
        match opened {
            Ok(Ok(connection)) => {
                let now = Instant::now();
                Ok(Session {
                    tenant,
                    generation: lease.generation,
                    connection,
                    closes_at: now + jittered_lifetime(tenant),
                    last_used: now,
                    turns: 0,
                })
            }
            Ok(Err(error)) => {
                if is_lease_void(&error) {
                    self.leases.forget(tenant).await;
                }
                Err(failed(error.into()))
            }
            Err(elapsed) => Err(failed(elapsed.into())),
        }
    }
}

/// Whether the server knows nothing of the lease's login or database, or does
/// not let it in: the registry is asked again. A server that is merely away
/// takes no lease with it.
fn is_lease_void(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    // Wrong password, unknown role, unknown database, no right to connect,
    // closed to connections (PostgreSQL, appendix A).
    code.is_some_and(|code| ["28P01", "28000", "3D000", "42501", "55000"].contains(&code.as_ref()))
}

/// A call that was let in.
struct Turn {
    shared: Arc<Shared>,
    tenant: TenantId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut calls = self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = calls.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                calls.remove(&self.tenant);
            }
        }
    }
}

/// A permit, with the session that was opened with it.
struct Checkout {
    shared: Arc<Shared>,
    tenant: TenantId,
    session: Option<Box<Session>>,
    /// Set before work begins and taken away only when it ended well: a
    /// session that comes back busy is closed, never reused.
    busy: bool,
}

impl Checkout {
    async fn use_for<T, E, W>(&mut self, work: W) -> Result<T, E>
    where
        W: for<'s> FnOnce(&'s mut TenantSession) -> BoxFuture<'s, Result<T, E>>,
        E: From<SessionError>,
    {
        let Some(session) = self.session.take() else { return Err(SessionError::Panicked.into()) };
        let Session { tenant, generation, connection, closes_at, turns, .. } = *session;
        let mut lent = TenantSession { connection };
        let outcome = timeout(WORK_TIMEOUT, work(&mut lent)).await;
        self.busy = match &outcome {
            Ok(Ok(_)) => lent.connection.is_in_transaction(),
            Ok(Err(_)) => {
                let settled = is_settled(&mut lent.connection).await;
                if !settled {
                    self.shared.pool().mark_broken(Instant::now());
                }
                !settled
            }
            Err(_) => true,
        };
        let connection = lent.connection;
        let last_used = Instant::now();
        self.session =
            Some(Box::new(Session { tenant, generation, connection, closes_at, last_used, turns }));
        outcome.unwrap_or_else(|_| Err(SessionError::TimedOut.into()))
    }

    /// Gives a clean session back; a busy or an old one is closed when this is
    /// dropped.
    fn check_in(mut self) {
        if !self.busy
            && let Some(session) =
                self.session.take_if(|session| session.closes_at > Instant::now())
        {
            self.shared.pool().release(*session);
        }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if !self.busy && self.session.is_none() {
            return;
        }
        let (shared, tenant) = (self.shared.clone(), self.tenant);
        match self.session.take() {
            // The permit goes back only after the server has closed.
            Some(session) => drop(tokio::spawn(async move {
                tracing::debug!("a busy session is closed");
                close(session.connection).await;
                shared.pool().release_permit(tenant);
            })),
            None => shared.pool().release_permit(tenant),
        }
    }
}

/// Whether a session whose work failed can be used again: the server answers,
/// and no transaction is open.
async fn is_settled(connection: &mut PgConnection) -> bool {
    !connection.is_in_transaction()
        && matches!(timeout(CLOSE_TIMEOUT, connection.ping()).await, Ok(Ok(())))
}

/// Closes a session, and leaves the server a moment to do the same: sqlx says
/// goodbye, but gives no way to wait until the server has hung up.
async fn close(connection: PgConnection) {
    let _closed = timeout(CLOSE_TIMEOUT, connection.close()).await;
    tokio::time::sleep(CLOSE_GRACE).await;
}

/// Sessions that were opened together are not closed together: the tenant's id
/// has enough chance in it.
fn jittered_lifetime(tenant: TenantId) -> Duration {
    let fraction = f64::from(tenant.as_uuid().as_bytes()[15]) / 255.0;
    LIFETIME.mul_f64(0.8 + 0.4 * fraction)
}

/// Closes idle sessions that are too old, as long as anyone has a use for the
/// others.
async fn sweep(shared: std::sync::Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        let expired = shared.pool().expire(Instant::now(), IDLE_FOR);
        let count = expired.len();
        for session in expired {
            close(session.connection).await;
        }
        shared.pool().forget_permits(count);
    }
}
