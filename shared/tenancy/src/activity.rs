//! What tenants do with their sessions: figures for the metrics of the
//! process, and for the registry, where operators see them by tenant.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use crm_auth::TenantId;
use crm_clock::Clock;
use crm_proto::registry::v1::{SessionsClosed, TenantCalls};

use crate::error::SessionError;
use crate::share::Counts;

/// How many calls of one tenant may be under way, waiting ones included.
const CALLS_PER_TENANT: usize = 128;

/// Why a session was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// Nobody used it for a while.
    Idle,
    /// It was old.
    Lifetime,
    /// Another tenant needed its place.
    Evicted,
    /// Its work was cut off, or left a transaction open.
    Busy,
    /// The server had ended it, or does not answer on it.
    Broken,
    /// Its login is not the newest, or its tenant is not active.
    Revoked,
}

impl Closed {
    fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::Evicted => "evicted",
            Self::Busy => "busy",
            Self::Broken => "broken",
            Self::Revoked => "revoked",
        }
    }
}

/// What a tenant did since the last report.
#[derive(Clone, Debug, Default)]
struct Figures {
    under_way: usize,
    is_news: bool,
    calls: i64,
    refused: i64,
    opened: i64,
    closed: SessionsClosed,
    last_call: Option<DateTime<Utc>>,
}

/// The figures of one process. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Activity {
    service: &'static str,
    clock: Clock,
    figures: Arc<Mutex<HashMap<TenantId, Figures>>>,
    /// The greatest revision that was written, in whichever tenant's log.
    newest_revision: Arc<AtomicI64>,
}

/// A call that was let in, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    activity: Activity,
    tenant: TenantId,
}

impl Activity {
    pub(crate) fn new(service: &'static str, clock: Clock) -> Self {
        Self { service, clock, figures: Arc::default(), newest_revision: Arc::default() }
    }

    /// Lets a call in, unless its tenant has too many under way already: one
    /// tenant must not fill the queue for all.
    pub(crate) fn admit(&self, tenant: TenantId) -> Result<Turn, SessionError> {
        let now = self.clock.now();
        let mut all = self.figures();
        let figures = all.entry(tenant).or_default();
        figures.is_news = true;
        if figures.under_way >= CALLS_PER_TENANT {
            figures.refused += 1;
            return Err(SessionError::Exhausted);
        }
        figures.calls += 1;
        figures.last_call = Some(now);
        figures.under_way += 1;
        Ok(Turn { activity: self.clone(), tenant })
    }

    /// A session was opened.
    pub(crate) fn opened(&self, tenant: TenantId) {
        metrics::counter!("crm_sessions_opened_total", "service" => self.service).increment(1);
        self.note(tenant, |figures| figures.opened += 1);
    }

    /// A session was closed.
    pub(crate) fn closed(&self, tenant: TenantId, why: Closed) {
        let reason = why.label();
        metrics::counter!("crm_sessions_closed_total", "service" => self.service, "reason" => reason)
            .increment(1);
        self.note(tenant, |figures| {
            let closed = &mut figures.closed;
            *match why {
                Closed::Idle => &mut closed.idle,
                Closed::Lifetime => &mut closed.lifetime,
                Closed::Evicted => &mut closed.evicted,
                Closed::Busy => &mut closed.busy,
                Closed::Broken => &mut closed.broken,
                Closed::Revoked => &mut closed.revoked,
            } += 1;
        });
    }

    /// A call was refused since no session came free in time.
    pub(crate) fn refused(&self, tenant: TenantId) {
        self.note(tenant, |figures| figures.refused += 1);
    }

    /// A write was answered, the first time or again.
    pub(crate) fn wrote(&self, revision: i64) {
        metrics::counter!("crm_writes_total", "service" => self.service).increment(1);
        self.newest_revision.fetch_max(revision, Ordering::Relaxed);
    }

    /// A caller waited in the queue.
    pub(crate) fn waited(&self, time: Duration) {
        metrics::histogram!("crm_session_wait_seconds", "service" => self.service)
            .record(time.as_secs_f64());
    }

    /// Publishes how many sessions there are, and how far the logs are.
    pub(crate) fn publish(&self, counts: Counts) {
        let states =
            [("in_use", counts.in_use), ("idle", counts.idle), ("waiting", counts.waiting)];
        for (state, count) in states {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            metrics::gauge!("crm_sessions", "service" => self.service, "state" => state).set(count);
        }
        let revision = self.newest_revision.load(Ordering::Relaxed);
        metrics::gauge!("crm_log_revision", "service" => self.service).set(revision as f64);
    }

    /// Takes out what is new since the last time, for a report. Sessions are
    /// counted as they are now.
    pub(crate) fn take_news(&self, counts_of: impl Fn(TenantId) -> Counts) -> Vec<TenantCalls> {
        let mut news = Vec::new();
        self.figures().retain(|tenant, figures| {
            if figures.is_news {
                let under_way = figures.under_way;
                let taken = std::mem::take(figures);
                figures.under_way = under_way;
                news.push((*tenant, taken));
            }
            figures.under_way > 0
        });
        news.into_iter()
            .map(|(tenant, figures)| reported(tenant, figures, counts_of(tenant)))
            .collect()
    }

    fn note(&self, tenant: TenantId, note: impl FnOnce(&mut Figures)) {
        let mut all = self.figures();
        let figures = all.entry(tenant).or_default();
        figures.is_news = true;
        note(figures);
    }

    fn figures(&self) -> MutexGuard<'_, HashMap<TenantId, Figures>> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.activity.note(self.tenant, |figures| figures.under_way -= 1);
    }
}

fn reported(tenant: TenantId, figures: Figures, counts: Counts) -> TenantCalls {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    TenantCalls {
        tenant: format!("tenants/{tenant}"),
        sessions_in_use: count(counts.in_use),
        sessions_idle: count(counts.idle),
        calls_waiting: count(counts.waiting),
        sessions_opened: figures.opened,
        sessions_closed: Some(figures.closed),
        calls: figures.calls,
        calls_refused: figures.refused,
        last_call_time: figures.last_call.map(|time| prost_types::Timestamp {
            seconds: time.timestamp(),
            nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or(0),
        }),
    }
}
