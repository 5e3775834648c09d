//! A PostgreSQL that is killed while everything writes to it.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crm_proto::registry::v1::GetTenantRequest;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_testing::{Client, Server, Tenant, reason, serve_durably};
use futures_util::future::join_all;
use sqlx::Connection as _;
use tokio::time::sleep;
use tonic::{Code, Status};

use crate::TURN;
use crate::calls::{Call, Caller, Written};
use crate::read_back::ReadBack;

const TENANTS: usize = 3;
/// One of them sends messages, the others create contacts.
const CLIENTS_PER_TENANT: usize = 8;
/// How many calls of each client succeed between two faults.
const CALLS: usize = 5;
/// When a refused call is repeated.
const REPEAT_AFTER: Duration = Duration::from_millis(20);
/// How soon calls succeed again once PostgreSQL takes connections.
const WELL_WITHIN: Duration = Duration::from_secs(5);
/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// A way for PostgreSQL to end.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The server gets this signal, and is started again.
    Server(&'static str),
    /// One session is killed: the server ends all others, and recovers.
    Session,
}

/// What one client saw.
#[derive(Debug, Default)]
struct Log {
    answered: AtomicUsize,
    refused: AtomicUsize,
}

impl Log {
    /// Notes a refusal, which says what it may say.
    fn refuse(&self, status: &Status) {
        let expected =
            [Code::Unavailable, Code::Aborted, Code::DeadlineExceeded, Code::ResourceExhausted];
        assert!(expected.contains(&status.code()), "{status:?}");
        reason(status);
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes without end, each until it is acknowledged.
async fn write(
    server: &Server,
    tenant: &Tenant,
    number: usize,
    log: &Log,
    is_over: &AtomicBool,
) -> (Vec<Written>, String) {
    let at = server.addresses;
    let mut caller = Caller::new(tenant.admin(), at.contacts, at.messaging);
    let (contact, conversation) = caller.conversation(format!("{number}-first")).await;
    let mut acknowledged = vec![Written::Contact(contact)];
    while !is_over.load(Ordering::Relaxed) {
        let text = format!("{number}-{}", acknowledged.len());
        let request_id = server.clock.new_id().to_string();
        let call = if number.is_multiple_of(CLIENTS_PER_TENANT) {
            Call::send(conversation.clone(), text, request_id)
        } else {
            Call::create(text, request_id)
        };
        let until = Instant::now() + PATIENCE * 2;
        loop {
            match caller.write(call.clone()).await {
                Ok(written) => {
                    acknowledged.push(written);
                    log.answer();
                    break;
                }
                Err(status) => log.refuse(&status),
            }
            assert!(Instant::now() < until, "a write that never succeeds");
            sleep(REPEAT_AFTER).await;
        }
    }
    (acknowledged, conversation)
}

/// Asks the registry without end.
async fn ask(server: &Server, tenant: &Tenant, log: &Log, is_over: &AtomicBool) {
    let operator = Client::operator(server);
    let mut registry = TenantServiceClient::new(operator.channel(server.addresses.registry));
    while !is_over.load(Ordering::Relaxed) {
        let request = GetTenantRequest { name: tenant.tenant.name.clone() };
        match registry.get_tenant(operator.request(request)).await {
            Ok(answer) => {
                assert_eq!(answer.into_inner(), tenant.tenant);
                log.answer();
            }
            Err(status) => log.refuse(&status),
        }
        sleep(REPEAT_AFTER).await;
    }
}

/// Waits until each of these has grown by so many.
async fn wait_for(counts: impl Fn() -> Vec<usize>, more: usize) {
    let before = counts();
    let until = Instant::now() + PATIENCE;
    while !counts().iter().zip(&before).all(|(now, before)| *now >= before + more) {
        assert!(Instant::now() < until, "{before:?} became {:?}", counts());
        sleep(Duration::from_millis(5)).await;
    }
}

/// Lets PostgreSQL fail and come back, and answers how long it took from then
/// on until calls of every client succeeded.
async fn suffer(server: &Server, logs: &[Log], fault: Fault) -> Duration {
    let answered = || logs.iter().map(|log| log.answered.load(Ordering::Relaxed)).collect();
    let refused = || logs.iter().map(|log| log.refused.load(Ordering::Relaxed)).collect();
    wait_for(answered, CALLS).await;
    match fault {
        Fault::Server(signal) => {
            server.signal_postgres(signal).await;
            wait_for(refused, 1).await;
            server.start_postgres().await;
        }
        Fault::Session => {
            kill_a_session(server).await;
            // It recovers by itself.
            let until = Instant::now() + PATIENCE;
            while !server.is_postgres_up().await {
                assert!(Instant::now() < until, "PostgreSQL does not come back");
            }
        }
    }
    let up = Instant::now();
    wait_for(answered, 1).await;
    up.elapsed()
}

/// Kills a session that works, and waits until the server has noticed.
async fn kill_a_session(server: &Server) {
    let mut superuser = server.superuser("postgres").await;
    let busiest = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 't\\_%'
        ORDER BY state = 'active' DESC LIMIT 1";
    let pid: i32 = sqlx::query_scalar(busiest).fetch_one(&mut superuser).await.unwrap();
    let mut kill = Command::new("kill");
    assert!(kill.args(["-s", "KILL", &pid.to_string()]).status().unwrap().success());
    let until = Instant::now() + PATIENCE;
    while superuser.ping().await.is_ok() {
        assert!(Instant::now() < until, "the server goes on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_that_is_killed_loses_and_doubles_nothing() {
    let _turn = TURN.lock().await;
    let server = serve_durably();
    let tenants = join_all((0..TENANTS).map(|_| Tenant::create())).await;
    let writers = TENANTS * CLIENTS_PER_TENANT;
    let logs: Vec<_> = (0..=writers).map(|_| Log::default()).collect();
    let is_over = AtomicBool::new(false);
    let faults = [
        Fault::Server("KILL"),
        Fault::Session,
        Fault::Server("QUIT"),
        Fault::Server("KILL"),
        Fault::Session,
    ];

    let began = Instant::now();
    let writing = (0..writers).map(|number| {
        write(server, &tenants[number / CLIENTS_PER_TENANT], number, &logs[number], &is_over)
    });
    let asking = ask(server, &tenants[0], &logs[writers], &is_over);
    let suffering = async {
        let mut took = Vec::new();
        for fault in faults {
            took.push(suffer(server, &logs, fault).await);
        }
        is_over.store(true, Ordering::Relaxed);
        took
    };
    let (written, (), well_after) = tokio::join!(join_all(writing), asking, suffering);

    let refused: usize = logs.iter().map(|log| log.refused.load(Ordering::Relaxed)).sum();
    let acknowledged: usize = written.iter().map(|(written, _)| written.len()).sum();
    println!(
        "PostgreSQL killed: {faults:?} in {:.1?}: {acknowledged} acknowledged, {refused} refused; \
         well after {well_after:.1?}",
        began.elapsed(),
    );
    for (tenant, written) in tenants.iter().zip(written.chunks(CLIENTS_PER_TENANT)) {
        let conversations: Vec<_> =
            written.iter().map(|(_, conversation)| conversation.clone()).collect();
        let there = ReadBack::of(server, tenant, &conversations).await;
        let mut all = 0;
        for (written, _) in written {
            assert_eq!(there.lost(written), Vec::<&Written>::new());
            all += written.len();
        }
        assert_eq!(there.doubled(), Vec::<&str>::new());
        // Each write was repeated until it was acknowledged: there are no
        // others.
        assert_eq!((there.writes(), there.texts().len()), (all, all));
        tenant.check_log().await;
    }
    assert!(well_after.iter().all(|after| *after < WELL_WITHIN), "{well_after:?}");
}
