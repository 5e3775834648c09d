//! Who has had more than a fair share of the sessions' time, beside others.
//!
//! Each tenant has an account of the time that sessions spent on it, decoding
//! of what they read included: its virtual time. The floor is the least that
//! any active tenant has; whoever is far above it is over its share. A tenant
//! that comes begins at the floor, so nobody saves up time by staying away.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// How far above the floor a tenant may be.
const TOLERANCE: Duration = Duration::from_millis(50);
/// How long a tenant counts as active after its last session.
const ACTIVE_FOR: Duration = Duration::from_millis(100);
/// By which part of the time that passes the floor rises at least: so much of
/// a session each tenant may have all the time, beside however small ones.
const FLOOR_RISES_BY: u32 = 10;
/// How often the accounts are looked over.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What one tenant has had.
#[derive(Debug)]
struct Account {
    spent: Duration,
    /// How many sessions spend now.
    sessions: u32,
    is_waiting: bool,
    /// Until when `spent` counts them, or when the tenant was last active.
    counted: Instant,
}

impl Account {
    fn is_active(&self) -> bool {
        self.sessions > 0 || self.is_waiting
    }

    fn count(&mut self, now: Instant) {
        if self.is_active() {
            self.spent += now.duration_since(self.counted) * self.sessions;
            self.counted = now;
        }
    }
}

/// The accounts of all tenants that are active, or just were.
#[derive(Debug)]
pub(crate) struct Accounts<T> {
    accounts: HashMap<T, Account>,
    floor: Duration,
    looked: Instant,
}

impl<T: Copy + Eq + Hash> Accounts<T> {
    pub(crate) fn new(now: Instant) -> Self {
        Self { accounts: HashMap::new(), floor: Duration::ZERO, looked: now }
    }

    /// Notes how many sessions a tenant has from now on, and whether it waits
    /// for one.
    pub(crate) fn note(&mut self, tenant: T, sessions: usize, waits: bool, now: Instant) {
        self.look(now);
        let new = Account { spent: self.floor, sessions: 0, is_waiting: false, counted: now };
        let account = self.accounts.entry(tenant).or_insert(new);
        account.count(now);
        account.sessions = u32::try_from(sessions).unwrap_or(u32::MAX);
        account.is_waiting = waits;
        account.counted = now;
    }

    /// Whether a tenant has had more than its share.
    pub(crate) fn is_over(&mut self, tenant: T, now: Instant) -> bool {
        self.look(now);
        let limit = self.floor + TOLERANCE;
        self.accounts.get_mut(&tenant).is_some_and(|account| {
            account.count(now);
            account.spent > limit
        })
    }

    /// Forgets who is not active any more, and raises the floor.
    fn look(&mut self, now: Instant) {
        let passed = now.duration_since(self.looked);
        if passed < LOOK_EVERY {
            return;
        }
        self.accounts.retain(|_, account| {
            account.count(now);
            now.duration_since(account.counted) < ACTIVE_FOR
        });
        let least = self.accounts.values().map(|account| account.spent).min();
        self.floor += passed / FLOOR_RISES_BY;
        self.floor = self.floor.max(least.unwrap_or_default());
        for account in self.accounts.values_mut() {
            account.spent = account.spent.max(self.floor);
        }
        self.looked = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accounts, and a clock that only the test moves.
    struct Case {
        accounts: Accounts<u32>,
        now: Instant,
    }

    impl Case {
        fn new() -> Self {
            let now = Instant::now();
            Self { accounts: Accounts::new(now), now }
        }

        fn pass(&mut self, millis: u64) {
            self.now += Duration::from_millis(millis);
        }

        fn note(&mut self, tenant: u32, sessions: usize) {
            self.accounts.note(tenant, sessions, false, self.now);
        }

        /// Which of the tenants 1 to 3 are over their share.
        fn over(&mut self) -> Vec<u32> {
            (1..=3).filter(|tenant| self.accounts.is_over(*tenant, self.now)).collect()
        }
    }

    #[test]
    fn a_tenant_alone_is_never_over_its_share() {
        let mut case = Case::new();
        case.note(1, 10);

        for _ in 0..100 {
            case.pass(7);
            assert!(case.over().is_empty());
        }
    }

    #[test]
    fn who_spends_more_beside_others_is_over_its_share_until_they_are_gone() {
        let mut case = Case::new();
        case.note(1, 10);
        case.pass(1000);
        // What it had alone does not count against it.
        case.note(2, 1);
        assert!(case.over().is_empty());

        // 9 ms of 10 sessions beside one are more than 50 ms, 5 ms are not.
        case.pass(5);
        assert!(case.over().is_empty());
        case.pass(4);
        assert_eq!(case.over(), [1]);
        case.note(2, 0);
        case.pass(99);
        assert_eq!(case.over(), [1]);
        case.pass(1);
        assert!(case.over().is_empty());
    }

    #[test]
    fn what_was_spent_too_much_is_made_up_for() {
        let mut case = Case::new();
        case.note(1, 10);
        case.note(2, 1);
        case.pass(20);
        assert_eq!(case.over(), [1]);

        // The other catches up with what the first one had.
        case.note(1, 0);
        case.note(2, 2);
        case.pass(60);
        assert_eq!(case.over(), [1]);
        case.pass(10);
        assert!(case.over().is_empty());
    }

    #[test]
    fn a_tenth_of_a_session_is_never_too_much() {
        let mut case = Case::new();
        // The other is there all the time, and spends nothing.
        case.accounts.note(2, 0, true, case.now);
        for turn in 0..1000 {
            case.note(1, usize::from(turn % 10 == 0));
            case.pass(1);
            assert!(case.over().is_empty(), "turn {turn}");
        }
    }

    #[test]
    fn who_stays_away_saves_nothing_up() {
        let mut case = Case::new();
        case.note(1, 1);
        case.note(2, 1);
        case.pass(10);
        case.note(2, 0);
        case.pass(60_000);
        case.note(2, 10);
        case.note(3, 1);

        case.pass(9);

        assert_eq!(case.over(), [2]);
    }
}
