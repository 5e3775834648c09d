//! A service as a process of its own.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Instant;

use crm_clock::Clock;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, ServerTlsConfig};

use crate::late::Late;
use crate::limits;
use crate::server::{bind, serve_on};
use crate::stack::{Health, Stack};

type Failure = Box<dyn Error + Send + Sync>;

/// A listener of a process.
#[derive(Clone, Debug)]
pub struct Door {
    /// The service behind it, for the log.
    pub name: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    /// The option that says so, and its variable.
    pub setting: String,
    /// TLS, where it is demanded.
    pub tls: Option<ServerTlsConfig>,
}

/// What a process serves once it can.
#[expect(missing_debug_implementations, reason = "a future has none")]
pub struct Served {
    /// The stack behind each door, in their order, and its health.
    pub stacks: Vec<(Stack, Health)>,
    /// What is left to do when the last call has been answered.
    pub drain: BoxFuture<'static, ()>,
}

/// Opens the doors, says NOT_SERVING there until `start` has made what is
/// served, then serves until `shutdown`, and lets calls finish. What is waited
/// for in `start` ends with the shutdown, too.
///
/// # Errors
///
/// When a door cannot be opened, or `start` fails.
pub async fn serve_process(
    doors: Vec<Door>,
    start: impl Future<Output = Result<Served, Failure>>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let mut serving = JoinSet::new();
    let mut lates = Vec::new();
    for door in doors {
        let listener = tokio::select! {
            listener = bind(door.address, door.name, &door.setting) => listener?,
            () = shutdown.cancelled() => return Ok(()),
        };
        let late = Late::new(door.name, Clock::default());
        tracing::info!(listener = door.name, address = %listener.local_addr()?, "listening");
        let server = match door.tls {
            Some(tls) => Server::builder().tls_config(tls.timeout(limits::HANDSHAKE))?,
            None => Server::builder(),
        };
        serving.spawn(serve_on(server, listener, late.clone(), shutdown.clone()));
        lates.push(late);
    }

    let started = Instant::now();
    let served = tokio::select! {
        served = start => Some(served?),
        Some(ended) = serving.join_next() => { ended??; None }
        () = shutdown.cancelled() => None,
    };
    let Some(Served { stacks, drain }) = served else {
        return stopped(serving, Instant::now()).await;
    };
    let mut healths = Vec::new();
    for (late, (stack, health)) in lates.iter().zip(stacks) {
        health.set(true).await;
        late.set(stack);
        healths.push(health);
    }
    tracing::info!(seconds = started.elapsed().as_secs_f32(), "serving");

    tokio::select! {
        () = shutdown.cancelled() => {}
        Some(ended) = serving.join_next() => ended??,
    }
    let asked = Instant::now();
    shutdown.cancel();
    // Health checks fail first, so that nobody sends new calls.
    for health in healths {
        health.close().await;
    }
    while let Some(ended) = serving.join_next().await {
        ended??;
    }
    drain.await;
    stopped(serving, asked).await
}

async fn stopped(
    mut serving: JoinSet<Result<(), tonic::transport::Error>>,
    asked: Instant,
) -> Result<(), Failure> {
    while let Some(ended) = serving.join_next().await {
        ended??;
    }
    tracing::info!(seconds = asked.elapsed().as_secs_f32(), "stopped");
    Ok(())
}
