//! A service as a process of its own.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crm_clock::Clock;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::admin::Readiness;
use crate::admission::Admission;
use crate::bind::bind;
use crate::health::Health;
use crate::late::Late;
use crate::metrics::recorder;
use crate::server::{Role, serve_with};
use crate::stack::Stack;
use crate::tls::ServerTls;

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
    /// What it is for.
    pub role: Role,
    /// TLS, where it is demanded.
    pub tls: Option<ServerTls>,
}

impl Door {
    /// The admin listener of a process.
    pub fn admin(address: SocketAddr, setting: String) -> Self {
        Self { name: "admin", address, setting, role: Role::Admin, tls: None }
    }
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
/// for in `start`, as `waits_for` names it, ends with the shutdown, too. The
/// admin listener is there from the first to the last.
///
/// # Errors
///
/// When a door cannot be opened, a listener fails, or `start` does.
pub async fn serve_process(
    doors: Vec<Door>,
    admin_door: Door,
    admission: Admission,
    waits_for: &'static str,
    start: impl Future<Output = Result<Served, Failure>>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let healths = Arc::new(OnceLock::<Vec<Health>>::new());
    let Some(listener) = open(&admin_door, &shutdown).await? else { return Ok(()) };
    let stop_admin = CancellationToken::new();
    let _stops_at_the_end = stop_admin.clone().drop_guard();
    let readiness = readiness(&doors, waits_for, healths.clone());
    // Metrics are looked up once: the recorder must be there before.
    recorder()?;
    let mut admin = tokio::spawn(admin::serve(listener, readiness, admission.clone(), stop_admin));

    // Apart from the shutdown: health checks fail before calls are refused.
    let stop = CancellationToken::new();
    let _stops_however_it_ends = stop.clone().drop_guard();
    let mut serving = JoinSet::new();
    let mut lates = Vec::new();
    for door in doors {
        let Some(listener) = open(&door, &shutdown).await? else { return Ok(()) };
        let late = Late::new(door.name, Clock::default())?;
        let (admission, stop) = (admission.clone(), stop.clone());
        serving.spawn(serve_with(door.tls, listener, late.clone(), door.role, admission, stop));
        lates.push(late);
    }

    let started = Instant::now();
    let started_up = tokio::select! {
        served = start => Some(served?),
        Some(ended) = serving.join_next() => { ended??; None }
        ended = &mut admin => { ended??; None }
        () = shutdown.cancelled() => None,
    };
    let Some(Served { stacks, drain }) = started_up else {
        return stopped(serving, &stop, async {}.boxed()).await;
    };
    let (stacks, served): (Vec<_>, Vec<_>) = stacks.into_iter().unzip();
    for (late, (stack, health)) in lates.iter().zip(stacks.into_iter().zip(&served)) {
        health.set(true);
        late.set(stack);
    }
    healths.get_or_init(|| served.clone());
    tracing::info!(seconds = started.elapsed().as_secs_f32(), "serving");

    tokio::select! {
        () = shutdown.cancelled() => {}
        Some(ended) = serving.join_next() => ended??,
        // A process that nobody can look at is not left to itself.
        ended = &mut admin => ended??,
    }
    shutdown.cancel();
    Health::give_notice(&served).await;
    stopped(serving, &stop, drain).await
}

/// What the admin listener says: before `healths` are there, every door waits.
fn readiness(
    doors: &[Door],
    waits_for: &'static str,
    healths: Arc<OnceLock<Vec<Health>>>,
) -> impl Fn() -> Readiness + Clone + use<> {
    let names: Vec<_> = doors.iter().map(|door| (door.name, false)).collect();
    move || match healths.get() {
        Some(healths) => {
            Readiness { parts: healths.iter().map(Health::state).collect(), waits_for: None }
        }
        None => Readiness { parts: names.clone(), waits_for: Some(waits_for) },
    }
}

/// Takes a door's address. `None`: the shutdown came before.
async fn open(door: &Door, shutdown: &CancellationToken) -> Result<Option<TcpListener>, Failure> {
    let listener = tokio::select! {
        listener = bind(door.address, door.name, &door.setting) => listener?,
        () = shutdown.cancelled() => return Ok(None),
    };
    tracing::info!(listener = door.name, address = %listener.local_addr()?, "listening");
    Ok(Some(listener))
}

/// Stops serving, and lets calls finish.
async fn stopped(
    mut serving: JoinSet<std::io::Result<()>>,
    stop: &CancellationToken,
    drain: BoxFuture<'static, ()>,
) -> Result<(), Failure> {
    let asked = Instant::now();
    stop.cancel();
    while let Some(ended) = serving.join_next().await {
        ended??;
    }
    drain.await;
    tracing::info!(seconds = asked.elapsed().as_secs_f32(), "stopped");
    Ok(())
}
