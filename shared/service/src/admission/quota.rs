//! How much there is of something, and how much of it one may have.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crm_error::{ApiError, ErrorReason};
use metrics::{Counter, Gauge};

/// When it may be tried again.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The bounds of a [`Quota`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// All there is.
    pub(crate) total: usize,
    /// What of that is kept for those who must get in whatever others do.
    pub(crate) kept: usize,
    /// Up to here nobody is in another's way.
    pub(crate) contended: usize,
    /// What one may have beyond that.
    pub(crate) each: usize,
}

/// Something of which there is only so much, shared by keys.
#[derive(Debug)]
pub(crate) struct Quota<K> {
    name: &'static str,
    bounds: Bounds,
    taken: Mutex<Taken<K>>,
    in_use: Gauge,
    refused: Counter,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// There is no more, for now, for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spent(&'static str);

impl From<Spent> for ApiError {
    fn from(Spent(limit): Spent) -> Self {
        Self::new(ErrorReason::Overloaded, "the server is overloaded, or by this caller")
            .with_metadata("limit", limit)
            .with_retry_after(RETRY_AFTER)
    }
}

impl<K: Eq + Hash + Clone> Quota<K> {
    /// By this name in metrics and refusals.
    pub(crate) fn new(name: &'static str, bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            name,
            bounds,
            taken: Mutex::new(Taken { all: 0, by: HashMap::new() }),
            in_use: metrics::gauge!("crm_admission_in_use", "limit" => name),
            refused: metrics::counter!("crm_admission_refused_total", "limit" => name),
        })
    }

    /// Takes some of it, until the share is dropped.
    pub(crate) fn take(self: &Arc<Self>, key: K, amount: usize) -> Result<Share<K>, Spent> {
        self.take_within(self.bounds, key, amount)
    }

    /// As [`take`](Self::take), also of what is kept.
    pub(crate) fn take_kept(self: &Arc<Self>, key: K, amount: usize) -> Result<Share<K>, Spent> {
        self.take_within(Bounds { kept: 0, ..self.bounds }, key, amount)
    }

    /// As [`take`](Self::take), where one may have so much.
    pub(crate) fn take_up_to(
        self: &Arc<Self>,
        each: usize,
        key: K,
        amount: usize,
    ) -> Result<Share<K>, Spent> {
        self.take_within(Bounds { each, ..self.bounds }, key, amount)
    }

    fn take_within(
        self: &Arc<Self>,
        bounds: Bounds,
        key: K,
        amount: usize,
    ) -> Result<Share<K>, Spent> {
        let mut share = Share { quota: self.clone(), bounds, key, amount: 0 };
        share.grow(amount)?;
        Ok(share)
    }

    fn taken(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What someone has of a [`Quota`].
#[derive(Debug)]
pub(crate) struct Share<K: Eq + Hash + Clone> {
    quota: Arc<Quota<K>>,
    bounds: Bounds,
    key: K,
    amount: usize,
}

impl<K: Eq + Hash + Clone> Share<K> {
    /// Takes more. Whoever has nothing else may have one share of any size.
    pub(crate) fn grow(&mut self, more: usize) -> Result<(), Spent> {
        let Bounds { total, kept, contended, each } = self.bounds;
        let mut taken = self.quota.taken();
        let own = taken.by.get(&self.key).copied().unwrap_or(0);
        let is_only = self.amount > 0 && own == self.amount;
        let is_crowded = taken.all + more > contended && own + more > each && !is_only;
        if taken.all + more > total - kept || is_crowded {
            self.quota.refused.increment(1);
            return Err(Spent(self.quota.name));
        }
        taken.all += more;
        *taken.by.entry(self.key.clone()).or_default() += more;
        self.amount += more;
        self.quota.in_use.increment(more as f64);
        Ok(())
    }
}

impl<K: Eq + Hash + Clone> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.quota.taken();
        taken.all -= self.amount;
        let left = taken.by.get_mut(&self.key).map(|own| {
            *own -= self.amount;
            *own
        });
        if left == Some(0) {
            taken.by.remove(&self.key);
        }
        self.quota.in_use.decrement(self.amount as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota() -> Arc<Quota<&'static str>> {
        Quota::new("things", Bounds { total: 10, kept: 2, contended: 4, each: 2 })
    }

    #[test]
    fn one_may_have_what_nobody_else_needs() {
        let quota = quota();
        let taken: Vec<_> = (0..4).map(|_| quota.take("greedy", 1).unwrap()).collect();

        assert!(quota.take("greedy", 1).is_err());
        let other = quota.take("other", 2).unwrap();
        assert!(quota.take("other", 1).is_err());
        let third = quota.take("third", 2).unwrap();

        assert!(quota.take("fourth", 1).is_err(), "the rest is kept");
        assert!(quota.take_kept("operator", 2).is_ok());
        drop((taken, other, third));
        assert!(quota.take("greedy", 4).is_ok());
    }

    #[test]
    fn nothing_is_remembered_of_whoever_has_nothing() {
        let quota = quota();

        for key in ["a", "b", "c"] {
            drop(quota.take(key, 1).unwrap());
            quota.take(key, 100).unwrap_err();
        }

        let taken = quota.taken();
        assert!(taken.all == 0 && taken.by.is_empty(), "{taken:?}");
    }

    #[test]
    fn one_share_may_be_as_large_as_there_is_room() {
        let quota = quota();
        let mut large = quota.take("large", 1).unwrap();

        large.grow(6).unwrap();

        quota.take("large", 1).unwrap_err();
        assert!(large.grow(2).is_err(), "the rest is kept");
        assert!(quota.take("small", 1).is_ok());
    }
}
