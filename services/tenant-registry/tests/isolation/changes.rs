//! What a login may change of itself, and what becomes of its tenant then.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::{ResumeTenantRequest, SuspendTenantRequest};
use crm_testing::{code_and_reason, security_events};
use futures_util::future::join_all;
use secrecy::ExposeSecret as _;
use sqlx::AssertSqlSafe;
use tonic::Status;

use super::*;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A password that a login gives itself.
const OWN: &str = "of-its-own";
/// What keeps sessions from beginning, from working, or from keeping what they
/// acknowledge.
const CHANGES: [&str; 6] = [
    "ALTER ROLE CURRENT_USER PASSWORD 'of-its-own'",
    "ALTER ROLE CURRENT_USER PASSWORD NULL",
    "ALTER ROLE CURRENT_USER SET local_preload_libraries = 'nothing'",
    "ALTER ROLE CURRENT_USER IN DATABASE <own> SET idle_session_timeout = '1ms'",
    "ALTER ROLE CURRENT_USER SET synchronous_commit = off",
    "ALTER ROLE CURRENT_USER SET role = 'crm_contacts'",
];

async fn run(session: &mut PgConnection, statement: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(session).await.map(drop)
}

async fn create_contact(tenant: &Tenant) -> Result<(), Status> {
    let admin = tenant.admin();
    let contact =
        Contact { display_name: "Ada".to_owned(), phone: "12345".to_owned(), ..Contact::default() };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    let mut contacts = ContactServiceClient::new(admin.channel(server().addresses.contacts));
    contacts.create_contact(admin.request(request)).await.map(drop)
}

/// Calls until it is served. Answers how many calls that took.
async fn until_served(tenant: &Tenant) -> u32 {
    let (start, mut calls) = (Instant::now(), 1);
    while let Err(status) = create_contact(tenant).await {
        assert!(start.elapsed() < PATIENCE, "{status:?}");
        let refused = code_and_reason(Err::<(), _>(status)).1;
        // What it says while others are told that it is resumed.
        assert!(["DEPENDENCY_UNAVAILABLE", "TENANT_SUSPENDED"].contains(&refused.as_str()));
        tokio::time::sleep(Duration::from_millis(50)).await;
        calls += 1;
    }
    calls
}

/// Waits until a session is at its end.
async fn ends(session: &mut PgConnection, what: &str) {
    let start = Instant::now();
    while run(session, "SELECT 1").await.is_ok() {
        assert!(start.elapsed() < PATIENCE, "{what}: the session goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Nobody gets in any more who had the login before.
async fn is_void(lease: &AcquireLeaseResponse) {
    let database = &lease.database;
    assert!(log_in(lease, database).await.is_err(), "the old password is good");
    let own = server().login(database, &lease.user, OWN).await;
    assert!(own.is_err(), "a password of its own is good");
}

/// How often the log says that a login of the tenant was changed.
fn told(tenant: &Tenant) -> usize {
    let id = tenant.id.to_string();
    let is_of = |event: &&String| event.contains(&id) && event.contains("a login was changed");
    security_events().iter().filter(is_of).count()
}

// Connections are given back while the tenants are checked.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_changes_itself_is_mended_by_the_next_calls() {
    let mended = CHANGES.map(|change| async move {
        let tenant = Tenant::create().await;
        let lease = lease(&tenant, "contacts").await;
        let mut session = log_in(&lease, &lease.database).await.unwrap();
        run(&mut session, &change.replace("<own>", &lease.database)).await.unwrap();

        let calls = until_served(&tenant).await;

        ends(&mut session, change).await;
        is_void(&lease).await;
        assert_eq!(told(&tenant), 1, "{change}");
        assert_eq!(server().consistency.report_of(tenant.id).await.unwrap(), [], "{change}");
        let new = self::lease(&tenant, "contacts").await;
        log_in(&new, &new.database).await.unwrap();
        assert_eq!(told(&tenant), 1, "{change}");
        tenant.check_log().await;
        (change, calls, tenant)
    });

    for (change, calls, _tenant) in join_all(mended).await {
        println!("{change}: served by call {calls}");
    }
}

#[tokio::test]
async fn a_login_is_mended_once_a_minute_at_most() {
    let tenant = Tenant::create().await;
    let mut postgres = server().superuser("postgres").await;
    let refused = async || {
        let request =
            AcquireLeaseRequest { tenant: tenant.tenant.name.clone(), login_refused: true };
        acquire("contacts", request).await
    };
    let lease = refused().await;
    log_in(&lease, &lease.database).await.unwrap();
    assert_eq!(told(&tenant), 0, "nothing was changed");
    let change = format!("ALTER ROLE {} PASSWORD '{OWN}'", lease.user);

    run(&mut postgres, &change).await.unwrap();
    // Of many who say so at once, each gets a login that is good.
    for lease in join_all((0..8).map(|_| refused())).await {
        log_in(&lease, &lease.database).await.unwrap();
    }
    assert_eq!(told(&tenant), 1);

    run(&mut postgres, &change).await.unwrap();
    let lease = refused().await;
    assert!(log_in(&lease, &lease.database).await.is_err(), "it is mended at once");
    assert_eq!(told(&tenant), 1);

    server().clock.advance(TimeDelta::seconds(61));
    let lease = refused().await;
    log_in(&lease, &lease.database).await.unwrap();
    assert_eq!(told(&tenant), 2);
}

#[tokio::test]
async fn a_changed_password_does_not_survive_a_suspension_nor_holds_it_up() {
    let tenant = Tenant::create().await;
    create_contact(&tenant).await.unwrap();
    let lease = lease(&tenant, "contacts").await;
    let mut changed = log_in(&lease, &lease.database).await.unwrap();
    let mut changing = log_in(&lease, &lease.database).await.unwrap();
    run(&mut changed, CHANGES[0]).await.unwrap();
    run(&mut changing, "BEGIN; ALTER ROLE CURRENT_USER PASSWORD 'of-its-own'").await.unwrap();
    let operator = Client::operator(server());
    let mut tenants = TenantServiceClient::new(operator.channel(server().addresses.registry));
    let name = tenant.tenant.name.clone();

    let request = SuspendTenantRequest { name: name.clone(), ..Default::default() };
    tenants.suspend_tenant(operator.request(request)).await.unwrap();

    ends(&mut changed, "suspended").await;
    ends(&mut changing, "suspended").await;
    let mut postgres = server().superuser("postgres").await;
    let passwords = "SELECT count(rolpassword) FROM pg_authid WHERE rolname ~ ('^t_' || $1)";
    let passwords = sqlx::query_scalar(passwords).bind(tenant.id.as_simple().to_string());
    let passwords: i64 = passwords.fetch_one(&mut postgres).await.unwrap();
    assert_eq!(passwords, 0, "a login has its password still");

    let request = ResumeTenantRequest { name, ..Default::default() };
    tenants.resume_tenant(operator.request(request)).await.unwrap();
    is_void(&lease).await;
    until_served(&tenant).await;
    is_void(&lease).await;
    assert_eq!(told(&tenant), 0, "the suspension made it anew");
    tenant.check_log().await;
}

#[tokio::test]
async fn the_registry_is_told_nothing_of_a_login_that_opens_it() {
    let tenant = Tenant::create().await;
    let lease = lease(&tenant, "contacts").await;
    let mut own = log_in(&lease, &lease.database).await.unwrap();
    let password = server().secrets().registry.expose_secret().to_owned();
    let mut registry = server().login("postgres", "crm_registry", &password).await.unwrap();

    let found = "SELECT l::text FROM crm_cluster.logins($1) AS l";
    let found = sqlx::query_scalar(found).bind(tenant.id).fetch_all(&mut registry).await;
    let found: Vec<String> = found.unwrap();

    assert_eq!(found.len(), 2, "{found:?}");
    let verifiers = "SELECT rolpassword FROM pg_authid WHERE rolname ~ ('^t_' || $1)";
    let verifiers = sqlx::query_scalar(verifiers).bind(tenant.id.as_simple().to_string());
    let mut postgres = server().superuser("postgres").await;
    let verifiers: Vec<String> = verifiers.fetch_all(&mut postgres).await.unwrap();
    for verifier in verifiers {
        let keys = verifier.rsplit('$').next().unwrap();
        assert!(keys.split(':').all(|key| !found.iter().any(|text| text.contains(key))));
    }
    let refused = run(&mut own, "SELECT rolpassword FROM pg_catalog.pg_authid").await;
    assert!(refused.is_err());
}
