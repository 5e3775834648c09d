//! What is known of raising a schema in a tenant's database.

use chrono::{DateTime, TimeDelta, Utc};
use crm_proto::registry::v1::tenant_migration::State;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::tenant::TenantKey;

/// The longest time between two attempts.
const MAX_BACKOFF_SECONDS: i64 = 60;

/// The schema of one service in the database of one tenant.
#[derive(Clone, Debug)]
pub(crate) struct TenantMigration {
    pub(crate) key: MigrationKey,
    pub(crate) current_version: i32,
    pub(crate) target_version: i32,
    pub(crate) state: State,
    pub(crate) attempts: i32,
    pub(crate) last_error: Option<String>,
    pub(crate) update_time: DateTime<Utc>,
}

/// Which schema in which database; also its place in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MigrationKey {
    pub(crate) tenant_id: Uuid,
    pub(crate) service: String,
}

/// Which schemas a list shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct MigrationFilter {
    /// `None`: all tenants'.
    pub(crate) tenant: Option<TenantKey>,
    pub(crate) state: Option<State>,
    pub(crate) service: Option<String>,
    pub(crate) page_size: i64,
}

/// How far the wave of one service is, in numbers of databases.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct ServiceMigrations {
    pub(crate) service: String,
    pub(crate) target_version: i32,
    pub(crate) total: i64,
    pub(crate) current: i64,
    pub(crate) pending: i64,
    pub(crate) running: i64,
    pub(crate) failed: i64,
    pub(crate) stopped: bool,
}

/// Whether a text is the name of a service.
pub(crate) fn is_service(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// When to try again after so many attempts: soon at first, then less often.
pub(super) fn retry_time(attempts: i32, now: DateTime<Utc>) -> DateTime<Utc> {
    let doubled = attempts.clamp(1, 7).unsigned_abs() - 1;
    now + TimeDelta::seconds((1_i64 << doubled).min(MAX_BACKOFF_SECONDS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_follow_each_other_ever_more_slowly_up_to_a_minute() {
        let now = DateTime::UNIX_EPOCH;

        let waits: Vec<_> =
            [0, 1, 2, 3, 6, 7, 1000].map(|n| (retry_time(n, now) - now).num_seconds()).into();

        assert_eq!(waits, [1, 1, 2, 4, 32, 60, 60]);
    }
}
