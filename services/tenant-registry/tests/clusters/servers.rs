//! Tenants on a second server: what they share with others, and what not.

use std::time::{Duration, Instant};

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest, ListContactsRequest};
use crm_proto::registry::v1::cluster::State;
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::{
    AcquireLeaseRequest, ListClustersRequest, Migration, RegisterSchemaRequest,
};
use crm_testing::{Channel, Client, OtherCluster, Server, Tenant, code_and_reason};
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tonic::{Code, Status};

use super::{
    FIRST, PATIENCE, addition, admin, clusters, create, get, set_state, suite, until, write,
};

fn service(server: &Server) -> (Client, LeaseServiceClient<Channel>) {
    let roles = vec!["roles/internal.service".to_owned()];
    let issued = server.identity.issue("services/contacts".to_owned(), roles, None).unwrap();
    let client = Client::new(issued.token);
    let leases = LeaseServiceClient::new(client.channel(server.addresses.internal));
    (client, leases)
}

/// Tries the login of a service in every database of the tenant's cluster.
async fn only_its_own_database_opens(server: &Server, other: &OtherCluster, tenant: &Tenant) {
    let (client, mut leases) = service(server);
    let request = AcquireLeaseRequest { tenant: tenant.tenant.name.clone(), ..Default::default() };
    let lease = leases.acquire_lease(client.request(request)).await.unwrap().into_inner();
    assert_eq!(lease.port, u32::from(other.port()));
    let mut session = other.superuser("postgres").await;
    let names = sqlx::query_scalar("SELECT datname::text FROM pg_database");
    let names: Vec<String> = names.fetch_all(&mut session).await.unwrap();
    for name in names {
        let options = PgConnectOptions::new_without_pgpass()
            .host(&lease.host)
            .port(other.port())
            .username(&lease.user)
            .password(&lease.secret)
            .database(&name);
        let opened = PgConnection::connect_with(&options).await;
        assert_eq!(opened.is_ok(), name == tenant.tenant.database, "{name}");
    }
}

/// Registers one more migration of contacts, and answers its version.
pub(super) async fn register(server: &Server, sql: &str) -> Result<u32, Status> {
    let mut registry = server.superuser("crm_registry").await;
    let known = "SELECT sql FROM migrations WHERE service = 'contacts' ORDER BY version";
    let mut set: Vec<String> = sqlx::query_scalar(known).fetch_all(&mut registry).await.unwrap();
    set.push(sql.to_owned());
    let (client, mut leases) = service(server);
    let migrations = (1..).zip(set).map(|(version, sql)| Migration {
        version,
        description: "a test's".to_owned(),
        sql,
        oldest_service_version: 0,
    });
    let request = RegisterSchemaRequest { migrations: migrations.collect() };
    let registered = leases.register_schema(client.request(request)).await?;
    Ok(registered.into_inner().schema_version)
}

/// Suspends tenants as a process does that dies then.
async fn suspend_and_die(server: &Server, tenants: &[&Tenant]) {
    let mut registry = server.superuser("crm_registry").await;
    let ids: Vec<_> = tenants.iter().map(|tenant| tenant.id).collect();
    sqlx::query("UPDATE tenants SET state = 3, is_settled = false WHERE tenant_id = ANY($1)")
        .bind(ids)
        .execute(&mut registry)
        .await
        .unwrap();
}

/// Waits until the tenant's cluster enforces its state.
async fn until_settled(server: &Server, tenant: &Tenant, patience: Duration) {
    let mut registry = server.superuser("crm_registry").await;
    let start = Instant::now();
    loop {
        let settled = sqlx::query_scalar("SELECT is_settled FROM tenants WHERE tenant_id = $1");
        let settled: bool = settled.bind(tenant.id).fetch_one(&mut registry).await.unwrap();
        if settled {
            return;
        }
        assert!(start.elapsed() < patience, "it is not settled");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_second_cluster_holds_tenants_and_its_end_is_only_its_own() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    other.set_up().await;
    let before = Tenant::create_in(server).await;
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
        let tenant = Tenant::create_in(server).await;
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

    only_its_own_database_opens(server, &other, &there[0]).await;

    // A cluster that is being emptied gets no more.
    set_state(server, &added.name, State::Draining).await;
    assert_eq!(Tenant::create_in(server).await.tenant.cluster, FIRST);

    // Without its server, what is known is answered, and others go on.
    other.stop().await;
    let down = until(server, &added.name, |cluster| !cluster.reachable).await;
    assert_eq!((down.tenant_count, down.session_count), (full.tenant_count, 0));
    assert_eq!(down.postgresql_version, "");
    write(server, &before).await.unwrap();
    assert_eq!(Tenant::create_in(server).await.tenant.cluster, FIRST);
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
async fn a_cluster_that_misses_a_schema_gets_it_before_more_tenants() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    other.set_up().await;
    let added = create(server, addition("late", &other)).await.unwrap();
    other.stop().await;

    register(server, "COMMENT ON TABLE contacts.contacts IS 'people'").await.unwrap();

    // It has the fewest tenants, and the old template.
    assert_eq!(Tenant::create_in(server).await.tenant.cluster, FIRST);
    other.start_again().await;
    let caught_up = until(server, &added.name, |cluster| cluster.template > added.template).await;
    assert!(caught_up.reachable);
    while get(server, &added.name).await.unwrap().tenant_count == 0 {
        write(server, &Tenant::create_in(server).await).await.unwrap();
    }
    set_state(server, &added.name, State::Draining).await;
}

#[tokio::test]
async fn a_cluster_that_is_down_gets_no_tenants_and_holds_up_no_fence() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    other.set_up().await;
    let near = Tenant::create_in(server).await;
    let added = create(server, addition("down", &other)).await.unwrap();
    let mut there = Vec::new();
    set_state(server, FIRST, State::Draining).await;
    while there.len() < 25 {
        there.push(Tenant::create_in(server).await);
    }
    set_state(server, FIRST, State::Active).await;
    // It has the fewest tenants, and will have.
    let mut registry = server.superuser("crm_registry").await;
    sqlx::raw_sql(
        "INSERT INTO databases (database_id, cluster, name, purpose, step, create_time)
         SELECT gen_random_uuid(), 'local', 'counted_' || n, 'tenant', 'planned', now()
         FROM generate_series(1, 100) AS n",
    )
    .execute(&mut registry)
    .await
    .unwrap();

    other.stop().await;

    let start = Instant::now();
    while Tenant::try_create_in(server).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "tenants go to where nothing answers");
    }
    for _ in 0..3 {
        assert_eq!(Tenant::create_in(server).await.tenant.cluster, FIRST);
    }
    let suspended: Vec<_> = there.iter().chain([&near]).collect();
    suspend_and_die(server, &suspended).await;
    // One after the other, they would take 3 seconds each.
    until_settled(server, &near, Duration::from_secs(40)).await;
    other.start_again().await;
    for tenant in suspended {
        until_settled(server, tenant, PATIENCE).await;
    }
    let counted = "DELETE FROM databases WHERE name LIKE 'counted_%'";
    sqlx::raw_sql(counted).execute(&mut registry).await.unwrap();
    set_state(server, &added.name, State::Draining).await;
}

#[tokio::test]
async fn a_cluster_that_stands_still_holds_up_no_fence() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    other.set_up().await;
    let near = Tenant::create_in(server).await;
    let added = create(server, addition("still", &other)).await.unwrap();
    set_state(server, &added.name, State::Draining).await;
    // Whoever asks for roles there gets no answer.
    let mut session = other.superuser("postgres").await;
    let mut still = session.begin().await.unwrap();
    sqlx::query("LOCK pg_authid IN ACCESS EXCLUSIVE MODE").execute(&mut *still).await.unwrap();
    let mut waits = false;
    while !waits {
        let asked = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)");
        waits = asked.fetch_one(&mut *still).await.unwrap();
    }

    suspend_and_die(server, &[&near]).await;

    until_settled(server, &near, PATIENCE).await;
    still.rollback().await.unwrap();
}

#[tokio::test]
async fn a_cluster_that_takes_no_template_holds_up_no_service() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    other.set_up().await;
    let added = create(server, addition("full", &other)).await.unwrap();
    let mut postgres = other.superuser("postgres").await;
    sqlx::raw_sql("ALTER ROLE crm_registry NOCREATEDB").execute(&mut postgres).await.unwrap();

    register(server, "COMMENT ON TABLE contacts.contacts IS 'full'").await.unwrap();

    sqlx::raw_sql("ALTER ROLE crm_registry CREATEDB").execute(&mut postgres).await.unwrap();
    until(server, &added.name, |cluster| cluster.template > added.template).await;
    set_state(server, &added.name, State::Draining).await;
}

#[tokio::test]
async fn what_fails_for_one_cluster_undoes_no_registration() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    other.set_up().await;
    let added = create(server, addition("torn", &other)).await.unwrap();
    // What writes its template down fails, in the registry's own database.
    let mut registry = server.superuser("crm_registry").await;
    sqlx::raw_sql(
        "CREATE FUNCTION torn() RETURNS trigger LANGUAGE plpgsql
         AS $$ BEGIN RAISE EXCEPTION 'torn'; END $$;
         CREATE TRIGGER torn BEFORE UPDATE OF template_id ON clusters
         FOR EACH ROW WHEN (new.cluster = 'torn') EXECUTE FUNCTION torn()",
    )
    .execute(&mut registry)
    .await
    .unwrap();

    let version = register(server, "COMMENT ON TABLE contacts.contacts IS 'torn'").await.unwrap();

    let kept = "SELECT max(version) FROM migrations WHERE service = 'contacts'";
    let kept: i32 = sqlx::query_scalar(kept).fetch_one(&mut registry).await.unwrap();
    assert_eq!(kept.unsigned_abs(), version);
    assert!(get(server, FIRST).await.unwrap().template > added.template);
    sqlx::raw_sql("DROP FUNCTION torn CASCADE").execute(&mut registry).await.unwrap();
    until(server, &added.name, |cluster| cluster.template > added.template).await;
    set_state(server, &added.name, State::Draining).await;
}

#[tokio::test]
async fn an_address_is_found_whatever_letters_the_locale_of_the_cluster_knows() {
    let (server, _turn) = suite().await;
    let other = OtherCluster::start().await;
    let mut postgres = other.superuser("postgres").await;
    // As `initdb --locale=C` makes it.
    sqlx::query("UPDATE pg_database SET datctype = 'C' WHERE datname = 'template0'")
        .execute(&mut postgres)
        .await
        .unwrap();
    other.set_up().await;
    let added = create(server, addition("ascii", &other)).await.unwrap();
    set_state(server, FIRST, State::Draining).await;
    let tenant = Tenant::create_in(server).await;
    set_state(server, FIRST, State::Active).await;
    assert_eq!(tenant.tenant.cluster, added.name);
    let admin = admin(server, &tenant);
    let mut contacts = ContactServiceClient::new(admin.channel(server.addresses.contacts));
    let contact = Contact {
        display_name: "Jürgen".to_owned(),
        email: "JÜRGEN.Жук@Example.com".to_owned(),
        ..Contact::default()
    };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    contacts.create_contact(admin.request(request)).await.unwrap();

    for (address, expected) in [("jürgen.жук@example.COM", 1), ("jurgen.жук@example.com", 0)]
    {
        let filter = format!("email = \"{address}\"");
        let request = ListContactsRequest { filter, ..Default::default() };
        let found = contacts.list_contacts(admin.request(request)).await.unwrap().into_inner();

        assert_eq!(found.contacts.len(), expected, "{address}");
    }
    set_state(server, &added.name, State::Draining).await;
}
