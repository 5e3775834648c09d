//! How both sides are measured: in turns, with the CPU time of all.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::Status;

use crate::client::{Leases, Login, Operator};
use crate::cpu::Usage;
use crate::pgbench::{Pgbench, Script};
use crate::suite::Suite;
use crate::{Failure, Options};

/// How long calls run before they count.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long the last calls of a measurement may take.
const GRACE: Duration = Duration::from_secs(30);

/// What all readings need.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) pgbench: Pgbench,
    pub(crate) suite: Suite,
}

/// Work that was done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) calls: u64,
    /// Calls a second.
    pub(crate) rate: f64,
}

/// What was seen of one side in one round, or in one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) rate: f64,
    pub(crate) usage: Usage,
}

/// What was seen of both sides, round by round.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    pub(crate) crm: Vec<Reading>,
    pub(crate) peer: Vec<Reading>,
}

/// Someone who calls again and again, one call at a time.
pub(crate) trait Caller: Clone + Send + 'static {
    /// One call.
    fn call(&mut self) -> impl Future<Output = Result<(), Status>> + Send;
}

impl Bench {
    /// Makes a tenant, and answers the login of contacts in its database.
    pub(crate) async fn tenant(&self, slug: &str) -> Result<Login, Failure> {
        let name = Operator::connect(&self.suite).await?.create_tenant(slug).await?;
        Leases::connect(&self.suite).await?.login(&name).await
    }

    /// Measures both sides in turns; each begins every other round.
    pub(crate) async fn alternate(
        &self,
        crm: impl AsyncFn() -> Result<Reading, Failure>,
        peer: impl AsyncFn() -> Result<Reading, Failure>,
    ) -> Result<Readings, Failure> {
        let mut readings = Readings::default();
        for round in 0..self.options.rounds {
            if round % 2 == 0 {
                readings.crm.push(crm().await?);
                readings.peer.push(peer().await?);
            } else {
                readings.peer.push(peer().await?);
                readings.crm.push(crm().await?);
            }
        }
        Ok(readings)
    }

    /// What these callers reach together, once they are warm.
    pub(crate) async fn load<C: Caller>(&self, callers: Vec<C>) -> Result<Reading, Failure> {
        call_for(WARM_UP, callers.clone()).await?;
        self.metered(call_for(Duration::from_secs(self.options.seconds), callers)).await
    }

    /// What pgbench reaches.
    pub(crate) async fn pgbench(&self, script: &Script<'_>) -> Result<Reading, Failure> {
        self.metered(self.pgbench.run(self.suite.folder(), script)).await
    }

    /// What one call takes.
    pub(crate) async fn one<T>(
        &self,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Reading, Failure> {
        let timed = async {
            let started = Instant::now();
            call.await?;
            Ok(Done { calls: 1, rate: 1.0 / started.elapsed().as_secs_f64() })
        };
        self.metered(Box::pin(timed)).await
    }

    /// Reads the CPU time before and after some work.
    async fn metered(
        &self,
        work: impl Future<Output = Result<Done, Failure>>,
    ) -> Result<Reading, Failure> {
        let processes = self.suite.processes()?;
        let before = processes.sample()?;
        let Done { calls, rate } = work.await?;
        let usage = processes.sample()?.usage_since(before, calls);
        Ok(Reading { rate, usage })
    }
}

/// Lets every caller call for a time. The first call that fails is an error.
async fn call_for<C: Caller>(time: Duration, callers: Vec<C>) -> Result<Done, Failure> {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for caller in callers {
        tasks.spawn(call_until(started + time, caller));
    }
    let mut calls = 0;
    while let Some(ended) = timeout(time + GRACE, tasks.join_next()).await? {
        calls += ended??;
    }
    Ok(Done { calls, rate: calls as f64 / started.elapsed().as_secs_f64() })
}

async fn call_until<C: Caller>(end: Instant, mut caller: C) -> Result<u64, Status> {
    let mut calls = 0;
    while Instant::now() < end {
        caller.call().await?;
        calls += 1;
    }
    Ok(calls)
}
