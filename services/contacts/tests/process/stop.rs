//! How it ends while it is called.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_testing::{
    Channel, Client, Folder, OpenStreams, Process, Tenant, Traffic, Wire, ask_admin,
    code_and_reason, server,
};
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::contacts;

/// How long a process that is asked twice may take.
const ABORTS_WITHIN: Duration = Duration::from_secs(3);
/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a test looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What comes sooner after a signal is the same signal.
const SAME_SIGNAL: Duration = Duration::from_millis(600);
/// How many sessions the process has.
const SESSIONS: i64 = 5;
/// How many callers there are: more than that.
const CALLERS: usize = 48;

/// The process with the suite's registry, when it serves.
async fn started(folder: &Folder) -> (Process, SocketAddr) {
    let registry = format!("http://{}", server().addresses.internal);
    let mut process = Process::start(contacts(folder, &registry), folder);
    let address = process.address("contacts").await;
    process.wait_until(address, ServingStatus::Serving).await;
    (process, address)
}

async fn create(client: Client, channel: Channel, number: u64) -> Result<(), Status> {
    let contact = Contact {
        display_name: number.to_string(),
        email: "ada@example.com".to_owned(),
        ..Contact::default()
    };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    let request = client.request(request);
    ContactServiceClient::new(channel).create_contact(request).await.map(drop)
}

/// The numbers of the contacts that are there.
async fn created(tenant: &Tenant) -> BTreeSet<u64> {
    let names: Vec<String> = sqlx::query_scalar("SELECT display_name FROM contacts.contacts")
        .fetch_all(&mut tenant.database().await)
        .await
        .unwrap();
    names.iter().map(|name| name.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_loses_no_call_that_was_accepted() {
    for signal in ["TERM", "INT"] {
        let folder = Folder::default();
        let tenant = Tenant::create().await;
        let (process, address) = started(&folder).await;
        let wire = Wire::to(address).await;
        let streams = OpenStreams::open(wire.address).await;
        let admin = tenant.admin();
        let channels: Vec<_> = (0..4).map(|_| admin.channel(address)).collect();
        let traffic = Traffic::start(CALLERS, move |number| {
            create(admin.clone(), channels[number as usize % channels.len()].clone(), number)
        });
        traffic.flows(4 * CALLERS).await;

        process.stops_at(signal).await;

        traffic.ended().await.check(&created(&tenant).await);
        for status in streams.ended().await {
            let expected = (Code::Unavailable, "OVERLOADED".to_owned());
            assert_eq!(code_and_reason::<()>(Err(status)), expected);
        }
        assert!(wire.says_not_serving_first());
        tenant.check_log().await;
    }
}

/// Calls that hang, since the log of their tenant is locked, until the
/// transaction ends.
async fn hanging_calls(
    tenant: &Tenant,
    address: SocketAddr,
) -> (PgConnection, JoinSet<Result<(), Status>>) {
    let mut lock = tenant.database().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE platform.head").execute(&mut lock).await.unwrap();
    let admin = tenant.admin();
    let channel = admin.channel(address);
    let mut calls = JoinSet::new();
    for number in 0..CALLERS as u64 {
        calls.spawn(create(admin.clone(), channel.clone(), number));
    }
    wait_for_waiting(tenant, |waiting| waiting == SESSIONS).await;
    (lock, calls)
}

/// Waits until so many sessions of the tenant wait for the lock.
async fn wait_for_waiting(tenant: &Tenant, is_met: impl Fn(i64) -> bool) {
    let mut database = tenant.database().await;
    let until = Instant::now() + PATIENCE;
    loop {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&mut database)
        .await
        .unwrap();
        if is_met(waiting) {
            return;
        }
        assert!(Instant::now() < until, "{waiting} sessions wait");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_hangs_ends_with_a_status() {
    let folder = Folder::default();
    let tenant = Tenant::create().await;
    let (process, address) = started(&folder).await;
    let (lock, calls) = hanging_calls(&tenant, address).await;

    // It takes 7 seconds, and what a busy machine adds.
    assert!(process.terminate().await.success());

    let mut codes = HashSet::new();
    for outcome in calls.join_all().await {
        codes.insert(code_and_reason(outcome));
    }
    // Those without a session waited for one in vain.
    let expected = [
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned()),
        (Code::ResourceExhausted, "SESSIONS_EXHAUSTED".to_owned()),
    ];
    assert_eq!(codes, HashSet::from(expected));
    // PostgreSQL ends what nobody waits for.
    wait_for_waiting(&tenant, |waiting| waiting == 0).await;
    lock.close().await.unwrap();
    assert_eq!(created(&tenant).await, BTreeSet::new());
    tenant.check_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_aborts_though_calls_hang() {
    for signals in [["TERM", "TERM"], ["INT", "INT"], ["TERM", "INT"]] {
        let folder = Folder::default();
        let tenant = Tenant::create().await;
        let (mut process, address) = started(&folder).await;
        let probes = process.address("admin").await;
        let (lock, calls) = hanging_calls(&tenant, address).await;

        process.signal(signals[0]);
        while ask_admin(probes, "/readyz").await.0 != 503 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        // Sooner it would count as the same signal.
        tokio::time::sleep(SAME_SIGNAL).await;
        let aborted = Instant::now();
        process.signal(signals[1]);

        assert_eq!(process.ended().await.code(), Some(143), "{signals:?}");
        assert!(aborted.elapsed() < ABORTS_WITHIN, "{:?}", aborted.elapsed());
        assert!(calls.join_all().await.iter().all(Result::is_err));
        lock.close().await.unwrap();
    }
}
