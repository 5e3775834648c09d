//! Time and ids, as a parameter: tests set the clock, and nothing else in the
//! workspace asks the machine for the time or makes an id.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use uuid::{NoContext, Timestamp, Uuid};

/// A source of time and ids. Clones share the same time.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// How far this clock is ahead of the machine's, in microseconds.
    offset: Arc<AtomicI64>,
}

impl Clock {
    /// The time now, in microseconds, as PostgreSQL stores it.
    pub fn now(&self) -> DateTime<Utc> {
        #[expect(clippy::disallowed_methods, reason = "the one place that asks the machine")]
        let machine = Utc::now().trunc_subsecs(6);
        machine + TimeDelta::microseconds(self.offset.load(Ordering::Relaxed))
    }

    /// Moves this clock ahead of the machine's.
    pub fn advance(&self, by: TimeDelta) {
        self.offset.fetch_add(by.num_microseconds().unwrap_or(0), Ordering::Relaxed);
    }

    /// A new id: a UUIDv7 (RFC 9562), so that ids sort by time.
    pub fn new_id(&self) -> Uuid {
        let now = self.now();
        let seconds = u64::try_from(now.timestamp()).unwrap_or(0);
        #[expect(clippy::disallowed_methods, reason = "the one place that makes ids")]
        Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, now.timestamp_subsec_nanos()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advanced_clock_advances_its_clones_and_ids() {
        let clock = Clock::default();
        let before = clock.new_id();

        clock.clone().advance(TimeDelta::hours(1));

        assert!(clock.now() > Clock::default().now() + TimeDelta::minutes(59));
        assert!(clock.new_id() > before);
    }
}
