//! Calls without pause, while something happens to the server.
//!
//! Callers go on where no session came free in time: on a busy machine that is
//! no end.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::code_and_reason;

/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a test looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Callers that make call after call, each until it is refused for good.
#[derive(Debug)]
pub struct Traffic {
    callers: JoinSet<Vec<(u64, Result<(), Status>)>>,
    answered: Arc<AtomicUsize>,
}

/// What became of the calls, by their numbers.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// Those that were answered.
    pub answered: BTreeSet<u64>,
    /// Those that were not.
    pub refused: BTreeMap<u64, Status>,
}

impl Traffic {
    /// So many callers begin. Every call has a number of its own.
    pub fn start<C, F>(callers: usize, call: C) -> Self
    where
        C: Fn(u64) -> F + Clone + Send + 'static,
        F: Future<Output = Result<(), Status>> + Send,
    {
        let (answered, numbers) = (Arc::<AtomicUsize>::default(), Arc::<AtomicU64>::default());
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let (call, answered, numbers) = (call.clone(), answered.clone(), numbers.clone());
            tasks.spawn(async move {
                let mut outcomes = Vec::new();
                loop {
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    let outcome = call(number).await;
                    let is_answered = outcome.is_ok();
                    let is_over = outcome.as_ref().is_err_and(|status| !is_exhausted(status));
                    outcomes.push((number, outcome));
                    if is_over {
                        return outcomes;
                    }
                    answered.fetch_add(usize::from(is_answered), Ordering::Relaxed);
                }
            });
        }
        Self { callers: tasks, answered }
    }

    /// Waits until so many calls have been answered.
    pub async fn flows(&self, calls: usize) {
        let until = Instant::now() + PATIENCE;
        while self.answered.load(Ordering::Relaxed) < calls {
            assert!(Instant::now() < until, "{} answers", self.answered.load(Ordering::Relaxed));
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until every caller has met its error.
    pub async fn ended(self) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for (number, outcome) in self.callers.join_all().await.into_iter().flatten() {
            match outcome {
                Ok(()) => drop(outcomes.answered.insert(number)),
                Err(status) => drop(outcomes.refused.insert(number, status)),
            }
        }
        outcomes
    }
}

impl Outcomes {
    /// Every call was answered, and then is among those `done`; or it was
    /// refused as one that may be repeated elsewhere, or taken by no server, and
    /// then is not.
    pub fn check(&self, done: &BTreeSet<u64>) {
        let lost: Vec<_> = self.answered.difference(done).collect();
        assert!(lost.is_empty(), "answered, and not done: {lost:?}");
        for (number, status) in &self.refused {
            let is_refused =
                status.code() == Code::Unavailable || is_exhausted(status) || is_untaken(status);
            assert!(is_refused, "call {number}: {status:?}");
        }
        let silent: Vec<_> = done.difference(&self.answered).collect();
        assert!(silent.is_empty(), "done, and not answered: {silent:?}, {:?}", self.refused);
    }
}

/// Whether no session came free for a call in time.
fn is_exhausted(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted
        && code_and_reason::<()>(Err(status.clone())).1 == "SESSIONS_EXHAUSTED"
}

/// Whether no server took a call, as this client knows, and tonic does not say:
/// its connection closed before it was sent, or the server named another call
/// as the last that it takes (RFC 9113, section 6.8).
fn is_untaken(status: &Status) -> bool {
    let causes = || std::iter::successors(status.source(), |cause| (*cause).source());
    let is_unsent = |error: &hyper::Error| error.is_canceled();
    let is_after_last = |error: &h2::Error| {
        error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
    };
    causes().filter_map(|cause| cause.downcast_ref()).any(is_unsent)
        || causes().filter_map(|cause| cause.downcast_ref()).any(is_after_last)
}
