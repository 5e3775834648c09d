//! What becomes of tenants, told to the services as it happens.
//!
//! Events are numbered in the registry's database, so that every replica tells
//! the same. A notification makes it quick, and a poll makes it sure.

mod store;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use crm_clock::Clock;
use crm_error::{ApiError, ErrorReason};
use crm_tenancy::{SessionError, StoreError};
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use store::StatusRow;

use crate::database::{Database, owned};

/// How often the newest event is looked for, and so how often a stream beats.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How many tenants one part of a snapshot has.
const PART: i64 = 1000;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventError {
    #[error("the process stops")]
    Stopping,
    #[error("the watcher's token has expired")]
    TokenExpired,
    #[error("a statement failed")]
    Store(#[from] StoreError),
    #[error("the work did not end")]
    Task(#[from] SessionError),
}

impl From<EventError> for ApiError {
    fn from(error: EventError) -> Self {
        match error {
            EventError::Stopping => Self::new(ErrorReason::Overloaded, "the server is stopping"),
            EventError::TokenExpired => {
                Self::new(ErrorReason::TokenExpired, "the token has expired")
            }
            EventError::Store(error) => error.into(),
            EventError::Task(error) => error.into(),
        }
    }
}

/// What a watcher hears.
#[derive(Debug)]
pub(crate) enum Event {
    /// A part of what is when the stream begins.
    Snapshot { tenants: Vec<StatusRow>, complete: bool },
    /// What became of a tenant.
    Changed(StatusRow),
    /// Nothing new, up to now.
    Heartbeat,
}

/// The events of tenants. Clones share one look at the database.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    database: Database,
    clock: Clock,
    /// The newest event's number; sent with every look that succeeds, so that
    /// streams are silent where the database does not answer.
    newest: watch::Receiver<i64>,
    stop: CancellationToken,
}

impl Events {
    /// Begins to look for events, until `stop`, which ends all streams, too.
    pub(crate) fn start(database: Database, clock: Clock, stop: CancellationToken) -> Self {
        let (sender, newest) = watch::channel(0);
        let wake = Arc::new(Notify::new());
        let listening = listen(database.clone(), wake.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(listening));
        let looking = look(database.clone(), wake, sender);
        tokio::spawn(stop.clone().run_until_cancelled_owned(looking));
        Self { database, clock, newest, stop }
    }

    /// A snapshot, and then what happens, until the given time.
    pub(crate) fn watch(
        &self,
        until: DateTime<Utc>,
    ) -> impl Stream<Item = Result<Event, EventError>> + Send + use<> {
        let left = (until - self.clock.now()).to_std().unwrap_or_default();
        let watcher = Watcher {
            database: self.database.clone(),
            newest: self.newest.clone(),
            stop: self.stop.clone(),
            deadline: tokio::time::Instant::now() + left,
            phase: Phase::Start,
        };
        unfold(Some(watcher), |watcher| async {
            let mut watcher = watcher?;
            let next = watcher.next().await;
            let goes_on = next.is_ok();
            Some((next, goes_on.then_some(watcher)))
        })
    }
}

/// One stream.
struct Watcher {
    database: Database,
    newest: watch::Receiver<i64>,
    stop: CancellationToken,
    deadline: tokio::time::Instant,
    phase: Phase,
}

/// How far a stream has come.
enum Phase {
    Start,
    /// The snapshot goes on after this tenant; `seen` is the newest event when
    /// it began.
    Snapshot {
        seen: i64,
        after: Uuid,
    },
    /// Up to `seen`, everything was read; `unsent` was read, too.
    Following {
        seen: i64,
        unsent: VecDeque<StatusRow>,
    },
}

impl Watcher {
    async fn next(&mut self) -> Result<Event, EventError> {
        let stop = self.stop.clone();
        let deadline = self.deadline;
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(EventError::Stopping),
            () = tokio::time::sleep_until(deadline) => Err(EventError::TokenExpired),
            event = self.event() => event,
        }
    }

    async fn event(&mut self) -> Result<Event, EventError> {
        match &mut self.phase {
            Phase::Start => {
                // Before the snapshot: what happens meanwhile comes again.
                let pool = self.database.registry.clone();
                let seen =
                    owned::<_, EventError, _>(async move { Ok(store::newest(&pool).await?) });
                let seen = seen.await?;
                self.snapshot(seen, Uuid::nil()).await
            }
            Phase::Snapshot { seen, after } => {
                let (seen, after) = (*seen, *after);
                self.snapshot(seen, after).await
            }
            Phase::Following { seen, unsent } => {
                if let Some(row) = unsent.pop_front() {
                    return Ok(Event::Changed(row));
                }
                let after = *seen;
                self.newest.changed().await.map_err(|_| EventError::Stopping)?;
                if *self.newest.borrow_and_update() <= after {
                    return Ok(Event::Heartbeat);
                }
                self.changes(after).await
            }
        }
    }

    async fn snapshot(&mut self, seen: i64, after: Uuid) -> Result<Event, EventError> {
        let pool = self.database.registry.clone();
        let tenants =
            owned::<_, EventError, _>(async move { Ok(store::refused(&pool, after, PART).await?) });
        let tenants = tenants.await?;
        let last = tenants.last().filter(|_| tenants.len() as i64 == PART);
        self.phase = match last {
            Some(last) => Phase::Snapshot { seen, after: last.tenant_id },
            None => Phase::Following { seen, unsent: VecDeque::new() },
        };
        let complete = last.is_none();
        Ok(Event::Snapshot { tenants, complete })
    }

    async fn changes(&mut self, after: i64) -> Result<Event, EventError> {
        let pool = self.database.registry.clone();
        let rows =
            owned::<_, EventError, _>(async move { Ok(store::changes(&pool, after).await?) });
        let mut unsent = VecDeque::from(rows.await?);
        let seen = unsent.back().map_or(after, |row| row.event);
        let first = unsent.pop_front();
        self.phase = Phase::Following { seen, unsent };
        Ok(first.map_or(Event::Heartbeat, Event::Changed))
    }
}

/// Wakes the look at each notification. A notification may be lost.
async fn listen(database: Database, wake: Arc<Notify>) {
    loop {
        if let Ok(mut listener) = database.listener().await
            && listener.listen("tenant_events").await.is_ok()
        {
            while listener.try_recv().await.is_ok() {
                wake.notify_one();
            }
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

async fn look(database: Database, wake: Arc<Notify>, newest: watch::Sender<i64>) {
    loop {
        match store::newest(&database.registry).await {
            Ok(number) => drop(newest.send_replace(number)),
            Err(error) => tracing::warn!(
                cause = crm_error::chain(&error),
                "cannot look for events of tenants"
            ),
        }
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep(POLL_EVERY) => {}
        }
    }
}
