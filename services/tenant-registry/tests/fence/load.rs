//! Calls that go on while a tenant's state changes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crm_testing::{Tenant, reason};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{At, PATIENCE, call};

/// A call that ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) at: At,
    pub(super) began: Instant,
    pub(super) answered: Instant,
    pub(super) outcome: Result<(), (Code, String)>,
}

/// Calls that go on until they are stopped.
pub(super) struct Load {
    ended: Arc<Mutex<Vec<Ended>>>,
    stop: CancellationToken,
    workers: Vec<JoinHandle<()>>,
}

impl Load {
    pub(super) fn start(tenant: &Tenant, places: &[At]) -> Self {
        let (ended, stop) = (Arc::<Mutex<Vec<Ended>>>::default(), CancellationToken::new());
        let work = |at: At| {
            let (tenant, ended, stop) = (tenant.clone(), ended.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    let began = Instant::now();
                    let outcome = call(&tenant, at).await;
                    let outcome = outcome.map_err(|status| (status.code(), reason(&status)));
                    let refused = outcome.is_err();
                    let answered = Instant::now();
                    ended.lock().unwrap().push(Ended { at, began, answered, outcome });
                    // A refusal is quick: leave the machine to the others.
                    let pause = Duration::from_millis(if refused { 10 } else { 0 });
                    tokio::time::sleep(pause).await;
                }
            })
        };
        let workers = places.iter().map(|at| work(*at)).collect();
        Self { ended, stop, workers }
    }

    /// Waits until a call at each place, begun after `since`, ended like this.
    /// Answers how long that took.
    pub(super) async fn until(
        &self,
        places: &[At],
        since: Instant,
        wanted: &Result<(), (Code, String)>,
    ) -> Duration {
        loop {
            let ended = self.ended.lock().unwrap().clone();
            let first = |at: &At| {
                let mut those = ended.iter().filter(|e| e.at == *at && e.began >= since);
                Some(those.find(|e| e.outcome == *wanted)?.answered - since)
            };
            let firsts: Option<Vec<_>> = places.iter().map(first).collect();
            if let Some(last) = firsts.and_then(|firsts| firsts.into_iter().max()) {
                return last;
            }
            assert!(since.elapsed() < PATIENCE, "{wanted:?} is not everywhere");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) async fn stop(self) -> Vec<Ended> {
        self.stop.cancel();
        for worker in self.workers {
            worker.await.unwrap();
        }
        std::mem::take(&mut *self.ended.lock().unwrap())
    }
}
