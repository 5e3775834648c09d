//! What processes tell of themselves, and what operators see of it.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::time::{Duration, Instant};

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_proto::registry::v1::lease_service_client::LeaseServiceClient;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::{
    GetTenantActivityRequest, ReportActivityRequest, SessionsClosed, TenantActivity, TenantCalls,
};
use crm_testing::{Client, Tenant, code_and_reason, field_faults, server};
use tonic::{Code, Status};

/// Figures arrive within some seconds of what they tell.
const PATIENCE: Duration = Duration::from_secs(60);

async fn activity(name: &str) -> Result<TenantActivity, Status> {
    let operator = Client::operator(server());
    let mut tenants = TenantServiceClient::new(operator.channel(server().addresses.registry));
    let request = GetTenantActivityRequest { name: name.to_owned() };
    Ok(tenants.get_tenant_activity(operator.request(request)).await?.into_inner())
}

async fn create_contacts(tenant: &Tenant, count: usize) {
    let admin = tenant.admin();
    let mut contacts = ContactServiceClient::new(admin.channel(server().addresses.contacts));
    for _ in 0..count {
        let contact = Contact {
            display_name: "Ada".to_owned(),
            email: "ada@example.com".to_owned(),
            ..Contact::default()
        };
        let request =
            CreateContactRequest { contact: Some(contact), ..CreateContactRequest::default() };
        contacts.create_contact(admin.request(request)).await.unwrap();
    }
}

/// Reports as a process of contacts that listens nowhere.
async fn report(instance: &str, number: i64, budget: u32, calls: &[&Tenant]) -> Result<(), Status> {
    let roles = vec!["roles/internal.service".to_owned()];
    let issued = server().identity.issue("services/contacts".to_owned(), roles, None).unwrap();
    let client = Client::new(issued.token);
    let tenants = calls.iter().map(|tenant| TenantCalls {
        tenant: tenant.tenant.name.clone(),
        calls: 7,
        sessions_closed: Some(SessionsClosed { evicted: 2, ..SessionsClosed::default() }),
        ..TenantCalls::default()
    });
    let request = ReportActivityRequest {
        instance: instance.to_owned(),
        report_number: number,
        session_budget: budget,
        tenants: tenants.collect(),
    };
    let mut leases = LeaseServiceClient::new(client.channel(server().addresses.internal));
    leases.report_activity(client.request(request)).await?;
    Ok(())
}

#[tokio::test]
async fn the_calls_and_sessions_of_a_tenant_are_seen() {
    let tenant = Tenant::create().await;
    let other = Tenant::create().await;
    create_contacts(&tenant, 5).await;
    let name = format!("tenants/{}/activity", tenant.tenant.slug);

    let until = Instant::now() + PATIENCE;
    let seen = loop {
        let seen = activity(&name).await.unwrap();
        // A report may come while the calls are made.
        let mut processes = seen.processes.iter();
        let is_all = processes.any(|process| process.calls >= 5 && process.sessions_idle > 0);
        if is_all || Instant::now() > until {
            break seen;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };

    assert_eq!(seen.name, format!("{}/activity", tenant.tenant.name));
    let [process] = seen.processes.as_slice() else { panic!("{seen:?}") };
    assert_eq!(process.service, "services/contacts");
    assert_eq!(process.instance, server().addresses.contacts.to_string());
    assert_eq!((process.calls, process.calls_refused), (5, 0));
    assert_eq!((process.sessions_opened, process.sessions_idle), (1, 1));
    assert!(process.last_call_time.is_some() && process.report_time.is_some());
    assert_eq!(seen.session_count, 1);
    assert!(seen.size_bytes > 1_000_000, "{}", seen.size_bytes);
    let quiet = activity(&format!("{}/activity", other.tenant.name)).await.unwrap();
    assert!(quiet.processes.is_empty());
    let nobody = format!("tenants/{}/activity", server().clock.new_id());
    let outcome = activity(&nobody).await;
    assert_eq!(code_and_reason(outcome), (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned()));
    assert_eq!(field_faults(activity(&tenant.tenant.name).await)[0].0, "name");
}

#[tokio::test]
async fn a_report_counts_once_and_figures_add_up() {
    let tenant = Tenant::create().await;
    let instance = format!("test-{}", tenant.id);

    report(&instance, 1, 1, &[]).await.unwrap();
    report(&instance, 2, 1, &[&tenant]).await.unwrap();
    report(&instance, 2, 1, &[&tenant]).await.unwrap();
    report(&instance, 3, 1, &[&tenant]).await.unwrap();

    let seen = activity(&format!("{}/activity", tenant.tenant.name)).await.unwrap();
    let process = seen.processes.iter().find(|process| process.instance == instance).unwrap();
    assert_eq!(process.calls, 14);
    assert_eq!(process.sessions_closed.unwrap().evicted, 4);
    report(&instance, 4, 0, &[]).await.unwrap();
}

#[tokio::test]
async fn a_process_whose_sessions_have_no_room_does_not_join() {
    let id = server().clock.new_id();
    let (greedy, modest) = (format!("greedy-{id}"), format!("modest-{id}"));

    let outcome = report(&greedy, 1, 5000, &[]).await;

    let refused = (Code::FailedPrecondition, "SESSION_BUDGET_EXCEEDED".to_owned());
    assert_eq!(code_and_reason(outcome), refused);
    report(&modest, 1, 3, &[]).await.unwrap();
    // It lives: it is not asked again.
    report(&modest, 2, 3, &[]).await.unwrap();
    report(&modest, 3, 0, &[]).await.unwrap();
}

#[tokio::test]
async fn a_process_that_comes_back_with_more_sessions_needs_room_for_them() {
    let instance = format!("killed-{}", server().clock.new_id());
    report(&instance, 1, 3, &[]).await.unwrap();

    // It was killed, and its numbers grow across its starts.
    let greedy = report(&instance, 2, 5000, &[]).await;
    let modest = report(&instance, 3, 4, &[]).await;

    let refused = (Code::FailedPrecondition, "SESSION_BUDGET_EXCEEDED".to_owned());
    assert_eq!(code_and_reason(greedy), refused);
    modest.unwrap();
    report(&instance, 4, 0, &[]).await.unwrap();
}

#[tokio::test]
async fn a_process_that_died_long_ago_is_known_no_more() {
    let id = server().clock.new_id();
    let mut registry = server().superuser("crm_registry").await;
    sqlx::query(
        "INSERT INTO instances (service, instance, session_budget, report_number, report_time)
         VALUES ('contacts', 'old ' || $1, 1, 1, now() - interval '25 hours'),
             ('contacts', 'new ' || $1, 1, 1, now() - interval '23 hours')",
    )
    .bind(id.to_string())
    .execute(&mut registry)
    .await
    .unwrap();

    report(&format!("next {id}"), 1, 1, &[]).await.unwrap();

    let known = sqlx::query_scalar(
        "SELECT instance FROM instances WHERE instance LIKE '% ' || $1 ORDER BY instance",
    );
    let known: Vec<String> = known.bind(id.to_string()).fetch_all(&mut registry).await.unwrap();
    assert_eq!(known, [format!("new {id}"), format!("next {id}")]);
    report(&format!("next {id}"), 2, 0, &[]).await.unwrap();
}

#[tokio::test]
async fn a_report_names_all_its_faults() {
    let roles = vec!["roles/internal.service".to_owned()];
    let issued = server().identity.issue("services/contacts".to_owned(), roles, None).unwrap();
    let client = Client::new(issued.token);
    let calls = |tenant: &str| TenantCalls { tenant: tenant.to_owned(), ..TenantCalls::default() };
    let request = ReportActivityRequest {
        tenants: vec![calls("acme"), calls("")],
        ..ReportActivityRequest::default()
    };

    let mut leases = LeaseServiceClient::new(client.channel(server().addresses.internal));
    let outcome = leases.report_activity(client.request(request)).await;

    let fields: Vec<_> = field_faults(outcome).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["instance", "tenants[1].tenant", "tenants[0].tenant"]);
}
