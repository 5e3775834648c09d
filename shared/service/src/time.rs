//! Times, as messages carry them.

use chrono::{DateTime, Utc};
use prost_types::Timestamp;

/// A time as a message carries it.
pub fn timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp {
        seconds: time.timestamp(),
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default(),
    }
}
