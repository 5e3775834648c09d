//! Which sessions are open, and who gets the next: one budget and one fair
//! queue for all tenants of a cluster.
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
use uuid::Uuid;

use crate::fair::Accounts;
use crate::share::{Counts, Share, Size};

/// How many callers of its own tenant a session serves before it goes to the
/// one that waits the longest.
const TURNS: u32 = 8;

/// An open session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) tenant: TenantId,
    /// The generation of the login with which it was opened.
    pub(crate) generation: u32,
    pub(crate) connection: PgConnection,
    /// The server's number for it.
    pub(crate) pid: i32,
    /// When it is closed at the latest.
    pub(crate) closes_at: Instant,
    pub(crate) last_used: Instant,
    /// A moment at which the server had not ended it yet: before it was last
    /// asked for what it then answered.
    pub(crate) known_open: Instant,
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

/// The answer to a caller who asks for a session.
#[derive(Debug)]
pub(crate) enum Asked {
    /// At once.
    Granted(Grant),
    /// Later, through the channel. It closes without a grant where the
    /// tenant's database turns out to be out of reach.
    Queued(Place, oneshot::Receiver<Grant>),
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

#[derive(Debug)]
struct Waiter {
    place: Place,
    tenant: TenantId,
    session_cap: usize,
    size: Size,
    grant: oneshot::Sender<Grant>,
}

/// The sessions of one process in one cluster.
#[derive(Debug)]
pub(crate) struct Pool {
    budget: usize,
    /// Permits given out: sessions that are open, opening or closing.
    permits: usize,
    /// The least recently used first.
    idle: VecDeque<Session>,
    /// Tenants that have any.
    shares: HashMap<TenantId, Share>,
    /// The longest waiting first.
    waiters: VecDeque<Waiter>,
    /// What each tenant has had of the sessions' time.
    accounts: Accounts<TenantId>,
    /// How many sessions all tenants over their share may have for large work.
    large_sessions: usize,
    next_turn: u64,
    next_place: u64,
    /// When a session was last found broken.
    last_broken: Option<Instant>,
}

impl Pool {
    pub(crate) fn new(budget: usize, large_sessions: usize) -> Self {
        Self {
            budget,
            permits: 0,
            idle: VecDeque::new(),
            shares: HashMap::new(),
            waiters: VecDeque::new(),
            accounts: Accounts::new(Instant::now()),
            large_sessions,
            next_turn: 1,
            next_place: 0,
            last_broken: None,
        }
    }

    /// Asks for a session: granted at once, or through the channel later.
    pub(crate) fn acquire(&mut self, tenant: TenantId, session_cap: usize, size: Size) -> Asked {
        if self.share(tenant).waiting(size) == 0
            && self.is_in_turn(tenant, size)
            && let Some(grant) = self.grant(tenant, session_cap, size)
        {
            return Asked::Granted(grant);
        }
        let (grant, granted) = oneshot::channel();
        let place = Place(self.next_place);
        self.next_place += 1;
        self.waiters.push_back(Waiter { place, tenant, session_cap, size, grant });
        self.change(tenant, |share| share.queue(size));
        Asked::Queued(place, granted)
    }

    /// Leaves the queue. Whoever is not in it any more has been granted
    /// something.
    pub(crate) fn leave(&mut self, place: Place) {
        if let Some(index) = self.waiters.iter().position(|waiter| waiter.place == place) {
            self.take_waiter(index);
        }
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
    pub(crate) fn release(&mut self, mut session: Session, size: Size) {
        let tenant = session.tenant;
        // Closing and opening costs many times a call: a session first serves
        // its own tenant's queue, for some turns.
        let only_small = self.is_over(tenant);
        let own = self.waiters.iter().position(|waiter| {
            waiter.tenant == tenant && !(only_small && waiter.size == Size::Large)
        });
        self.change(tenant, |share| share.end(size));
        if session.turns < TURNS
            && let Some(waiter) = own.and_then(|index| self.take_waiter(index))
        {
            session.turns += 1;
            self.change(tenant, |share| share.begin(waiter.size));
            let Err(grant) = waiter.grant.send(Grant::Session(Box::new(session))) else { return };
            self.take_back_unsent(grant, tenant, waiter.size);
        } else {
            session.turns = 0;
            self.idle.push_back(session);
        }
        self.serve_waiters();
    }

    /// Takes the permit of a session back that was closed, or never opened.
    pub(crate) fn release_permit(&mut self, tenant: TenantId, size: Size) {
        self.change(tenant, |share| share.end(size));
        self.permits -= 1;
        self.serve_waiters();
    }

    /// Asks to open a session with the permit of one that was closed. Where
    /// another is opening already, the permit has to go back.
    pub(crate) fn open_instead(&mut self, tenant: TenantId) -> bool {
        let is_first = !self.share(tenant).is_opening;
        self.change(tenant, |share| share.is_opening = true);
        is_first
    }

    /// A session of the tenant was opened.
    pub(crate) fn opened(&mut self, tenant: TenantId) {
        self.change(tenant, |share| share.is_opening = false);
        self.serve_waiters();
    }

    /// A session of the tenant could not be opened. Where it has no other,
    /// those who wait for one learn it now.
    pub(crate) fn not_opened(&mut self, tenant: TenantId) {
        self.change(tenant, |share| share.is_opening = false);
        if self.share(tenant).in_use <= 1 {
            self.waiters.retain(|waiter| waiter.tenant != tenant);
            self.change(tenant, |share| (share.waiting, share.waiting_large) = (0, 0));
        }
        self.serve_waiters();
    }

    /// Takes out the idle sessions that are too old. Their permits stay given
    /// until [`Pool::forget_permits`].
    pub(crate) fn expire(&mut self, now: Instant, idle_for: Duration) -> Vec<Session> {
        self.take_idle(|session| {
            session.closes_at <= now || now.duration_since(session.last_used) >= idle_for
        })
    }

    /// Takes out the idle sessions of one tenant, as [`Pool::expire`] does.
    pub(crate) fn take_idle_of(&mut self, tenant: Uuid) -> Vec<Session> {
        self.take_idle(|session| session.tenant.as_uuid() == tenant)
    }

    /// Takes the permits of expired sessions back, once they are closed.
    pub(crate) fn forget_permits(&mut self, count: usize) {
        self.permits -= count;
        self.serve_waiters();
    }

    /// Lends the session that is the next to be closed.
    pub(crate) fn lend_idle(&mut self) -> Option<Session> {
        self.idle.pop_front()
    }

    /// Takes a lent session back.
    pub(crate) fn return_idle(&mut self, session: Session) {
        self.idle.push_front(session);
        self.serve_waiters();
    }

    /// How many sessions there are, of all tenants.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            in_use: self.permits - self.idle.len(),
            idle: self.idle.len(),
            waiting: self.waiters.len(),
        }
    }

    /// How many sessions a tenant has.
    pub(crate) fn counts_of(&self, tenant: TenantId) -> Counts {
        let Share { in_use, waiting, .. } = self.share(tenant);
        let idle = self.idle.iter().filter(|session| session.tenant == tenant).count();
        Counts { in_use, idle, waiting }
    }

    fn grant(&mut self, tenant: TenantId, session_cap: usize, size: Size) -> Option<Grant> {
        let share = self.share(tenant);
        if share.in_use >= session_cap {
            return None;
        }
        // The most recently used of the tenant's own, so that the others age.
        let own = self.idle.iter().rposition(|session| session.tenant == tenant);
        if let Some(session) = own.and_then(|index| self.idle.remove(index)) {
            self.change(tenant, |share| share.begin(size));
            return Some(Grant::Session(Box::new(session)));
        }
        if share.is_opening {
            return None;
        }
        let grant = if self.permits < self.budget {
            self.permits += 1;
            Grant::Permit
        } else {
            // Another tenant's idle session makes room before anyone queues.
            Grant::Replace(Box::new(self.idle.pop_front()?))
        };
        self.change(tenant, |share| {
            share.begin(size);
            share.is_opening = true;
        });
        Some(grant)
    }

    /// Whether a tenant has had more than its share of the sessions' time.
    fn is_over(&mut self, tenant: TenantId) -> bool {
        self.accounts.is_over(tenant, Instant::now())
    }

    /// Whether a tenant may have another session for work of this size: those
    /// that are over their share have few for large work, all together.
    fn is_in_turn(&mut self, tenant: TenantId, size: Size) -> bool {
        size == Size::Small || !self.is_over(tenant) || self.has_room_for_large()
    }

    fn has_room_for_large(&mut self) -> bool {
        let now = Instant::now();
        let at_work = self
            .shares
            .iter()
            .filter(|(tenant, share)| share.large > 0 && self.accounts.is_over(**tenant, now));
        at_work.map(|(_, share)| share.large).sum::<usize>() < self.large_sessions
    }

    fn share(&self, tenant: TenantId) -> Share {
        self.shares.get(&tenant).copied().unwrap_or_default()
    }

    fn change(&mut self, tenant: TenantId, change: impl FnOnce(&mut Share)) {
        let share = self.shares.entry(tenant).or_default();
        change(share);
        self.accounts.note(tenant, share.in_use, share.waiting > 0, Instant::now());
        if share.is_empty() {
            self.shares.remove(&tenant);
        }
    }

    fn take_idle(&mut self, which: impl Fn(&Session) -> bool) -> Vec<Session> {
        let (taken, kept) = self.idle.drain(..).partition(which);
        self.idle = kept;
        Vec::from_iter::<VecDeque<_>>(taken)
    }

    fn take_waiter(&mut self, index: usize) -> Option<Waiter> {
        let waiter = self.waiters.remove(index)?;
        self.change(waiter.tenant, |share| share.leave(waiter.size));
        Some(waiter)
    }

    /// Gives what is free to those who wait, the longest waiting first. Those
    /// whose tenant can have no more let others pass.
    fn serve_waiters(&mut self) {
        let mut index = 0;
        let mut over = Vec::new();
        while let Some(waiter) = self.waiters.get(index) {
            let (tenant, size) = (waiter.tenant, waiter.size);
            if size == Size::Large && (over.contains(&tenant) || self.is_over(tenant)) {
                if !over.contains(&tenant) {
                    over.push(tenant);
                }
                index += 1;
            } else if !self.serve(index) {
                index += 1;
            }
        }
        while self.serve_large(&mut over) {}
    }

    /// Serves one of the tenants that are over their share. They take turns:
    /// whoever asks the most gets no more than the others.
    fn serve_large(&mut self, over: &mut [TenantId]) -> bool {
        over.sort_by_key(|tenant| self.share(*tenant).turn);
        for &tenant in over.iter() {
            let is_its = |waiter: &Waiter| waiter.tenant == tenant && waiter.size == Size::Large;
            let first = self.waiters.iter().position(is_its);
            if self.has_room_for_large() && first.is_some_and(|index| self.serve(index)) {
                let turn = self.next_turn;
                self.next_turn += 1;
                self.change(tenant, |share| share.turn = turn);
                return true;
            }
        }
        false
    }

    /// Grants a waiter what it waits for, if there is room.
    fn serve(&mut self, index: usize) -> bool {
        let Some(waiter) = self.waiters.get(index) else { return false };
        let (tenant, session_cap, size) = (waiter.tenant, waiter.session_cap, waiter.size);
        let Some(grant) = self.grant(tenant, session_cap, size) else { return false };
        let Some(waiter) = self.take_waiter(index) else { return false };
        if let Err(grant) = waiter.grant.send(grant) {
            self.take_back_unsent(grant, tenant, size);
        }
        true
    }

    /// The receiver is gone: its process is about to end.
    fn take_back_unsent(&mut self, grant: Grant, tenant: TenantId, size: Size) {
        self.change(tenant, |share| share.end(size));
        match grant {
            Grant::Session(session) => self.idle.push_back(*session),
            Grant::Replace(session) => {
                self.idle.push_front(*session);
                self.change(tenant, |share| share.is_opening = false);
            }
            Grant::Permit => {
                self.permits -= 1;
                self.change(tenant, |share| share.is_opening = false);
            }
        }
    }
}
