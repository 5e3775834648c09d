//! More than one PostgreSQL cluster.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crm_auth::TenantClaims;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_proto::registry::v1::cluster::{State, TlsMode};
use crm_proto::registry::v1::cluster_service_client::ClusterServiceClient;
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::{
    Cluster, CreateClusterRequest, CreateTenantRequest, GetClusterRequest, ListClustersRequest,
    Migration, RegisterSchemaRequest, Tenant as TenantMessage, UpdateClusterRequest,
};
use crm_testing::{
    Client, OtherCluster, Server, Tenant, code_and_reason, field_faults, own_server,
};
use prost::Message as _;
use prost_types::FieldMask;
use sqlx::Connection as _;
use tokio::sync::{Mutex, MutexGuard};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// The first cluster of every installation.
const FIRST: &str = "clusters/local";

/// A suite whose clusters a test may change, for one test at a time.
async fn suite() -> (&'static Server, MutexGuard<'static, ()>) {
    static SERVER: OnceLock<Server> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    (SERVER.get_or_init(|| own_server(0)), turn)
}

fn clusters(server: &Server) -> (Client, ClusterServiceClient<Channel>) {
    let operator = Client::operator(server);
    let client = ClusterServiceClient::new(operator.channel(server.addresses.registry));
    (operator, client)
}

/// A request to add a cluster, on this machine.
fn addition(id: &str, other: &OtherCluster) -> CreateClusterRequest {
    CreateClusterRequest {
        cluster_id: id.to_owned(),
        cluster: Some(Cluster {
            host: "127.0.0.1".to_owned(),
            port: other.port().into(),
            tls_mode: TlsMode::Disabled.into(),
            spare_target: Some(0),
            ..Cluster::default()
        }),
        password: other.password().to_owned(),
        ..CreateClusterRequest::default()
    }
}

async fn create(server: &Server, request: CreateClusterRequest) -> Result<Cluster, Status> {
    let (operator, mut client) = clusters(server);
    Ok(client.create_cluster(operator.request(request)).await?.into_inner())
}

async fn get(server: &Server, name: &str) -> Result<Cluster, Status> {
    let (operator, mut client) = clusters(server);
    let request = GetClusterRequest { name: name.to_owned() };
    Ok(client.get_cluster(operator.request(request)).await?.into_inner())
}

async fn update(server: &Server, request: UpdateClusterRequest) -> Result<Cluster, Status> {
    let (operator, mut client) = clusters(server);
    Ok(client.update_cluster(operator.request(request)).await?.into_inner())
}

/// A change of a cluster, by the fields that are set.
fn change(cluster: Cluster) -> UpdateClusterRequest {
    UpdateClusterRequest { cluster: Some(cluster), ..UpdateClusterRequest::default() }
}

async fn set_state(server: &Server, name: &str, state: State) {
    let cluster = Cluster { name: name.to_owned(), state: state.into(), ..Cluster::default() };
    assert_eq!(update(server, change(cluster)).await.unwrap().state(), state);
}

/// Asks until the cluster is as it should be.
async fn until(server: &Server, name: &str, is_right: impl Fn(&Cluster) -> bool) -> Cluster {
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        let cluster = get(server, name).await.unwrap();
        if is_right(&cluster) {
            return cluster;
        }
        assert!(Instant::now() < limit, "{cluster:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn try_tenant(server: &Server) -> Result<Tenant, Status> {
    let operator = Client::operator(server);
    let mut client = TenantServiceClient::new(operator.channel(server.addresses.registry));
    let request = CreateTenantRequest {
        tenant: Some(TenantMessage {
            display_name: "Test tenant".to_owned(),
            slug: format!("test-{}", server.clock.new_id().as_simple()),
            ..TenantMessage::default()
        }),
        ..CreateTenantRequest::default()
    };
    let tenant = client.create_tenant(operator.request(request)).await?.into_inner();
    let id = tenant.name.strip_prefix("tenants/").unwrap().parse().unwrap();
    Ok(Tenant { tenant, id })
}

async fn tenant(server: &Server) -> Tenant {
    try_tenant(server).await.unwrap()
}

/// A client with the token of an administrator of the tenant.
fn admin(server: &Server, tenant: &Tenant) -> Client {
    let claims = TenantClaims { tid: tenant.id, generation: 1, ver: 1 };
    let subject = format!("serviceAccounts/{}", tenant.id);
    let roles = vec!["roles/admin".to_owned()];
    Client::new(server.identity.issue(subject, roles, Some(claims)).unwrap().token)
}

/// Writes into the tenant's database, through the service.
async fn write(server: &Server, tenant: &Tenant) -> Result<(), Status> {
    let admin = admin(server, tenant);
    let mut contacts = ContactServiceClient::new(admin.channel(server.addresses.contacts));
    let contact = Contact {
        display_name: "First".to_owned(),
        phone: "12345".to_owned(),
        ..Contact::default()
    };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    contacts.create_contact(admin.request(request)).await.map(drop)
}

async fn register(server: &Server, sql: &[&str]) -> Result<u32, Status> {
    let roles = vec!["roles/internal.service".to_owned()];
    let issued = server.identity.issue("services/contacts".to_owned(), roles, None).unwrap();
    let client = Client::new(issued.token);
    let mut leases = LeaseServiceClient::new(client.channel(server.addresses.internal));
    let migrations = (1..).zip(sql).map(|(version, sql)| Migration {
        version,
        description: "a test's".to_owned(),
        sql: (*sql).to_owned(),
    });
    let request = RegisterSchemaRequest { migrations: migrations.collect() };
    let registered = leases.register_schema(client.request(request)).await?;
    Ok(registered.into_inner().schema_version)
}

#[tokio::test]
async fn a_second_cluster_holds_tenants_and_its_end_is_only_its_own() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    other.set_up().await;
    let before = tenant(server).await;
    let mut request = addition("story", &other);
    request.cluster.as_mut().unwrap().spare_target = Some(2);

    let added = create(server, request).await.unwrap();

    assert_eq!(added.name, "clusters/story");
    assert!(added.reachable && added.template > 0 && added.size_bytes > 0, "{added:?}");
    assert!(added.postgresql_version.parse::<f32>().unwrap() >= 15.0, "{added:?}");
    until(server, &added.name, |cluster| cluster.spare_count == 2).await;
    // It has the fewest tenants, and one goes into a spare, another beside.
    let first = get(server, FIRST).await.unwrap();
    let mut there = Vec::new();
    while there.len() < 3 {
        let tenant = tenant(server).await;
        write(server, &tenant).await.unwrap();
        there.extend(Some(tenant).filter(|tenant| tenant.tenant.cluster == added.name));
    }
    let mut session = other.superuser(&there[0].tenant.database).await;
    let written: i64 = sqlx::query_scalar("SELECT count(*) FROM contacts.contacts")
        .fetch_one(&mut session)
        .await
        .unwrap();
    assert_eq!(written, 1);
    session.close().await.unwrap();
    let full = until(server, &added.name, |cluster| cluster.session_count > 0).await;
    assert!(full.tenant_count >= 3 && full.reachable, "{full:?}");
    assert!(get(server, FIRST).await.unwrap().tenant_count - first.tenant_count <= 3);

    // A cluster that is being emptied gets no more.
    set_state(server, &added.name, State::Draining).await;
    assert_eq!(tenant(server).await.tenant.cluster, FIRST);

    // Without its server, what is known is answered, and others go on.
    other.stop().await;
    let down = until(server, &added.name, |cluster| !cluster.reachable).await;
    assert_eq!((down.tenant_count, down.session_count), (full.tenant_count, 0));
    assert_eq!(down.postgresql_version, "");
    write(server, &before).await.unwrap();
    assert_eq!(tenant(server).await.tenant.cluster, FIRST);
    assert_eq!(code_and_reason(write(server, &there[0]).await).0, Code::Unavailable);
    let (operator, mut client) = clusters(server);
    let page = client.list_clusters(operator.request(ListClustersRequest::default())).await;
    let names: Vec<_> = page.unwrap().into_inner().clusters;
    let story = names.iter().find(|cluster| cluster.name == added.name).unwrap();
    assert!(!story.reachable);
    assert!(names.iter().any(|cluster| cluster.name == FIRST && cluster.reachable));

    other.start_again().await;
    until(server, &added.name, |cluster| cluster.reachable).await;
    write(server, &there[0]).await.unwrap();
}

#[tokio::test]
async fn a_server_that_lacks_something_is_refused_with_what_it_lacks() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    let not_ready = (Code::FailedPrecondition, "CLUSTER_NOT_READY".to_owned());

    let bare = create(server, addition("bare", &other)).await;
    assert_eq!(code_and_reason(bare), not_ready);
    other.set_up().await;
    let mut postgres = other.superuser("postgres").await;
    for (spoil, repair, lacks) in [
        (
            "ALTER ROLE crm_registry NOCREATEDB",
            "ALTER ROLE crm_registry CREATEDB",
            "create databases",
        ),
        (
            "REVOKE pg_checkpoint FROM crm_registry",
            "GRANT pg_checkpoint TO crm_registry",
            "checkpoint",
        ),
        (
            "REVOKE EXECUTE ON FUNCTION crm_cluster.ensure_service(text, text) FROM crm_registry",
            "GRANT EXECUTE ON FUNCTION crm_cluster.ensure_service(text, text) TO crm_registry",
            "ensure_service",
        ),
        (
            "GRANT CONNECT ON DATABASE template1 TO PUBLIC",
            "REVOKE CONNECT ON DATABASE template1 FROM PUBLIC",
            "template1",
        ),
    ] {
        sqlx::raw_sql(spoil).execute(&mut postgres).await.unwrap();
        let refused = create(server, addition("bare", &other)).await;
        let message = refused.as_ref().unwrap_err().message().to_owned();
        assert_eq!(code_and_reason(refused), not_ready, "{spoil}");
        assert!(message.contains(lacks), "{message}");
        sqlx::raw_sql(repair).execute(&mut postgres).await.unwrap();
    }
    let mut wrong = addition("bare", &other);
    wrong.password = "another".to_owned();
    assert_eq!(code_and_reason(create(server, wrong).await), not_ready);
    let mut encrypted = addition("bare", &other);
    encrypted.cluster.as_mut().unwrap().tls_mode = TlsMode::Unspecified.into();
    assert_eq!(code_and_reason(create(server, encrypted).await), not_ready);
    let mut nobody = addition("bare", &other);
    nobody.cluster.as_mut().unwrap().port = 1;
    assert_eq!(code_and_reason(create(server, nobody).await), not_ready);

    let dry = CreateClusterRequest { validate_only: true, ..addition("bare", &other) };
    let preview = create(server, dry).await.unwrap();
    assert_eq!((preview.etag.as_str(), preview.template), ("", 0));
    assert!(preview.reachable);
    let missing = get(server, "clusters/bare").await;
    assert_eq!(code_and_reason(missing), (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned()));
}

#[tokio::test]
async fn a_cluster_is_added_once_and_a_repeated_request_answers_the_same() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    other.set_up().await;
    let request_id = server.clock.new_id().to_string();
    let request = CreateClusterRequest { request_id, ..addition("once", &other) };

    let (one, two) = tokio::join!(create(server, request.clone()), create(server, request.clone()));

    assert_eq!(one.unwrap().encode_to_vec(), two.unwrap().encode_to_vec());
    let reused = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
    let mut other_body = request.clone();
    other_body.cluster.as_mut().unwrap().tenant_capacity = Some(7);
    assert_eq!(code_and_reason(create(server, other_body).await), reused);
    let other_password = CreateClusterRequest { password: "another".to_owned(), ..request };
    assert_eq!(code_and_reason(create(server, other_password).await), reused);
    let exists = (Code::AlreadyExists, "CLUSTER_EXISTS".to_owned());
    let again = create(server, addition("once", &other)).await;
    assert_eq!(code_and_reason(again), exists);
    let twice = create(server, addition("twice", &other)).await;
    assert_eq!(code_and_reason(twice), exists);

    // The password is nowhere to be read.
    let mut registry = server.superuser("crm_registry").await;
    let row: String = sqlx::query_scalar(
        "SELECT concat(encode(secret, 'escape'), c::text, r::text)
         FROM clusters AS c JOIN cluster_requests AS r USING (cluster)
         WHERE cluster = 'once'",
    )
    .fetch_one(&mut registry)
    .await
    .unwrap();
    assert!(!row.contains(other.password()));
    assert!(!format!("{:?}", addition("once", &other)).contains(other.password()));
    set_state(server, "clusters/once", State::Draining).await;
}

#[tokio::test]
async fn a_cluster_that_misses_a_schema_gets_it_before_more_tenants() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    other.set_up().await;
    let added = create(server, addition("late", &other)).await.unwrap();
    other.stop().await;
    let first = include_str!("../../contacts/migrations/0001_contacts.sql");
    let comment = "COMMENT ON TABLE contacts.contacts IS 'people'";

    assert_eq!(register(server, &[first, comment]).await.unwrap(), 2);

    // It has the fewest tenants, and the old template.
    assert_eq!(tenant(server).await.tenant.cluster, FIRST);
    other.start_again().await;
    let caught_up = until(server, &added.name, |cluster| cluster.template > added.template).await;
    assert!(caught_up.reachable);
    while get(server, &added.name).await.unwrap().tenant_count == 0 {
        write(server, &tenant(server).await).await.unwrap();
    }
    set_state(server, &added.name, State::Draining).await;
}

#[tokio::test]
async fn an_operator_changes_what_may_be_changed() {
    let (server, _turn) = suite().await;
    let before = get(server, FIRST).await.unwrap();
    let named = Cluster {
        name: FIRST.to_owned(),
        display_name: "The first".to_owned(),
        etag: before.etag.clone(),
        ..Cluster::default()
    };
    let request = UpdateClusterRequest {
        request_id: server.clock.new_id().to_string(),
        ..change(named.clone())
    };

    let dry = UpdateClusterRequest { validate_only: true, ..change(named.clone()) };
    let preview = update(server, dry).await.unwrap();
    assert_eq!(preview.display_name, "The first");
    assert_eq!(get(server, FIRST).await.unwrap().etag, before.etag);
    let after = update(server, request.clone()).await.unwrap();
    assert_eq!((after.display_name.as_str(), &after.host), ("The first", &before.host));
    assert_ne!(after.etag, before.etag);
    let again = update(server, request.clone()).await.unwrap();
    assert_eq!(again.etag, after.etag);

    let stale = (Code::Aborted, "CONCURRENT_CHANGE".to_owned());
    assert_eq!(code_and_reason(update(server, change(named.clone())).await), stale);
    let reused = UpdateClusterRequest { request_id: request.request_id, ..change(named.clone()) };
    let reused = UpdateClusterRequest {
        cluster: Some(Cluster { display_name: "Another".to_owned(), ..named }),
        ..reused
    };
    let expected = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
    assert_eq!(code_and_reason(update(server, reused).await), expected);
    let cleared = UpdateClusterRequest {
        update_mask: Some(FieldMask { paths: vec!["display_name".to_owned()] }),
        ..change(Cluster { name: FIRST.to_owned(), port: -1, ..Cluster::default() })
    };
    assert_eq!(update(server, cleared).await.unwrap().display_name, "");
    let unknown = Cluster { name: "clusters/none".to_owned(), ..after };
    let expected = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());
    let unknown = Cluster { etag: String::new(), ..unknown };
    assert_eq!(code_and_reason(update(server, change(unknown)).await), expected);
}

#[tokio::test]
async fn a_platform_that_is_full_says_so() {
    let (server, _turn) = suite().await;
    let capacity = |capacity| {
        let tenant_capacity = Some(capacity);
        change(Cluster { name: FIRST.to_owned(), tenant_capacity, ..Cluster::default() })
    };

    let held = get(server, FIRST).await.unwrap().tenant_count;
    update(server, capacity(held + 1)).await.unwrap();
    tenant(server).await;
    let refused = try_tenant(server).await;
    update(server, capacity(1000)).await.unwrap();

    let expected = (Code::ResourceExhausted, "CLUSTERS_FULL".to_owned());
    assert_eq!(code_and_reason(refused), expected);
    tenant(server).await;
}

#[tokio::test]
async fn every_fault_of_a_cluster_stands_in_one_answer() {
    let (server, _turn) = suite().await;
    let request = CreateClusterRequest {
        cluster_id: "Not An Id".to_owned(),
        cluster: Some(Cluster {
            host: "/run/postgresql".to_owned(),
            port: 70_000,
            tls_mode: 9,
            spare_target: Some(-1),
            tenant_capacity: Some(-1),
            ..Cluster::default()
        }),
        request_id: "x".to_owned(),
        ..CreateClusterRequest::default()
    };

    let faults = field_faults(create(server, request).await);

    let fields: Vec<_> = faults.iter().map(|(field, _)| field.as_str()).collect();
    let expected = [
        "cluster.port",
        "cluster.tls_mode",
        "cluster.tenant_capacity",
        "cluster.spare_target",
        "password",
        "request_id",
        "cluster_id",
        "cluster.host",
    ];
    assert_eq!(fields, expected);
    let nothing = change(Cluster { name: FIRST.to_owned(), ..Cluster::default() });
    assert_eq!(field_faults(update(server, nothing).await)[0].0, "update_mask");
    let immutable = UpdateClusterRequest {
        update_mask: Some(FieldMask { paths: vec!["host".to_owned()] }),
        ..change(Cluster { name: "local".to_owned(), ..Cluster::default() })
    };
    let faults = field_faults(update(server, immutable).await);
    let fields: Vec<_> = faults.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["cluster.name", "update_mask"]);
    assert_eq!(field_faults(get(server, "clusters/A").await)[0].0, "name");
}

#[tokio::test]
async fn clusters_are_listed_in_pages() {
    let (server, _turn) = suite().await;
    let (operator, mut client) = clusters(server);
    let other = OtherCluster::start().await;
    other.set_up().await;
    create(server, addition("another", &other)).await.unwrap();
    set_state(server, "clusters/another", State::Draining).await;
    let mut names = Vec::new();
    let mut page_token = String::new();

    loop {
        let request = ListClustersRequest { page_size: 1, page_token };
        let page = client.list_clusters(operator.request(request)).await.unwrap().into_inner();
        assert!(page.clusters.len() <= 1);
        names.extend(page.clusters.into_iter().map(|cluster| cluster.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }

    assert!(names.is_sorted() && names.contains(&FIRST.to_owned()) && names.len() >= 2);
    for request in [
        ListClustersRequest { page_token: "x".to_owned(), ..ListClustersRequest::default() },
        ListClustersRequest { page_size: -1, ..ListClustersRequest::default() },
    ] {
        assert_eq!(field_faults(client.list_clusters(operator.request(request)).await).len(), 1);
    }
}

#[tokio::test]
async fn a_tenants_administrator_sees_no_clusters() {
    let (server, _turn) = suite().await;
    let tenant = tenant(server).await;
    let admin = admin(server, &tenant);
    let mut client = ClusterServiceClient::new(admin.channel(server.addresses.registry));

    let read = client.get_cluster(admin.request(GetClusterRequest { name: FIRST.to_owned() }));
    let expected = (Code::PermissionDenied, "PERMISSION_MISSING".to_owned());
    assert_eq!(code_and_reason(read.await), expected);
    let listed = client.list_clusters(admin.request(ListClustersRequest::default())).await;
    assert_eq!(code_and_reason(listed), expected);
    let created = client.create_cluster(admin.request(CreateClusterRequest::default())).await;
    assert_eq!(code_and_reason(created), expected);
    let updated = client.update_cluster(admin.request(UpdateClusterRequest::default())).await;
    assert_eq!(code_and_reason(updated), expected);
}
