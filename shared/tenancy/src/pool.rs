//! Which sessions are open, and who gets the next: one budget and one fair
//! queue for all tenants of a process.
//!
//! This is bookkeeping only; it never awaits. A permit is the right to one
//! open session. It moves from a closed session to the next one, so that
//! there are never more sessions than permits.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crm_auth::TenantId;
use sqlx::PgConnection;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How many callers of its own tenant a session serves before it goes to the
/// one that waits the longest.
const TURNS: u32 = 8;

/// An open session that nobody uses.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) tenant: TenantId,
    /// The generation of the login with which it was opened.
    pub(crate) generation: u32,
    pub(crate) connection: PgConnection,
    /// When it is closed at the latest.
    pub(crate) closes_at: Instant,
    pub(crate) last_used: Instant,
    /// How many callers it was handed to while others queued.
    pub(crate) turns: u32,
}

/// What a caller gets who asks for a session.
#[derive(Debug)]
pub(crate) enum Grant {
    /// An open session of the tenant.
    Session(Box<Session>),
    /// A permit to open one, once this session has been closed.
    Replace(Box<Session>),
    /// A permit to open one.
    Permit,
}

#[derive(Debug)]
struct Waiter {
    tenant: TenantId,
    session_cap: usize,
    grant: oneshot::Sender<Grant>,
}

/// The sessions of one process.
#[derive(Debug)]
pub(crate) struct Pool {
    budget: usize,
    /// Permits given out: sessions that are open, opening or closing.
    permits: usize,
    /// The least recently used first.
    idle: VecDeque<Session>,
    in_use: HashMap<TenantId, usize>,
    /// The longest waiting first.
    waiters: VecDeque<Waiter>,
    /// When a session was last found broken.
    last_broken: Option<Instant>,
}

impl Pool {
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            budget,
            permits: 0,
            idle: VecDeque::new(),
            in_use: HashMap::new(),
            waiters: VecDeque::new(),
            last_broken: None,
        }
    }

    /// Asks for a session: granted at once, or through the channel later.
    pub(crate) fn acquire(
        &mut self,
        tenant: TenantId,
        session_cap: usize,
    ) -> Result<Grant, oneshot::Receiver<Grant>> {
        if self.waits_for(tenant) == 0
            && let Some(grant) = self.grant(tenant, session_cap)
        {
            return Ok(grant);
        }
        let (grant, granted) = oneshot::channel();
        self.waiters.push_back(Waiter { tenant, session_cap, grant });
        Err(granted)
    }

    /// When a session was last found broken: others may be, too.
    pub(crate) fn last_broken(&self) -> Option<Instant> {
        self.last_broken
    }

    /// Remembers that a session was found broken.
    pub(crate) fn mark_broken(&mut self, at: Instant) {
        self.last_broken = Some(at);
    }

    /// Takes a clean session back.
    pub(crate) fn release(&mut self, mut session: Session) {
        let tenant = session.tenant;
        self.finish(tenant);
        // Closing and opening costs many times a call: a session first serves
        // its own tenant's queue, for some turns.
        let own = self.waiters.iter().position(|w| w.tenant == tenant && !w.grant.is_closed());
        if session.turns < TURNS
            && let Some(waiter) = own.and_then(|index| self.waiters.remove(index))
        {
            session.turns += 1;
            *self.in_use.entry(tenant).or_insert(0) += 1;
            if let Err(grant) = waiter.grant.send(Grant::Session(Box::new(session))) {
                self.take_back_unsent(grant, tenant);
                self.serve_waiters();
            }
            return;
        }
        session.turns = 0;
        self.idle.push_back(session);
        self.serve_waiters();
    }

    /// Takes the permit of a session back that was closed, or never opened.
    pub(crate) fn release_permit(&mut self, tenant: TenantId) {
        self.finish(tenant);
        self.permits -= 1;
        self.serve_waiters();
    }

    /// Takes a grant back whose receiver had given up.
    pub(crate) fn give_back(&mut self, grant: Grant, tenant: TenantId) -> Option<Session> {
        match grant {
            Grant::Session(session) => self.release(*session),
            Grant::Permit => self.release_permit(tenant),
            Grant::Replace(session) => return Some(*session),
        }
        None
    }

    /// Takes out the idle sessions that are too old. Their permits stay given
    /// until [`Pool::forget_permits`].
    pub(crate) fn expire(&mut self, now: Instant, idle_for: Duration) -> Vec<Session> {
        let (expired, kept) = self.idle.drain(..).partition(|session| {
            session.closes_at <= now || now.duration_since(session.last_used) >= idle_for
        });
        self.idle = kept;
        Vec::from_iter::<VecDeque<_>>(expired)
    }

    /// Takes the permits of expired sessions back, once they are closed.
    pub(crate) fn forget_permits(&mut self, count: usize) {
        self.permits -= count;
        self.serve_waiters();
    }

    fn grant(&mut self, tenant: TenantId, session_cap: usize) -> Option<Grant> {
        let in_use = self.in_use.get(&tenant).copied().unwrap_or(0);
        if in_use >= session_cap {
            return None;
        }
        // The most recently used of the tenant's own, so that the others age.
        let own = self.idle.iter().rposition(|session| session.tenant == tenant);
        let grant = if let Some(session) = own.and_then(|index| self.idle.remove(index)) {
            Grant::Session(Box::new(session))
        } else if self.permits < self.budget {
            self.permits += 1;
            Grant::Permit
        } else {
            // Another tenant's idle session makes room before anyone queues.
            Grant::Replace(Box::new(self.idle.pop_front()?))
        };
        *self.in_use.entry(tenant).or_insert(0) += 1;
        Some(grant)
    }

    fn finish(&mut self, tenant: TenantId) {
        if let Some(count) = self.in_use.get_mut(&tenant) {
            *count -= 1;
            if *count == 0 {
                self.in_use.remove(&tenant);
            }
        }
    }

    fn waits_for(&self, tenant: TenantId) -> usize {
        self.waiters.iter().filter(|w| w.tenant == tenant && !w.grant.is_closed()).count()
    }

    /// Gives what is free to those who wait, the longest waiting first. Those
    /// at their tenant's cap let others pass.
    fn serve_waiters(&mut self) {
        let mut index = 0;
        while index < self.waiters.len() {
            let waiter = &self.waiters[index];
            if waiter.grant.is_closed() {
                self.waiters.remove(index);
                continue;
            }
            let (tenant, session_cap) = (waiter.tenant, waiter.session_cap);
            let Some(grant) = self.grant(tenant, session_cap) else {
                index += 1;
                continue;
            };
            let Some(waiter) = self.waiters.remove(index) else { return };
            if let Err(grant) = waiter.grant.send(grant) {
                self.take_back_unsent(grant, tenant);
            }
        }
    }

    /// The receiver vanished between the check and the sending.
    fn take_back_unsent(&mut self, grant: Grant, tenant: TenantId) {
        self.finish(tenant);
        match grant {
            Grant::Session(session) => self.idle.push_back(*session),
            Grant::Replace(session) => self.idle.push_front(*session),
            Grant::Permit => self.permits -= 1,
        }
    }
}
