//! Callers that vanish: calls are reset while they are under way.

use std::iter;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crm_testing::{Chance, Server, Tenant, ask_admin, reason, serve_durably};
use futures_util::future::join_all;
use tokio::time::sleep;
use tonic::{Code, Status};

use crate::TURN;
use crate::calls::{Call, Caller, Written};
use crate::read_back::ReadBack;
use crate::sessions::{Seen, watch};
use crate::wire::Wire;

const TENANTS: usize = 4;
/// All together they want more sessions than there are.
const CLIENTS_PER_TENANT: usize = 8;
/// The sessions that each service may have.
const BUDGET: usize = 20;
const WANTED: usize = 5000;
/// Of so many calls three are reset.
const OF: usize = 10;
/// A call is reset after this at the latest.
const RESET_WITHIN: Duration = Duration::from_millis(20);
/// How long the storm may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// What became of the calls of all.
#[derive(Debug, Default)]
struct Tally {
    calls: AtomicUsize,
    acknowledged: AtomicUsize,
    reset: AtomicUsize,
    cut: AtomicUsize,
}

/// One caller of many.
struct Stormer {
    number: usize,
    server: &'static Server,
    tenant: Tenant,
    caller: Caller,
    /// Whether it cuts its connections rather than resets its calls.
    cuts: bool,
    wires: Option<(Wire, Wire)>,
    chance: Chance,
    conversation: String,
    acknowledged: Vec<Written>,
    calls: usize,
    resets: usize,
    /// What a call takes that is not reset, more or less.
    latency: Duration,
}

impl Stormer {
    async fn new(number: usize, server: &'static Server, tenant: Tenant) -> Self {
        let at = server.addresses;
        let mut caller = Caller::new(tenant.admin(), at.contacts, at.messaging);
        let began = Instant::now();
        let (contact, conversation) = caller.conversation(format!("{number}-first")).await;
        let mut this = Self {
            number,
            server,
            tenant,
            caller,
            cuts: number.is_multiple_of(CLIENTS_PER_TENANT),
            wires: None,
            chance: Chance::new(number as u64),
            conversation,
            acknowledged: vec![Written::Contact(contact)],
            calls: 0,
            resets: 0,
            latency: began.elapsed(),
        };
        if this.cuts {
            this.connect_by_wires().await;
        }
        this
    }

    async fn connect_by_wires(&mut self) {
        let contacts = Wire::to(self.server.addresses.contacts).await;
        let messaging = Wire::to(self.server.addresses.messaging).await;
        self.caller = Caller::new(self.tenant.admin(), contacts.address, messaging.address);
        self.wires = Some((contacts, messaging));
    }

    async fn run(mut self, tally: Arc<Tally>, is_over: Arc<AtomicBool>) -> (Self, Vec<Status>) {
        let mut refused = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            self.calls += 1;
            tally.calls.fetch_add(1, Ordering::Relaxed);
            let call = self.next_call();
            let began = Instant::now();
            match self.make(call).await {
                Some(Ok(written)) => {
                    self.acknowledged.push(written);
                    self.latency = (self.latency * 7 + began.elapsed()) / 8;
                    if tally.acknowledged.fetch_add(1, Ordering::Relaxed) + 1 >= WANTED {
                        is_over.store(true, Ordering::Relaxed);
                    }
                }
                Some(Err(status)) => refused.push(status),
                None => {
                    self.resets += 1;
                    tally.reset.fetch_add(1, Ordering::Relaxed);
                    if self.cuts {
                        tally.cut.fetch_add(1, Ordering::Relaxed);
                        self.connect_by_wires().await;
                    }
                }
            }
        }
        (self, refused)
    }

    fn next_call(&mut self) -> Call {
        let text = format!("{}-{}", self.number, self.calls);
        match self.chance.below(10) {
            0..5 => Call::create(text, String::new()),
            5..7 => {
                let which = self.chance.below(self.acknowledged.len() as u64) as usize;
                match &self.acknowledged[which] {
                    Written::Contact(contact) => Call::update(contact.name.clone(), text),
                    Written::Message(_) => Call::create(text, String::new()),
                }
            }
            _ => Call::send(self.conversation.clone(), text, String::new()),
        }
    }

    /// Makes a call; `None`: it was reset, or its connection cut.
    async fn make(&mut self, call: Call) -> Option<Result<Written, Status>> {
        let is_due = self.resets * OF < self.calls * 3;
        // While the call is under way, on a fast machine and on a slow one.
        let within = (self.latency * 4 / 5).min(RESET_WITHIN).as_micros() as u64;
        let after = Duration::from_micros(self.chance.below(within + 1));
        let mut write = pin!(self.caller.write(call));
        if !is_due {
            return Some(write.await);
        }
        tokio::select! {
            biased;
            answer = &mut write => return Some(answer),
            () = sleep(after) => {}
        }
        // The call is still there, and its caller does not look.
        if let Some((contacts, messaging)) = self.wires.take() {
            contacts.cut().await;
            messaging.cut().await;
        }
        None
    }
}

/// How many calls the services had begun when their callers vanished: they say
/// so themselves, in their metrics.
async fn begun_and_reset(server: &Server) -> usize {
    let (_, metrics) = ask_admin(server.addresses.admin, "/metrics").await;
    let of_writes = metrics.lines().filter(|line| {
        line.starts_with("rpc_server_duration_seconds_count{")
            && line.contains("code=\"CANCELLED\"")
    });
    of_writes.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// Lets the storm blow until enough was acknowledged, and all that it began has
/// ended.
async fn blow(
    server: &'static Server,
    stormers: Vec<Stormer>,
    tally: &Arc<Tally>,
) -> (Vec<Stormer>, Vec<Status>, Seen) {
    let is_over = Arc::new(AtomicBool::new(false));
    let running = stormers.into_iter().map(|stormer| stormer.run(tally.clone(), is_over.clone()));
    let running: Vec<_> = running.map(tokio::spawn).collect();
    let at_last = is_over.clone();
    let limit = tokio::spawn(async move {
        sleep(PATIENCE).await;
        at_last.store(true, Ordering::Relaxed);
    });
    let (ended, seen) = tokio::join!(join_all(running), watch(server, &is_over));
    limit.abort();
    let (stormers, refused): (_, Vec<_>) = ended.into_iter().map(Result::unwrap).unzip();
    (stormers, refused.into_iter().flatten().collect(), seen)
}

/// What is there of all that was written.
#[derive(Default)]
struct Found {
    writes: usize,
    lost: Vec<Written>,
    doubled: Vec<String>,
}

async fn read_back(server: &Server, tenants: &[Tenant], stormers: &[Stormer]) -> Found {
    let mut found = Found::default();
    for (tenant, stormers) in tenants.iter().zip(stormers.chunks(CLIENTS_PER_TENANT)) {
        let conversations: Vec<_> =
            stormers.iter().map(|stormer| stormer.conversation.clone()).collect();
        let there = ReadBack::of(server, tenant, &conversations).await;
        found.writes += there.writes();
        found.doubled.extend(there.doubled().into_iter().map(str::to_owned));
        for stormer in stormers {
            found.lost.extend(there.lost(&stormer.acknowledged).into_iter().cloned());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_vanish_lose_nothing_that_was_acknowledged() {
    let _turn = TURN.lock().await;
    let server = serve_durably();
    let tenants = join_all((0..TENANTS).map(|_| Tenant::create())).await;
    let of_each = tenants.iter().flat_map(|tenant| iter::repeat_n(tenant, CLIENTS_PER_TENANT));
    let stormers = of_each.cloned().enumerate();
    let stormers = stormers.map(|(number, tenant)| Stormer::new(number, server, tenant));
    let stormers = join_all(stormers).await;
    let tally = Arc::new(Tally::default());
    let begun_before = begun_and_reset(server).await;

    let began = Instant::now();
    let (stormers, refused, seen) = blow(server, stormers, &tally).await;
    let took = began.elapsed();

    let begun = begun_and_reset(server).await - begun_before;
    let Found { writes, lost, doubled } = read_back(server, &tenants, &stormers).await;
    let acknowledged: usize = stormers.iter().map(|stormer| stormer.acknowledged.len()).sum();
    let [calls, reset, cut] =
        [&tally.calls, &tally.reset, &tally.cut].map(|count| count.load(Ordering::Relaxed));
    println!(
        "cancel storm: {calls} calls in {took:.1?}: {acknowledged} acknowledged; {reset} reset \
         ({cut} by their connection), {begun} of them begun; {} refused; {} written without an \
         answer; {} lost; {} doubled; {seen:?}",
        refused.len(),
        writes + lost.len() - acknowledged,
        lost.len(),
        doubled.len(),
    );
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(doubled.is_empty(), "written twice: {doubled:?}");
    assert_eq!(seen.stuck, 0, "sessions idle in a transaction for more than 2 s");
    assert!(seen.most <= BUDGET, "{} sessions", seen.most);
    for status in &refused {
        // Others changed the same contact, or had all sessions, or the tenant's
        // head for too long.
        let expected = [Code::Aborted, Code::ResourceExhausted, Code::DeadlineExceeded];
        assert!(expected.contains(&status.code()), "{status:?}");
        reason(status);
    }
    assert!(acknowledged >= WANTED, "{acknowledged} acknowledged");
    assert!(reset * OF >= calls * 2, "{reset} of {calls} reset");
    assert!(begun * 2 >= reset, "{begun} of {reset} begun");
    for tenant in &tenants {
        tenant.check_log().await;
    }
}
