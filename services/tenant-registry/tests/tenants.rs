//! TenantService, over the wire.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest};
use crm_proto::registry::v1::tenant::{Kind, State};
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_proto::registry::v1::{CreateTenantRequest, GetTenantRequest, Tenant as TenantMessage};
use crm_testing::{Client, Tenant, code_and_reason, field_faults, server};
use futures_util::future::join_all;
use prost::Message as _;
use tonic::{Code, Status};

fn named(display_name: &str) -> CreateTenantRequest {
    CreateTenantRequest {
        tenant: Some(TenantMessage {
            display_name: display_name.to_owned(),
            ..TenantMessage::default()
        }),
        ..CreateTenantRequest::default()
    }
}

fn slugged(slug: &str) -> CreateTenantRequest {
    let mut request = named("Some tenant");
    request.tenant.as_mut().unwrap().slug = slug.to_owned();
    request
}

async fn create(request: CreateTenantRequest) -> Result<TenantMessage, Status> {
    let operator = Client::operator(server());
    let mut client = TenantServiceClient::new(operator.channel(server().addresses.registry));
    Ok(client.create_tenant(operator.request(request)).await?.into_inner())
}

async fn get(name: &str) -> Result<TenantMessage, Status> {
    let operator = Client::operator(server());
    let mut client = TenantServiceClient::new(operator.channel(server().addresses.registry));
    let request = GetTenantRequest { name: name.to_owned() };
    Ok(client.get_tenant(operator.request(request)).await?.into_inner())
}

fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", server().clock.new_id().as_simple())
}

#[tokio::test]
async fn a_tenant_is_ready_when_it_is_answered_and_found_by_id_and_slug() {
    let slug = unique("acme");
    let mut request = slugged(&slug);
    request.tenant.as_mut().unwrap().kind = Kind::Department.into();
    request.tenant.as_mut().unwrap().labels = [("plan".to_owned(), "gold".to_owned())].into();

    let created = create(request).await.unwrap();

    assert_eq!((created.state(), created.kind()), (State::Active, Kind::Department));
    assert_eq!(created.labels["plan"], "gold");
    assert_eq!(get(&created.name).await.unwrap(), created);
    assert_eq!(get(&format!("tenants/{slug}")).await.unwrap(), created);
    let tenant = Tenant::of(server(), created);
    let admin = tenant.admin();
    let mut contacts = ContactServiceClient::new(admin.channel(server().addresses.contacts));
    let contact = Contact {
        display_name: "First".to_owned(),
        phone: "12345".to_owned(),
        ..Contact::default()
    };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    contacts.create_contact(admin.request(request)).await.unwrap();
    tenant.check_log().await;
}

#[tokio::test]
async fn slugs_are_derived_from_names_of_any_script_and_unique() {
    let long = "長".repeat(255);
    let names =
        ["Public", "pg_catalog", "北京科技", "🚀", "Robert'); DROP DATABASE \"x\"; --", &long];

    for name in names {
        let (one, two) = tokio::join!(create(named(name)), create(named(name)));
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_eq!((one.display_name.as_str(), two.display_name.as_str()), (name, name));
        assert_ne!(one.slug, two.slug);
        assert_eq!(get(&format!("tenants/{}", one.slug)).await.unwrap().name, one.name);
    }
}

#[tokio::test]
async fn a_slug_has_one_winner_among_fifty() {
    let slug = unique("race");

    let outcomes = join_all((0..50).map(|_| create(slugged(&slug)))).await;

    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 49));
    for outcome in lost {
        assert_eq!(code_and_reason(outcome), (Code::AlreadyExists, "SLUG_TAKEN".to_owned()));
    }
    let winner = won.into_iter().next().unwrap().unwrap();
    assert_eq!(get(&winner.name).await.unwrap(), winner);
}

#[tokio::test]
async fn many_tenants_are_made_at_once() {
    let outcomes = join_all((0..24).map(|_| create(slugged(&unique("crowd"))))).await;

    let mut names: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap().name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 24);
}

#[tokio::test]
async fn a_repeated_request_makes_one_tenant() {
    let request = CreateTenantRequest {
        request_id: server().clock.new_id().to_string(),
        ..named(&unique("Repeated"))
    };

    let answers = join_all((0..5).map(|_| create(request.clone()))).await;

    let answers: Vec<_> = answers.into_iter().map(|a| a.unwrap().encode_to_vec()).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    let reused = create(CreateTenantRequest { request_id: request.request_id, ..named("Other") });
    let expected = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
    assert_eq!(code_and_reason(reused.await), expected);
}

#[tokio::test]
async fn an_interrupted_creation_is_taken_up_where_it_was_left() {
    let request = CreateTenantRequest {
        request_id: server().clock.new_id().to_string(),
        ..named(&unique("Interrupted"))
    };
    let created = create(request.clone()).await.unwrap();
    let id: uuid::Uuid = created.name.strip_prefix("tenants/").unwrap().parse().unwrap();
    let mut registry = server().superuser("crm_registry").await;

    for step in ["planned", "created", "locked", "granted"] {
        // As a crash after this step leaves it.
        for statement in [
            "UPDATE databases SET step = $2 WHERE database_id = $1",
            "UPDATE tenants SET state = 1 WHERE tenant_id = $1 AND $2 <> ''",
            "UPDATE requests SET response = NULL WHERE tenant_id = $1 AND $2 <> ''",
        ] {
            sqlx::query(statement).bind(id).bind(step).execute(&mut registry).await.unwrap();
        }
        let again = create(request.clone()).await.unwrap();
        assert_eq!((again.name.as_str(), again.state()), (created.name.as_str(), State::Active));
    }
}

#[tokio::test]
async fn every_fault_of_a_tenant_stands_in_one_answer() {
    let mut request = slugged("Not A Slug");
    request.request_id = "x".to_owned();
    let tenant = request.tenant.as_mut().unwrap();
    tenant.display_name = " ".to_owned();
    tenant.kind = 42;
    tenant.labels = [(String::new(), "v".repeat(256))].into();

    let fields: Vec<_> =
        field_faults(create(request).await).into_iter().map(|(field, _)| field).collect();

    let label = "tenant.labels[\"\"]";
    let expected =
        ["tenant.kind", label, label, "request_id", "tenant.display_name", "tenant.slug"];
    assert_eq!(fields, expected);
    assert_eq!(field_faults(create(CreateTenantRequest::default()).await)[0].0, "tenant");
}

#[tokio::test]
async fn validate_only_makes_nothing_and_finds_a_taken_slug() {
    let slug = unique("dry");
    let dry = CreateTenantRequest { validate_only: true, ..slugged(&slug) };

    let preview = create(dry.clone()).await.unwrap();
    let missing = get(&format!("tenants/{slug}")).await;
    create(slugged(&slug)).await.unwrap();
    let taken = create(dry).await;

    assert_eq!((preview.name.as_str(), preview.slug.as_str()), ("", slug.as_str()));
    assert_eq!(code_and_reason(missing), (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned()));
    assert_eq!(code_and_reason(taken), (Code::AlreadyExists, "SLUG_TAKEN".to_owned()));
}

#[tokio::test]
async fn a_tenants_administrator_is_no_operator() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let mut client = TenantServiceClient::new(admin.channel(server().addresses.registry));

    let created = client.create_tenant(admin.request(named("Mine"))).await;
    let request = GetTenantRequest { name: tenant.tenant.name.clone() };
    let read = client.get_tenant(admin.request(request)).await;

    let expected = (Code::PermissionDenied, "PERMISSION_MISSING".to_owned());
    assert_eq!(code_and_reason(created), expected);
    assert_eq!(code_and_reason(read), expected);
}
