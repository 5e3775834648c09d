//! LeaseService: what it hands out, and to whom.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use crm_proto::identity::v1::IssueServiceTokenRequest;
use crm_proto::identity::v1::auth_service_client::AuthServiceClient;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::{
    AcquireLeaseRequest, CreateTenantRequest, Migration, RegisterSchemaRequest,
};
use crm_testing::{
    Channel, Client, Tenant, code_and_reason, contacts_migrations, field_faults, own_server, server,
};
use secrecy::ExposeSecret as _;
use sqlx::{Connection as _, PgConnection};
use tonic::{Code, Request, Status};

fn service(name: &str) -> Client {
    let roles = vec!["roles/internal.service".to_owned()];
    let issued = server().identity.issue(format!("services/{name}"), roles, None).unwrap();
    Client::new(issued.token)
}

fn leases(client: &Client, address: std::net::SocketAddr) -> LeaseServiceClient<Channel> {
    LeaseServiceClient::new(client.channel(address))
}

fn acquire(tenant: &str) -> AcquireLeaseRequest {
    AcquireLeaseRequest { tenant: tenant.to_owned(), ..Default::default() }
}

fn schema(sql: &[&str]) -> RegisterSchemaRequest {
    let migrations = (1..).zip(sql).map(|(version, sql)| Migration {
        version,
        description: "test".to_owned(),
        sql: (*sql).to_owned(),
        oldest_service_version: 0,
    });
    RegisterSchemaRequest { migrations: migrations.collect() }
}

async fn register(client: &Client, sql: &[&str]) -> Result<u32, Status> {
    let request = schema(sql);
    let mut leases = leases(client, server().addresses.internal);
    Ok(leases.register_schema(client.request(request)).await?.into_inner().schema_version)
}

#[tokio::test]
async fn a_lease_is_for_the_calling_service_and_never_shows_its_secret() {
    let tenant = Tenant::create().await;
    let contacts = service("contacts");
    let mut client = leases(&contacts, server().addresses.internal);

    let lease = client.acquire_lease(contacts.request(acquire(&tenant.tenant.name))).await;

    let lease = lease.unwrap().into_inner();
    assert_eq!(lease.database, tenant.tenant.database);
    assert_eq!(lease.user, format!("t_{}_contacts_g1", tenant.id.as_simple()));
    assert!(!format!("{lease:?}").contains(&lease.secret));
    server().login(&lease.database, &lease.user, &lease.secret).await.unwrap();
    let unknown = format!("tenants/{}", server().clock.new_id());
    let outcome = client.acquire_lease(contacts.request(acquire(&unknown))).await;
    assert_eq!(code_and_reason(outcome), (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned()));
    let outcome = client.acquire_lease(contacts.request(acquire("acme"))).await;
    assert_eq!(field_faults(outcome)[0].0, "tenant");
}

#[tokio::test]
async fn leases_are_not_reachable_in_public_with_any_token() {
    let tenant = Tenant::create().await;
    let request = acquire(&tenant.tenant.name);
    let addresses = server().addresses;

    for address in [addresses.edge, addresses.registry, addresses.contacts, addresses.messaging] {
        for client in [service("contacts"), Client::operator(server()), tenant.admin()] {
            let outcome =
                leases(&client, address).acquire_lease(client.request(request.clone())).await;
            let code = code_and_reason(outcome).0;
            let expected: &[Code] = if address == addresses.edge {
                &[Code::Unimplemented]
            } else {
                // Refused by the audience, by the scope, or for want of a method.
                &[Code::Unauthenticated, Code::PermissionDenied, Code::Unimplemented]
            };
            assert!(expected.contains(&code), "{address} {code:?}");
        }
    }
}

#[tokio::test]
async fn the_internal_listener_takes_tokens_of_services_alone() {
    let tenant = Tenant::create().await;
    let operator = Client::operator(server());

    for client in [operator, tenant.admin(), Client::new("x")] {
        let mut leases = leases(&client, server().addresses.internal);
        let outcome = leases.acquire_lease(client.request(acquire(&tenant.tenant.name))).await;
        assert_eq!(code_and_reason(outcome), (Code::Unauthenticated, "TOKEN_INVALID".to_owned()));
    }
}

#[tokio::test]
async fn only_the_right_secret_gives_a_token() {
    let channel = Client::new("").channel(server().addresses.registry);
    let mut auth = AuthServiceClient::new(channel);
    let secret = server().secrets().contacts.expose_secret().to_owned();
    let ask = |id: &str, secret: &str| {
        Request::new(IssueServiceTokenRequest {
            client_id: id.to_owned(),
            client_secret: secret.to_owned(),
        })
    };

    assert!(auth.issue_service_token(ask("services/contacts", &secret)).await.is_ok());
    let refused = (Code::Unauthenticated, "CREDENTIALS_INVALID".to_owned());
    for (id, secret) in [
        ("services/messaging", secret.as_str()),
        ("services/unknown", secret.as_str()),
        ("services/contacts", &secret[1..]),
        ("SERVICES/CONTACTS", secret.as_str()),
    ] {
        assert_eq!(code_and_reason(auth.issue_service_token(ask(id, secret)).await), refused);
    }
    let faults = field_faults(auth.issue_service_token(ask("", "")).await);
    assert_eq!(faults.len(), 2);
    assert!(!format!("{:?}", ask("a", "hidden").into_inner()).contains("hidden"));
}

/// The server's log, and what it has so far.
async fn log_of(session: &mut PgConnection) -> String {
    let folder: String = sqlx::query_scalar("SELECT current_setting('data_directory')")
        .fetch_one(session)
        .await
        .unwrap();
    std::fs::read_to_string(std::path::Path::new(&folder).with_file_name("postgres.log")).unwrap()
}

#[tokio::test]
async fn no_verifier_gets_into_a_log_that_is_told_to_keep_all() {
    let server = own_server(0);
    let mut postgres = server.superuser("postgres").await;
    sqlx::raw_sql(
        "ALTER ROLE ALL SET log_statement = 'all';
         ALTER ROLE ALL SET log_min_duration_statement = 0;
         ALTER ROLE ALL SET log_min_error_statement = 'error';
         ALTER ROLE ALL SET log_error_verbosity = 'verbose';
         ALTER ROLE ALL SET log_parameter_max_length = -1;
         ALTER ROLE ALL SET log_parameter_max_length_on_error = -1",
    )
    .execute(&mut postgres)
    .await
    .unwrap();
    // Sessions that begin from now on are logged.
    let replica = server.replica().await;
    let mut roles = postgres.begin().await.unwrap();
    let lock = "LOCK TABLE pg_authid IN SHARE ROW EXCLUSIVE MODE";
    sqlx::raw_sql(lock).execute(&mut *roles).await.unwrap();

    let operator = Client::operator(&server);
    let mut tenants = TenantServiceClient::new(operator.channel(replica.addresses.registry));
    let tenant = pb::Tenant { display_name: "Logged".to_owned(), ..pb::Tenant::default() };
    let request = CreateTenantRequest { tenant: Some(tenant), ..CreateTenantRequest::default() };
    let request = operator.request(request);
    let creating = tokio::spawn(async move { tenants.create_tenant(request).await });
    let mut other = server.superuser("postgres").await;
    // It fails while it makes a login of the verifier.
    let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
        WHERE query LIKE '%ensure_login%' AND wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(cancel).fetch_one(&mut other).await.unwrap() == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    roles.rollback().await.unwrap();
    let _created_all_the_same = creating.await.unwrap();

    let log = log_of(&mut other).await;
    assert!(log.contains("SELECT count(pg_cancel_backend(pid))"), "it is not told to keep all");
    assert!(log.contains("canceling statement due to user request"), "{log}");
    let told: Vec<_> = log.lines().filter(|line| line.contains("SCRAM-SHA-256$")).collect();
    assert_eq!(told, [""; 0]);
    replica.stop().await;
}

#[tokio::test]
async fn a_template_that_failed_and_is_still_in_use_stands_in_nobodys_way() {
    let server = own_server(0);
    let roles = vec!["roles/internal.service".to_owned()];
    let issued = server.identity.issue("services/contacts".to_owned(), roles, None).unwrap();
    let contacts = Client::new(issued.token);
    let known = contacts_migrations();
    let register = async |next: &str| {
        let mut leases = leases(&contacts, server.addresses.internal);
        let set = [&known[..], &[next]].concat();
        leases.register_schema(contacts.request(schema(&set))).await
    };
    let unfinished = async || -> Vec<String> {
        sqlx::query_scalar("SELECT name FROM databases WHERE step <> 'ready' ORDER BY name")
            .fetch_all(&mut server.superuser("crm_registry").await)
            .await
            .unwrap()
    };
    let failed = (Code::FailedPrecondition, "MIGRATION_FAILED".to_owned());
    assert_eq!(code_and_reason(register("SELECT 1/0").await), failed);
    let left = unfinished().await;
    // As a migrator whose process is gone: the registry cannot end the session.
    let session = server.superuser(&left[0]).await;

    assert_eq!(code_and_reason(register("SELECT 1/0").await), failed);
    assert_eq!((left.len(), unfinished().await.len()), (1, 2));
    session.close().await.unwrap();
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'crm_template%'";
    let mut postgres = server.superuser("postgres").await;
    while sqlx::query_scalar::<_, i64>(sessions).fetch_one(&mut postgres).await.unwrap() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    register("SELECT 1").await.unwrap();

    assert_eq!(unfinished().await, [""; 0]);
    assert_eq!(server.consistency.report().await.unwrap(), []);
}

#[tokio::test]
async fn a_schema_is_append_only_and_an_older_replica_is_welcome() {
    let contacts = service("contacts");
    let known = contacts_migrations();
    let (first, count) = (known[0], u32::try_from(known.len()).unwrap());

    assert_eq!(register(&contacts, &known).await.unwrap(), count);
    // What does not run is not taken in, and stands in nobody's way.
    for bad in [
        "ALTER TABLE contacts.contacts ADD COLUMN x nosuchtype",
        "CREATE SCHEMA sales",
        "ALTER SCHEMA contacts RENAME TO mine",
        "DROP SCHEMA contacts CASCADE; SELECT 1/0",
        "RESET ROLE; SET ROLE crm_platform_owner",
        "UPDATE platform.head SET revision = 7",
        "SELECT FROM messaging.messages",
        "INSERT INTO messaging.contacts VALUES (gen_random_uuid(), NULL, 1)",
        "GRANT USAGE ON SCHEMA messaging TO crm_contacts_owner",
        "SET ROLE crm_messaging_owner",
        "COMMIT; BEGIN",
        "ROLLBACK; BEGIN",
    ] {
        let outcome = register(&contacts, &[&known[..], &[bad]].concat()).await;
        let expected = (Code::FailedPrecondition, "MIGRATION_FAILED".to_owned());
        assert_eq!(code_and_reason(outcome), expected, "{bad}");
    }
    assert_eq!(register(&contacts, &[first]).await.unwrap(), count);
    Tenant::create().await;
    let changed = register(&contacts, &[&format!("{first} ")]).await;
    let expected = (Code::FailedPrecondition, "MIGRATION_CHANGED".to_owned());
    assert_eq!(code_and_reason(changed), expected);
    let unknown = register(&service("unknown"), &["SELECT 1"]).await;
    assert_eq!(code_and_reason(unknown).0, Code::NotFound);
    assert_eq!(field_faults(register(&contacts, &[]).await)[0].0, "migrations");
    // A version that leaves itself behind.
    let migration = Migration {
        version: 1,
        sql: first.to_owned(),
        oldest_service_version: 2,
        ..Migration::default()
    };
    let request = RegisterSchemaRequest { migrations: vec![migration] };
    let mut leases = leases(&contacts, server().addresses.internal);
    let faults = field_faults(leases.register_schema(contacts.request(request)).await);
    assert_eq!(faults[0].0, "migrations[0].oldest_service_version");
}
