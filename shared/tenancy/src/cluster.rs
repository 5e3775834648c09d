//! The sessions of one process in one PostgreSQL cluster: opening and closing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crm_auth::TenantId;
use futures_util::future::join_all;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use crate::activity::{Activity, Closed};
use crate::error::SessionError;
use crate::lease::Lease;
use crate::pool::{Asked, Grant, Pool, Session};
use crate::share::Size;

/// How long a caller waits for a session.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many sessions may be opening at once.
const CONNECTS_AT_ONCE: usize = 8;
/// How long opening one may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long saying goodbye may take, before the socket is just dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// When the server is first asked whether it has closed a session, as a rule
/// late enough; then after twice the time, and so on.
const ASK_CLOSED_AFTER: Duration = Duration::from_millis(1);
/// For how long it is asked.
const ASK_CLOSED_FOR: Duration = Duration::from_secs(1);
/// How long a session may take to close while there is none to ask with.
const CLOSES_WITHIN: Duration = Duration::from_millis(50);
/// How long a session may lie idle.
const IDLE_FOR: Duration = Duration::from_secs(120);
/// How long ago a session may have been seen open that is used without asking
/// whether it still is. Less than passes from the end of a suspended tenant's
/// last session to the answer: no call that comes after that is lent a dead one.
pub const ASK_AFTER: Duration = Duration::from_millis(100);
/// How old a session may become, more or less a fifth.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The database is not, or not any more, the one that the lease is for.
    #[error("the database does not carry the claim of its tenant's lease")]
    OtherClaim,
    /// The login changed what its sessions begin with: whatever that is, they
    /// may be of no use.
    #[error("the login has settings of its own")]
    OwnSettings,
    /// The server let the login in, and the session was of no use.
    #[error("the session broke when it began")]
    Broken(#[source] sqlx::Error),
    #[error(transparent)]
    Connect(#[from] sqlx::Error),
}

/// The sessions with one cluster.
#[derive(Debug)]
pub(crate) struct ClusterSessions {
    pool: Mutex<Pool>,
    connects: Semaphore,
    activity: Activity,
}

impl ClusterSessions {
    pub(crate) fn new(budget: usize, activity: Activity) -> Self {
        let connects = Semaphore::new(CONNECTS_AT_ONCE);
        Self { pool: Mutex::new(Pool::new(budget, large_sessions())), connects, activity }
    }

    pub(crate) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// A session of the tenant, or the right to open one.
    pub(crate) async fn acquire(
        &self,
        tenant: TenantId,
        session_cap: usize,
        size: Size,
    ) -> Result<Grant, SessionError> {
        let asked = self.pool().acquire(tenant, session_cap, size);
        let (place, mut granted) = match asked {
            Asked::Granted(grant) => return Ok(grant),
            Asked::Queued(place, granted) => (place, granted),
        };
        let queued = Instant::now();
        let answer = timeout_at(queued + ACQUIRE_TIMEOUT, &mut granted).await;
        self.activity.waited(queued.elapsed());
        match answer {
            Ok(Ok(grant)) => Ok(grant),
            Ok(Err(closed)) => Err(SessionError::Unavailable(
                "the tenant's database cannot be reached",
                closed.into(),
            )),
            Err(_) => {
                self.pool().leave(place);
                // Whoever is not in the queue any more has been served.
                granted.try_recv().map_err(|_| SessionError::Exhausted)
            }
        }
    }

    /// Opens a session, with a permit.
    pub(crate) async fn open(&self, tenant: TenantId, lease: &Lease) -> Result<Session, OpenError> {
        let _turn = self.connects.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let connected = async {
            let mut connection = PgConnection::connect_with(&lease.options).await?;
            match begin(&mut connection, lease).await {
                Ok(pid) => Ok((connection, pid)),
                Err(error) => {
                    let _said = timeout(CLOSE_TIMEOUT, connection.close()).await;
                    Err(error)
                }
            }
        };
        let known_open = Instant::now();
        let connected = timeout(CONNECT_TIMEOUT, connected).await;
        let (connection, pid) = connected.map_err(|elapsed| sqlx::Error::Io(elapsed.into()))??;
        self.activity.opened(tenant);
        let now = Instant::now();
        Ok(Session {
            tenant,
            generation: lease.generation,
            connection,
            pid,
            closes_at: now + jittered_lifetime(tenant),
            last_used: now,
            known_open,
            turns: 0,
        })
    }

    /// Whether an idle session is still there. It is asked only if it has not
    /// answered for a while, or if another broke since.
    pub(crate) async fn is_usable(&self, session: &mut Session) -> bool {
        let now = Instant::now();
        let fresh = now.duration_since(session.known_open) < ASK_AFTER
            && self.pool().last_broken().is_none_or(|broken| broken < session.known_open);
        if fresh {
            return true;
        }
        let settled = is_settled(&mut session.connection).await;
        if settled {
            session.known_open = now;
        }
        settled
    }

    /// Closes a session, and answers when the server has closed it, too: only
    /// then may its permit be given to another.
    ///
    /// sqlx says goodbye, but gives no way to wait for the server. Another
    /// session can ask.
    pub(crate) async fn close(&self, session: Session, why: Closed) {
        let Session { tenant, connection, pid, .. } = session;
        self.activity.closed(tenant, why);
        let _said = timeout(CLOSE_TIMEOUT, connection.close()).await;
        let closed_at = Instant::now();
        let mut pause = ASK_CLOSED_AFTER;
        while closed_at.elapsed() < ASK_CLOSED_FOR {
            sleep(pause).await;
            pause *= 2;
            match self.is_open(pid).await {
                Some(true) => {}
                Some(false) => return,
                None if closed_at.elapsed() >= CLOSES_WITHIN => return,
                None => {}
            }
        }
    }

    /// Whether the server has a session of this number; `None` where there is
    /// no idle session to ask with.
    async fn is_open(&self, pid: i32) -> Option<bool> {
        let mut lent = self.pool().lend_idle()?;
        let asked = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_stat_get_activity($1))")
            .bind(pid)
            .fetch_one(&mut lent.connection);
        if let Ok(Ok(is_open)) = timeout(CLOSE_TIMEOUT, asked).await {
            self.pool().return_idle(lent);
            return Some(is_open);
        }
        self.activity.closed(lent.tenant, Closed::Broken);
        drop(lent);
        let mut pool = self.pool();
        pool.mark_broken(Instant::now());
        pool.forget_permits(1);
        None
    }

    /// Closes the idle sessions that are too old.
    pub(crate) async fn sweep(&self) {
        let now = Instant::now();
        let expired = self.pool().expire(now, IDLE_FOR);
        // At once: until they are closed, nobody has the use of their permits.
        let close = |session: Session| {
            let why = if session.closes_at <= now { Closed::Lifetime } else { Closed::Idle };
            self.close_expired(session, why)
        };
        join_all(expired.into_iter().map(close)).await;
    }

    /// Closes the idle sessions of a tenant.
    pub(crate) async fn close_idle_of(&self, tenant: Uuid) {
        let idle = self.pool().take_idle_of(tenant);
        let close = |session| self.close_expired(session, Closed::Revoked);
        join_all(idle.into_iter().map(close)).await;
    }

    async fn close_expired(&self, session: Session, why: Closed) {
        self.close(session, why).await;
        self.pool().forget_permits(1);
    }
}

/// Asks a new session for its number, and whether it is the one that the lease
/// is for. Whatever the registry has forgotten or mistaken: the database says
/// itself whose it is.
async fn begin(connection: &mut PgConnection, lease: &Lease) -> Result<i32, OpenError> {
    let begun = sqlx::query_as(
        "SELECT pg_backend_pid(), shobj_description(d.oid, 'pg_database'),
             EXISTS (
                 SELECT FROM pg_db_role_setting AS s
                 JOIN pg_roles AS r ON r.oid = s.setrole
                 WHERE r.rolname = session_user AND s.setdatabase IN (0, d.oid)
             )
         FROM pg_database AS d
         WHERE d.datname = current_database()",
    );
    let (pid, claim_id, has_settings): (i32, Option<String>, bool) =
        begun.persistent(false).fetch_one(connection).await.map_err(OpenError::Broken)?;
    if claim_id.as_ref() != Some(&lease.claim_id) {
        return Err(OpenError::OtherClaim);
    }
    if has_settings {
        return Err(OpenError::OwnSettings);
    }
    Ok(pid)
}

/// Whether a session whose work failed can be used again: the server answers,
/// and no transaction is open.
pub(crate) async fn is_settled(connection: &mut PgConnection) -> bool {
    !connection.is_in_transaction()
        && matches!(timeout(CLOSE_TIMEOUT, connection.ping()).await, Ok(Ok(())))
}

/// Sessions that were opened together are not closed together: the tenant's id
/// has enough chance in it.
fn jittered_lifetime(tenant: TenantId) -> Duration {
    let fraction = f64::from(tenant.as_uuid().as_bytes()[15]) / 255.0;
    LIFETIME.mul_f64(0.8 + 0.4 * fraction)
}

/// How many sessions tenants over their share have for large work: half of
/// PostgreSQL's cores, so that the other half is free for all others. Where it
/// runs elsewhere, its cores are taken to be as many as here.
fn large_sessions() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).max(1)
}
