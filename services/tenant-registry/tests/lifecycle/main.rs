//! What TenantService makes of tenants after their creation, over the wire.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod lists;
mod purge;

use chrono::{DateTime, TimeDelta};
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::tenant::{Kind, State};
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_testing::{Channel, Client, Tenant, code_and_reason, field_faults, server};
use futures_util::future::join_all;
use prost::Message as _;
use prost_types::FieldMask;
use tonic::{Code, Status};

/// What is done to a tenant.
#[derive(Clone, Copy, Debug)]
enum Verb {
    Delete,
    Undelete,
    Suspend,
    Resume,
}
use Verb::{Delete, Resume, Suspend, Undelete};

/// A request to do it.
#[derive(Clone, Debug, Default)]
struct Ask {
    name: String,
    etag: String,
    request_id: String,
    validate_only: bool,
}

fn ask(name: &str) -> Ask {
    Ask { name: name.to_owned(), ..Ask::default() }
}

fn tenants(client: &Client) -> TenantServiceClient<Channel> {
    TenantServiceClient::new(client.channel(server().addresses.registry))
}

async fn act_as(client: &Client, verb: Verb, ask: Ask) -> Result<pb::Tenant, Status> {
    let Ask { name, etag, request_id, validate_only } = ask;
    let mut tenants = tenants(client);
    let answer = match verb {
        Delete => {
            let message = pb::DeleteTenantRequest { name, etag, request_id, validate_only };
            tenants.delete_tenant(client.request(message)).await
        }
        Undelete => {
            let message = pb::UndeleteTenantRequest { name, etag, request_id, validate_only };
            tenants.undelete_tenant(client.request(message)).await
        }
        Suspend => {
            let message = pb::SuspendTenantRequest { name, etag, request_id, validate_only };
            tenants.suspend_tenant(client.request(message)).await
        }
        Resume => {
            let message = pb::ResumeTenantRequest { name, etag, request_id, validate_only };
            tenants.resume_tenant(client.request(message)).await
        }
    };
    Ok(answer?.into_inner())
}

async fn act(verb: Verb, ask: Ask) -> Result<pb::Tenant, Status> {
    act_as(&Client::operator(server()), verb, ask).await
}

async fn get(name: &str) -> pb::Tenant {
    let operator = Client::operator(server());
    let request = pb::GetTenantRequest { name: name.to_owned() };
    tenants(&operator).get_tenant(operator.request(request)).await.unwrap().into_inner()
}

async fn update(request: pb::UpdateTenantRequest) -> Result<pb::Tenant, Status> {
    let operator = Client::operator(server());
    Ok(tenants(&operator).update_tenant(operator.request(request)).await?.into_inner())
}

async fn list(request: pb::ListTenantsRequest) -> Result<pb::ListTenantsResponse, Status> {
    let operator = Client::operator(server());
    Ok(tenants(&operator).list_tenants(operator.request(request)).await?.into_inner())
}

fn change(tenant: pb::Tenant, paths: &[&str]) -> pb::UpdateTenantRequest {
    let update_mask = Some(FieldMask { paths: paths.iter().map(|path| (*path).into()).collect() });
    pb::UpdateTenantRequest { tenant: Some(tenant), update_mask, ..Default::default() }
}

fn time(time: Option<prost_types::Timestamp>) -> DateTime<chrono::Utc> {
    let time = time.unwrap();
    DateTime::from_timestamp(time.seconds, time.nanos as u32).unwrap()
}

fn failed(reason: &str) -> (Code, String) {
    (Code::FailedPrecondition, reason.to_owned())
}

/// Whether each login of the tenant may log in, as PostgreSQL has it.
async fn logins(tenant: &Tenant) -> Vec<bool> {
    let logins =
        sqlx::query_scalar("SELECT rolcanlogin FROM pg_roles WHERE rolname ~ ('^t_' || $1)");
    let logins = logins.bind(tenant.id.as_simple().to_string());
    logins.fetch_all(&mut server().superuser("postgres").await).await.unwrap()
}

#[tokio::test]
async fn a_tenant_goes_through_its_life_and_comes_back_as_it_was() {
    let tenant = Tenant::create().await;
    let name = tenant.tenant.name.as_str();
    let by_slug = format!("tenants/{}", tenant.tenant.slug);

    let suspended = act(Suspend, ask(&by_slug)).await.unwrap();
    assert_eq!((suspended.name.as_str(), suspended.state()), (name, State::Suspended));
    assert_ne!(suspended.etag, tenant.tenant.etag);
    assert_eq!(get(name).await, suspended);
    assert_eq!(logins(&tenant).await, [false, false]);
    assert_eq!(code_and_reason(act(Suspend, ask(name)).await), failed("TENANT_SUSPENDED"));

    // Suspended before it was deleted: suspended again.
    let deleted = act(Delete, ask(name)).await.unwrap();
    assert_eq!(deleted.state(), State::Deleted);
    let grace = time(deleted.purge_time) - time(deleted.delete_time);
    assert_eq!(grace, TimeDelta::days(30));
    assert_eq!(get(name).await, deleted);
    for verb in [Delete, Suspend, Resume] {
        let outcome = act(verb, ask(name)).await;
        assert_eq!(code_and_reason(outcome), failed("RESOURCE_DELETED"), "{verb:?}");
    }
    let renamed = pb::Tenant { display_name: "Other".to_owned(), ..ask_tenant(name) };
    let outcome = update(change(renamed, &["display_name"])).await;
    assert_eq!(code_and_reason(outcome), failed("RESOURCE_DELETED"));
    let restored = act(Undelete, ask(name)).await.unwrap();
    assert_eq!(restored.state(), State::Suspended);
    assert_eq!((restored.delete_time, restored.purge_time), (None, None));
    assert_eq!(logins(&tenant).await, [false, false]);

    let resumed = act(Resume, ask(name)).await.unwrap();
    assert_eq!(resumed.state(), State::Active);
    assert_eq!(logins(&tenant).await, [true, true]);
    assert_eq!(code_and_reason(act(Resume, ask(name)).await), failed("TENANT_NOT_SUSPENDED"));
    assert_eq!(code_and_reason(act(Undelete, ask(name)).await), failed("RESOURCE_NOT_DELETED"));

    act(Delete, ask(name)).await.unwrap();
    let restored = act(Undelete, ask(name)).await.unwrap();
    assert_eq!(restored.state(), State::Active);
    let as_before = pb::Tenant { etag: String::new(), update_time: None, ..tenant.tenant.clone() };
    assert_eq!(pb::Tenant { etag: String::new(), update_time: None, ..restored }, as_before);
    assert_eq!(logins(&tenant).await, [true, true]);
}

#[tokio::test]
async fn a_tenant_is_not_restored_after_its_purge_time() {
    let tenant = Tenant::create().await;
    let name = tenant.tenant.name.as_str();
    act(Delete, ask(name)).await.unwrap();
    let mut registry = server().superuser("crm_registry").await;
    let past = "UPDATE tenants SET purge_time = now() - interval '1 second' WHERE tenant_id = $1";
    sqlx::query(past).bind(tenant.id).execute(&mut registry).await.unwrap();
    let before = get(name).await;

    let outcome = act(Undelete, ask(name)).await;

    assert_eq!(code_and_reason(outcome), failed("RESOURCE_DELETED"));
    let preview = act(Undelete, Ask { validate_only: true, ..ask(name) }).await;
    assert_eq!(code_and_reason(preview), failed("RESOURCE_DELETED"));
    assert_eq!(get(name).await, before);
    assert_eq!(logins(&tenant).await, [false, false]);
}

fn ask_tenant(name: &str) -> pb::Tenant {
    pb::Tenant { name: name.to_owned(), ..pb::Tenant::default() }
}

#[tokio::test]
async fn every_change_minds_its_etag_its_repeats_and_its_faults() {
    let tenant = Tenant::create().await;
    let name = tenant.tenant.name.as_str();

    for verb in [Suspend, Resume, Delete, Undelete] {
        let before = get(name).await;
        let stale = Ask { etag: "\"0\"".to_owned(), ..ask(name) };
        let expected = (Code::Aborted, "CONCURRENT_CHANGE".to_owned());
        assert_eq!(code_and_reason(act(verb, stale).await), expected, "{verb:?}");
        let preview = act(verb, Ask { validate_only: true, ..ask(name) }).await.unwrap();
        assert_ne!(preview.state(), before.state(), "{verb:?}");
        assert_eq!(get(name).await, before, "{verb:?}");

        let id = server().clock.new_id().to_string();
        let request = Ask { etag: before.etag.clone(), request_id: id.clone(), ..ask(name) };
        let answers = join_all((0..5).map(|_| act(verb, request.clone()))).await;
        let answers: Vec<_> = answers.into_iter().map(|a| a.unwrap().encode_to_vec()).collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{verb:?}");
        let reused = act(verb, Ask { etag: String::new(), request_id: id, ..ask(name) }).await;
        let expected = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
        assert_eq!(code_and_reason(reused), expected, "{verb:?}");

        let wrong = Ask { request_id: "x".to_owned(), ..ask("tenants/A B") };
        let faults: Vec<_> =
            field_faults(act(verb, wrong).await).into_iter().map(|f| f.0).collect();
        assert_eq!(faults, ["request_id", "name"], "{verb:?}");
        let unknown = format!("tenants/{}", server().clock.new_id());
        let outcome = act(verb, ask(&unknown)).await;
        let expected = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());
        assert_eq!(code_and_reason(outcome), expected, "{verb:?}");
        let expected = (Code::PermissionDenied, "PERMISSION_MISSING".to_owned());
        let outcome = act_as(&tenant.admin(), verb, ask(name)).await;
        assert_eq!(code_and_reason(outcome), expected, "{verb:?}");
    }
    // An answer is repeated whatever became of the tenant since.
    let first = Ask { request_id: server().clock.new_id().to_string(), ..ask(name) };
    let suspended = act(Suspend, first.clone()).await.unwrap();
    act(Resume, ask(name)).await.unwrap();
    assert_eq!(act(Suspend, first).await.unwrap(), suspended);
    assert_eq!(get(name).await.state(), State::Active);
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names() {
    let tenant = Tenant::create().await;
    let base = ask_tenant(&tenant.tenant.name);
    let labels = [("plan".to_owned(), "gold".to_owned())].into();
    let new = pb::Tenant {
        display_name: "New".to_owned(),
        kind: Kind::Individual.into(),
        labels,
        ..base.clone()
    };

    let named = update(change(new.clone(), &["display_name"])).await.unwrap();
    assert_eq!((named.display_name.as_str(), named.kind()), ("New", Kind::Organization));
    assert!(named.labels.is_empty() && named.etag != tenant.tenant.etag);
    // Without a mask: what is populated.
    let labelled = pb::Tenant { display_name: String::new(), ..new.clone() };
    let request = pb::UpdateTenantRequest { tenant: Some(labelled), ..Default::default() };
    let labelled = update(request.clone()).await.unwrap();
    assert_eq!((labelled.display_name.as_str(), labelled.kind()), ("New", Kind::Individual));
    assert_eq!(labelled.labels["plan"], "gold");
    // All of them: what is not populated is emptied. A slug that is the same
    // says nothing.
    let bare = pb::Tenant {
        display_name: "Bare".to_owned(),
        slug: tenant.tenant.slug.clone(),
        etag: labelled.etag.clone(),
        ..base.clone()
    };
    let preview = pb::UpdateTenantRequest { validate_only: true, ..change(bare.clone(), &["*"]) };
    assert_eq!(update(preview).await.unwrap().display_name, "Bare");
    assert_eq!(get(&base.name).await, labelled);
    let emptied = update(change(bare.clone(), &["*"])).await.unwrap();
    assert_eq!((emptied.kind(), emptied.labels.len()), (Kind::Organization, 0));

    let stale = update(change(bare, &["*"])).await;
    assert_eq!(code_and_reason(stale), (Code::Aborted, "CONCURRENT_CHANGE".to_owned()));
    let id = server().clock.new_id().to_string();
    let once = pb::UpdateTenantRequest { request_id: id, ..request };
    let answers = join_all((0..4).map(|_| update(once.clone()))).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap()).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(get(&base.name).await, answers[0]);
    // A suspended tenant can be changed, and stays suspended.
    act(Suspend, ask(&base.name)).await.unwrap();
    let changed = update(change(new, &["kind"])).await.unwrap();
    assert_eq!((changed.state(), changed.kind()), (State::Suspended, Kind::Individual));
}

#[tokio::test]
async fn every_fault_of_an_update_stands_in_one_answer() {
    let tenant = Tenant::create().await;
    let base = ask_tenant(&tenant.tenant.name);
    let faults = async |request| -> Vec<String> {
        field_faults(update(request).await).into_iter().map(|fault| fault.0).collect()
    };

    let nothing = pb::UpdateTenantRequest { tenant: Some(base.clone()), ..Default::default() };
    assert_eq!(faults(nothing).await, ["update_mask"]);
    assert_eq!(faults(change(base.clone(), &["state", "display_name"])).await.len(), 2);
    assert_eq!(faults(change(base.clone(), &["slug"])).await, ["update_mask"]);
    let wrong = pb::Tenant {
        name: base.name.clone(),
        slug: "another-slug".to_owned(),
        display_name: " ".to_owned(),
        kind: 42,
        labels: [("k".to_owned(), "v".repeat(256))].into(),
        ..pb::Tenant::default()
    };
    let all = faults(change(wrong.clone(), &["*"])).await;
    let expected = ["tenant.kind", "tenant.labels[\"k\"]", "tenant.display_name", "tenant.slug"];
    assert_eq!(all, expected);
    // So it does for a tenant that changed meanwhile, and for none.
    let unknown = format!("tenants/{}", server().clock.new_id());
    for (name, etag) in [(&base.name, "\"0\""), (&unknown, "")] {
        let (name, etag) = (name.clone(), etag.to_owned());
        let wrong = pb::Tenant { name, etag, slug: String::new(), ..wrong.clone() };
        assert_eq!(faults(change(wrong, &["*"])).await, expected[..3]);
    }
    // What the mask does not name is not looked at.
    let named = pb::Tenant { display_name: "Fine".to_owned(), ..wrong };
    assert_eq!(update(change(named, &["display_name"])).await.unwrap().display_name, "Fine");
    let nameless = pb::Tenant { display_name: "X".to_owned(), ..pb::Tenant::default() };
    assert_eq!(faults(change(nameless, &["display_name"])).await, ["tenant.name"]);
}

#[tokio::test]
async fn storms_of_changes_end_with_state_and_fence_as_one() {
    let tenants = [Tenant::create().await, Tenant::create().await];
    let other = Tenant::create().await;
    let replica = server().replica().await;
    let addresses = [server().addresses.registry, replica.addresses.registry];

    for round in 0..3 {
        let storm = (0..40).map(|turn| {
            let name = tenants[turn % 2].tenant.name.clone();
            let address = addresses[(turn / 2) % 2];
            async move {
                let operator = Client::operator(server());
                let mut client = TenantServiceClient::new(operator.channel(address));
                let outcome = match turn % 5 {
                    0 | 3 => {
                        let message = pb::SuspendTenantRequest { name, ..Default::default() };
                        client.suspend_tenant(operator.request(message)).await
                    }
                    1 | 4 => {
                        let message = pb::ResumeTenantRequest { name, ..Default::default() };
                        client.resume_tenant(operator.request(message)).await
                    }
                    _ if turn % 4 == 0 => {
                        let message = pb::DeleteTenantRequest { name, ..Default::default() };
                        client.delete_tenant(operator.request(message)).await
                    }
                    _ => {
                        let message = pb::UndeleteTenantRequest { name, ..Default::default() };
                        client.undelete_tenant(operator.request(message)).await
                    }
                };
                if let Err(status) = outcome {
                    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
                }
            }
        });
        join_all(storm).await;

        for tenant in &tenants {
            let state = get(&tenant.tenant.name).await.state();
            let is_open = state == State::Active;
            assert_eq!(logins(tenant).await, [is_open, is_open], "round {round}: {state:?}");
        }
    }
    assert_eq!(logins(&other).await, [true, true]);
    replica.stop().await;
}
