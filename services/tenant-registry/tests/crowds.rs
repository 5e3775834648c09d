//! Many processes at once: the registry's few connections are enough for all.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::OnceLock;

use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::{
    CreateTenantRequest, Migration, RegisterSchemaRequest, ReportActivityRequest,
    SuspendTenantRequest, Tenant,
};
use crm_tenant_registry::RESERVED_CONNECTIONS;
use crm_testing::{Channel, Client, Server, code_and_reason, contacts_migrations, own_server};
use futures_util::future::join_all;
use tonic::{Code, Status};

/// More than the registry has connections.
const CROWD: usize = 30;
/// How often two want the same room.
const RACES: i64 = 30;

fn suite() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| own_server(0))
}

fn service() -> (Client, LeaseServiceClient<Channel>) {
    service_at(suite().addresses.internal)
}

fn service_at(address: SocketAddr) -> (Client, LeaseServiceClient<Channel>) {
    let roles = vec!["roles/internal.service".to_owned()];
    let issued = suite().identity.issue("services/contacts".to_owned(), roles, None).unwrap();
    let client = Client::new(issued.token);
    let leases = LeaseServiceClient::new(client.channel(address));
    (client, leases)
}

/// Registers the newest version of contacts, as a process of it that starts.
async fn register() -> Result<u32, Status> {
    let (client, mut leases) = service();
    let next = "COMMENT ON TABLE contacts.contacts IS 'people'";
    let all = contacts_migrations().into_iter().chain([next]);
    let migrations = (1..).zip(all).map(|(version, sql)| Migration {
        version,
        description: "a test's".to_owned(),
        sql: sql.to_owned(),
        oldest_service_version: 0,
    });
    let request = RegisterSchemaRequest { migrations: migrations.collect() };
    Ok(leases.register_schema(client.request(request)).await?.into_inner().schema_version)
}

async fn report(instance: usize, number: i64, session_budget: u32) -> Result<(), Status> {
    let instance = format!("crowd-{instance}");
    report_to(suite().addresses.internal, instance, number, session_budget).await
}

async fn report_to(
    address: SocketAddr,
    instance: String,
    number: i64,
    session_budget: u32,
) -> Result<(), Status> {
    let (client, mut leases) = service_at(address);
    let request = ReportActivityRequest {
        instance,
        report_number: number,
        session_budget,
        tenants: Vec::new(),
    };
    leases.report_activity(client.request(request)).await.map(drop)
}

#[tokio::test]
async fn many_processes_that_start_with_a_new_version_all_get_in() {
    let outcomes = join_all((0..CROWD).map(|_| register())).await;

    for outcome in outcomes {
        assert_eq!(outcome.unwrap() as usize, contacts_migrations().len() + 1);
    }
}

#[tokio::test]
async fn many_processes_join_at_once() {
    let joined = join_all((0..CROWD).map(|instance| report(instance, 1, 1))).await;
    let left = join_all((0..CROWD).map(|instance| report(instance, 2, 0))).await;

    for outcome in joined.into_iter().chain(left) {
        outcome.unwrap();
    }
}

/// How many sessions more the first cluster takes.
async fn room() -> i64 {
    let mut registry = suite().superuser("crm_registry").await;
    let room = sqlx::query_scalar(
        "SELECT current_setting('max_connections')::bigint
             - current_setting('superuser_reserved_connections')::bigint
             - $1 - (SELECT sum(session_budget) FROM instances)",
    );
    room.bind(RESERVED_CONNECTIONS).fetch_one(&mut registry).await.unwrap()
}

#[tokio::test]
async fn of_two_that_want_the_same_room_at_two_replicas_one_gets_it() {
    let replica = suite().replica().await;
    let places = [suite().addresses.internal, replica.addresses.internal];
    // Others come and go, and have room beside it.
    let budget = u32::try_from(room().await * 3 / 5).unwrap();
    let refused = (Code::FailedPrecondition, "SESSION_BUDGET_EXCEEDED".to_owned());

    for race in 0..RACES {
        let join =
            |place: usize| report_to(places[place], format!("racer-{place}"), 2 * race + 1, budget);
        let leave =
            |place: usize| report_to(places[place], format!("racer-{place}"), 2 * race + 2, 0);

        let outcomes = <[_; 2]>::from(tokio::join!(join(0), join(1)));
        let [left, right] = <[_; 2]>::from(tokio::join!(leave(0), leave(1)));

        left.and(right).unwrap();
        let (taken, left_out): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!((taken.len(), left_out.len()), (1, 1), "race {race}: {left_out:?}");
        for outcome in left_out {
            assert_eq!(code_and_reason(outcome), refused);
        }
    }
    replica.stop().await;
}

async fn create(request_id: String) -> Result<Tenant, Status> {
    let operator = Client::operator(suite());
    let mut client = TenantServiceClient::new(operator.channel(suite().addresses.registry));
    let tenant = Tenant { display_name: "A crowd's".to_owned(), ..Tenant::default() };
    let request = CreateTenantRequest { tenant: Some(tenant), request_id, ..Default::default() };
    Ok(client.create_tenant(operator.request(request)).await?.into_inner())
}

async fn suspend(name: &str) -> Result<Tenant, Status> {
    let operator = Client::operator(suite());
    let mut client = TenantServiceClient::new(operator.channel(suite().addresses.registry));
    let request = SuspendTenantRequest { name: name.to_owned(), ..Default::default() };
    Ok(client.suspend_tenant(operator.request(request)).await?.into_inner())
}

#[tokio::test]
async fn many_tenants_are_made_and_suspended_at_once() {
    let first = join_all((0..CROWD).map(|_| create(String::new()))).await;
    let first: Vec<_> = first.into_iter().map(|made| made.unwrap().name).collect();
    let request_id = suite().clock.new_id().to_string();

    let (made, repeated, suspended) = tokio::join!(
        join_all((0..CROWD).map(|_| create(String::new()))),
        join_all((0..CROWD).map(|_| create(request_id.clone()))),
        join_all(first.iter().map(|name| suspend(name))),
    );

    for outcome in made.into_iter().chain(suspended) {
        outcome.unwrap();
    }
    let names: HashSet<_> = repeated.into_iter().map(|made| made.unwrap().name).collect();
    assert_eq!(names.len(), 1);
}
