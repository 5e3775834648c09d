//! What PostgreSQL says of the sessions of tenants, again and again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crm_testing::Server;
use sqlx::PgConnection;

/// How often it is asked.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A session that is idle in one transaction for so many looks is stuck: more
/// than two seconds, and more where this program itself gets no time.
const STUCK_AFTER: usize = 41;
/// How long the work that still runs may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) looks: usize,
    /// The most sessions of one service.
    pub(crate) most: usize,
    /// The longest that a session was idle in one transaction.
    pub(crate) longest_idle: Duration,
    /// How many were stuck.
    pub(crate) stuck: usize,
}

/// A session, as PostgreSQL tells of it.
#[derive(sqlx::FromRow)]
struct Look {
    pid: i32,
    service: String,
    state: String,
    /// Since when it has that state, in microseconds.
    since: i64,
    seconds: f64,
}

impl Look {
    fn is_idle_in_transaction(&self) -> bool {
        self.state.starts_with("idle in transaction")
    }
}

/// Looks until `is_over`, and then until all sessions are at rest. It says so
/// itself that it is over once a session is stuck.
pub(crate) async fn watch(server: &Server, is_over: &AtomicBool) -> Seen {
    let mut superuser = server.superuser("postgres").await;
    let mut seen = Seen::default();
    // How often each was seen idle in the same transaction.
    let mut idle: HashMap<(i32, i64), usize> = HashMap::new();
    let mut ended: Option<Instant> = None;
    loop {
        let sessions = look(&mut superuser).await;
        seen.looks += 1;
        for service in ["contacts", "messaging"] {
            let count = sessions.iter().filter(|session| session.service == service).count();
            seen.most = seen.most.max(count);
        }
        let of_session = |session: &Look| (session.pid, session.since);
        let now = sessions.iter().filter(|session| session.is_idle_in_transaction());
        let before = std::mem::take(&mut idle);
        for session in now {
            let count = before.get(&of_session(session)).map_or(1, |count| count + 1);
            idle.insert(of_session(session), count);
            let idle_for = Duration::from_secs_f64(session.seconds.max(0.0));
            seen.longest_idle = seen.longest_idle.max(idle_for);
            if count == STUCK_AFTER {
                seen.stuck += 1;
                is_over.store(true, Ordering::Relaxed);
            }
        }
        if is_over.load(Ordering::Relaxed) {
            if sessions.iter().all(|session| session.state == "idle") {
                return seen;
            }
            let ended = ended.get_or_insert_with(Instant::now);
            assert!(ended.elapsed() < PATIENCE, "sessions never come to rest: {seen:?}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(superuser: &mut PgConnection) -> Vec<Look> {
    sqlx::query_as(
        r"
            SELECT pid
                 , substring(usename FROM '^t_[0-9a-f]{32}_([a-z]+)_g') AS service
                 , state
                 , (extract(epoch FROM state_change) * 1000000)::int8 AS since
                 , extract(epoch FROM clock_timestamp() - state_change)::float8 AS seconds
            FROM pg_stat_activity
            WHERE usename LIKE 't\_%' AND state IS NOT NULL
        ",
    )
    .fetch_all(superuser)
    .await
    .unwrap()
}
