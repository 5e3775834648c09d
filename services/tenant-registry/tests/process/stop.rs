//! How it ends while it is called.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::watch_tenants_response::Event;
use crm_proto::registry::v1::{
    CreateTenantRequest, GetTenantRequest, Tenant, UpdateTenantRequest, WatchTenantsRequest,
    WatchTenantsResponse,
};
use crm_tenancy::{Migration, RegistryClient, RegistryEndpoints};
use crm_testing::{
    Channel, Client, Folder, OpenStreams, OtherCluster, Outcomes, Process, Traffic, Wire,
    code_and_reason,
};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::net::unix::pipe::OpenOptions;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::{Authority, registry, serve_by_tls, service_token};

/// What a busy machine may take at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a test looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How many ask at once, beside those that write.
const READERS: usize = 36;
/// How many change a tenant at once: each its own.
const WRITERS: usize = 8;
/// How many make tenants at once: a database for each takes its time.
const MAKERS: usize = 2;

fn named(slug: &str) -> Tenant {
    Tenant { display_name: slug.to_owned(), slug: slug.to_owned(), ..Tenant::default() }
}

async fn make(client: Client, channel: Channel, slug: String) -> Result<Tenant, Status> {
    let request = CreateTenantRequest { tenant: Some(named(&slug)), ..Default::default() };
    let made = TenantServiceClient::new(channel).create_tenant(client.request(request)).await?;
    Ok(made.into_inner())
}

async fn rename(client: Client, channel: Channel, name: String, to: u64) -> Result<(), Status> {
    let tenant = Tenant { name, display_name: to.to_string(), ..Tenant::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["display_name".to_owned()] });
    let request = UpdateTenantRequest { tenant: Some(tenant), update_mask, ..Default::default() };
    TenantServiceClient::new(channel).update_tenant(client.request(request)).await.map(drop)
}

async fn read(client: Client, channel: Channel, name: String) -> Result<(), Status> {
    let request = client.request(GetTenantRequest { name });
    TenantServiceClient::new(channel).get_tenant(request).await.map(drop)
}

/// Gives the registry a schema of this service: without it there are no tenants.
async fn register(service: &'static str, folder: &Folder, internal: SocketAddr) {
    let variable = format!("CRM_{}_SECRET_FILE", service.to_uppercase());
    let secret = std::fs::read_to_string(folder.path(&variable)).unwrap();
    let url = format!("http://{internal}");
    let endpoints = RegistryEndpoints { public: url.clone(), internal: url, tls: None };
    let clock = crm_clock::Clock::default();
    let client = RegistryClient::new(service, secret.into(), &endpoints, clock).unwrap();
    let migration =
        Migration { version: 1, description: "", sql: "SELECT", oldest_service_version: 0 };
    client.register_schema(&[migration]).await.unwrap();
}

/// A stream that has told what is, and now waits for what becomes.
pub(crate) async fn watch(token: &str, channel: Channel) -> Streaming<WatchTenantsResponse> {
    let client = Client::new(token);
    let mut leases = LeaseServiceClient::new(channel);
    let watched = leases.watch_tenants(client.request(WatchTenantsRequest {})).await;
    let mut watched = watched.unwrap().into_inner();
    loop {
        let message = watched.message().await.unwrap().unwrap();
        if matches!(message.event, Some(Event::Heartbeat(_))) {
            return watched;
        }
    }
}

/// The end of such a stream.
async fn end_of(mut watched: Streaming<WatchTenantsResponse>) -> Status {
    loop {
        if let Err(status) = watched.message().await {
            return status;
        }
    }
}

/// A text column of the rows that a condition picks.
async fn texts(database: &mut PgConnection, query: String) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(database).await.unwrap()
}

/// Streams that stay open, and what the server sends on their connection.
async fn open(address: SocketAddr) -> (OpenStreams, Wire) {
    let wire = Wire::to(address).await;
    (OpenStreams::open(wire.address).await, wire)
}

/// A tenant has the last name that its writer was told it has.
async fn check_writer(database: &mut PgConnection, name: &str, outcomes: Outcomes) {
    let last = outcomes.answered.last().unwrap().to_string();
    let id = name.strip_prefix("tenants/").unwrap();
    let query = format!("SELECT display_name FROM tenants WHERE tenant_id = '{id}'");
    assert_eq!(texts(database, query).await, [last], "{outcomes:?}");
    outcomes.check(&outcomes.answered);
}

/// The numbers of the tenants that were made.
async fn made(database: &mut PgConnection) -> BTreeSet<u64> {
    let slugs = "SELECT slug FROM tenants WHERE slug LIKE 'made-%'".to_owned();
    let slugs = texts(database, slugs).await;
    slugs.iter().map(|slug| slug.strip_prefix("made-").unwrap().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_loses_no_call_that_was_accepted() {
    let cluster = OtherCluster::start().await;
    cluster.set_up().await;
    let folder = Folder::default();
    let command = || registry(&folder, cluster.port(), cluster.password());
    let mut process = Process::start(command(), &folder);
    let public = process.address("tenant-registry").await;
    let internal = process.address("tenant-registry-internal").await;
    process.wait_until(public, ServingStatus::Serving).await;
    let token = command().arg("token").output().unwrap();
    let operator = Client::new(String::from_utf8(token.stdout).unwrap().trim());
    for service in ["contacts", "messaging"] {
        register(service, &folder, internal).await;
    }
    let secret = std::fs::read_to_string(folder.path("CRM_CONTACTS_SECRET_FILE")).unwrap();
    let watched = watch(&service_token(public, &secret).await, operator.channel(internal)).await;
    let open = [open(public).await, open(internal).await];

    // Each writer renames a tenant of its own; others read it, or make more.
    let channels: Vec<_> = (0..4).map(|_| operator.channel(public)).collect();
    let channel = move |number: u64| channels[number as usize % channels.len()].clone();
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let made = make(operator.clone(), channel(0), format!("writer-{writer}")).await.unwrap();
        let (operator, channel, name) = (operator.clone(), channel.clone(), made.name.clone());
        let renames = move |number| rename(operator.clone(), channel(number), name.clone(), number);
        writers.push((made.name, Traffic::start(1, renames)));
    }
    let (client, way, name) = (operator.clone(), channel.clone(), writers[0].0.clone());
    let readers =
        Traffic::start(READERS, move |number| read(client.clone(), way(number), name.clone()));
    let makers = Traffic::start(MAKERS, move |number| {
        let made = make(operator.clone(), channel(number), format!("made-{number}"));
        async { made.await.map(drop) }
    });
    readers.flows(4 * READERS).await;
    makers.flows(MAKERS).await;
    for (_, writer) in &writers {
        writer.flows(2).await;
    }

    process.stops_at("TERM").await;

    let mut database = cluster.superuser("crm_registry").await;
    for (name, writer) in writers {
        check_writer(&mut database, &name, writer.ended().await).await;
    }
    let outcomes = readers.ended().await;
    outcomes.check(&outcomes.answered);
    makers.ended().await.check(&made(&mut database).await);
    let mut ends = vec![end_of(watched).await];
    for (streams, wire) in open {
        ends.extend(streams.ended().await);
        assert!(wire.says_not_serving_first());
    }
    for status in ends {
        let expected = (Code::Unavailable, "OVERLOADED".to_owned());
        assert_eq!(code_and_reason::<()>(Err(status)), expected);
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_to_its_end_holds_up_no_stop() {
    let cluster = OtherCluster::start().await;
    cluster.set_up().await;
    serve_by_tls(&cluster, &Authority::new()).await;
    let folder = Folder::default();
    // As on a disk that does not answer: whoever opens it waits for a writer.
    let pipe = folder.path("ca.pem");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut command = registry(&folder, cluster.port(), cluster.password());
    command
        .env("CRM_DATABASE_HOST", "localhost")
        .env("CRM_DATABASE_TLS", "verify-full")
        .env("PGSSLROOTCERT", &pipe);
    let process = Process::start(command, &folder);
    let until = Instant::now() + PATIENCE;
    // A writer who says nothing: a pipe that nobody reads cannot be opened.
    let _silent = loop {
        match OpenOptions::new().open_sender(&pipe) {
            Ok(silent) => break silent,
            Err(error) => assert!(Instant::now() < until, "{error}: {}", process.log()),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };

    process.stops_at("TERM").await;
}
