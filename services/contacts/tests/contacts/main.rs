//! ContactService, over the wire.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod crowds;
mod metadata;

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest, GetContactRequest};
use crm_proto::messaging::v1::ListConversationsRequest;
use crm_proto::messaging::v1::conversation::State;
use crm_proto::messaging::v1::conversation_service_client::ConversationServiceClient;
use crm_testing::{Channel, Client, Tenant, code_and_reason, field_faults, reason, server};
use futures_util::future::join_all;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::{Code, Status};

type Contacts = ContactServiceClient<Channel>;

fn contacts(client: &Client) -> Contacts {
    ContactServiceClient::new(client.channel(server().addresses.contacts))
}

fn ada() -> Contact {
    Contact {
        display_name: "Ada Lovelace".to_owned(),
        email: "ada@example.com".to_owned(),
        ..Contact::default()
    }
}

fn create(contact: Contact) -> CreateContactRequest {
    CreateContactRequest { contact: Some(contact), ..CreateContactRequest::default() }
}

fn get(name: &str) -> GetContactRequest {
    GetContactRequest { name: name.to_owned() }
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

#[tokio::test]
async fn a_created_contact_is_read_back_with_its_initial_conversation() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let sent = Contact {
        phone: "+44 20 7946 0958".to_owned(),
        company: "Analytical Engines \u{202e}Ltd".to_owned(),
        position: "  Programmer ".to_owned(),
        source: "referral".to_owned(),
        ..ada()
    };

    let created = contacts(&admin).create_contact(admin.request(create(sent.clone()))).await;
    let created = created.unwrap().into_inner();
    let read = contacts(&admin).get_contact(admin.request(get(&created.name))).await;

    assert_eq!(created, read.unwrap().into_inner());
    assert_eq!(created.company, sent.company);
    assert_eq!(created.position, sent.position);
    assert_eq!((created.revision, created.etag.as_str()), (1, "\"1\""));
    let mut conversations =
        ConversationServiceClient::new(admin.channel(server().addresses.messaging));
    let request = ListConversationsRequest {
        contact: created.name.clone(),
        ..ListConversationsRequest::default()
    };
    let listed = conversations.list_conversations(admin.request(request)).await.unwrap();
    let listed = listed.into_inner();
    assert_eq!(listed.conversations.len(), 1);
    assert_eq!(listed.conversations[0].name, created.initial_conversation);
    assert_eq!(listed.conversations[0].state(), State::Active);
    assert_eq!(listed.revision, 1);
    tenant.check_log().await;
}

#[tokio::test]
async fn one_request_id_sent_often_and_after_a_restart_makes_one_contact() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let request = CreateContactRequest {
        request_id: server().clock.new_id().to_string(),
        contact: Some(Contact {
            metadata: Some(Struct {
                fields: [
                    ("z".to_owned(), value(Kind::NumberValue(1.5))),
                    ("a".to_owned(), value(Kind::BoolValue(true))),
                ]
                .into(),
            }),
            ..ada()
        }),
        validate_only: false,
    };

    let calls = (0..20).map(|_| {
        let (admin, request) = (admin.clone(), request.clone());
        // Connections of their own, so that they really are at once.
        async move { contacts(&admin).create_contact(admin.request(request)).await }
    });
    let answers = join_all(calls).await;
    let replica = server().replica().await;
    let mut restarted = ContactServiceClient::new(admin.channel(replica.addresses.contacts));
    let late = restarted.create_contact(admin.request(request)).await.unwrap().into_inner();
    replica.stop().await;

    for answer in answers {
        assert_eq!(answer.unwrap().into_inner().encode_to_vec(), late.encode_to_vec());
    }
    let mut database = tenant.database().await;
    let counts: (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM contacts.contacts),
             (SELECT count(*) FROM messaging.conversations),
             (SELECT revision FROM platform.head)",
    )
    .fetch_one(&mut database)
    .await
    .unwrap();
    assert_eq!(counts, (1, 1, 1));
    tenant.check_log().await;
}

#[tokio::test]
async fn a_request_id_belongs_to_its_request_and_its_caller() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let other = tenant.client("roles/user", &format!("serviceAccounts/{}", tenant.id));
    let request =
        CreateContactRequest { request_id: server().clock.new_id().to_string(), ..create(ada()) };
    let changed = CreateContactRequest {
        contact: Some(Contact { phone: "12345".to_owned(), ..ada() }),
        ..request.clone()
    };
    let first = contacts(&admin).create_contact(admin.request(request.clone())).await.unwrap();

    let reused = contacts(&admin).create_contact(admin.request(changed)).await;
    let others = contacts(&other).create_contact(other.request(request)).await.unwrap();

    let expected = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
    assert_eq!(code_and_reason(reused), expected);
    assert_ne!(first.into_inner().name, others.into_inner().name);
    tenant.check_log().await;
}

#[tokio::test]
async fn a_request_id_is_forgotten_after_a_day() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let request =
        CreateContactRequest { request_id: server().clock.new_id().to_string(), ..create(ada()) };
    let first = contacts(&admin).create_contact(admin.request(request.clone())).await.unwrap();
    let mut database = tenant.database().await;
    sqlx::query("UPDATE platform.requests SET expire_time = expire_time - interval '25 hours'")
        .execute(&mut database)
        .await
        .unwrap();

    let second = contacts(&admin).create_contact(admin.request(request)).await.unwrap();

    assert_ne!(first.into_inner().name, second.into_inner().name);
    tenant.check_log().await;
}

#[tokio::test]
async fn every_fault_of_a_contact_stands_in_one_answer() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let request = CreateContactRequest {
        contact: Some(Contact {
            display_name: " \t ".to_owned(),
            email: "nobody".to_owned(),
            phone: "1".repeat(51),
            company: "c".repeat(256),
            source: "nul\0".to_owned(),
            metadata: Some(Struct {
                fields: [("x".to_owned(), value(Kind::NumberValue(f64::NAN)))].into(),
            }),
            ..Contact::default()
        }),
        request_id: "no uuid".to_owned(),
        validate_only: false,
    };

    let faults = field_faults(contacts(&admin).create_contact(admin.request(request)).await);

    let expected = [
        ("contact.phone", "STRING_MAX_LEN"),
        ("contact.company", "STRING_MAX_LEN"),
        ("contact.source", "NO_NUL"),
        ("request_id", "STRING_UUID"),
        ("contact.metadata", "METADATA_NUMBER"),
        ("contact.display_name", "NOT_BLANK"),
        ("contact.email", "EMAIL"),
        ("contact.phone", "PHONE"),
    ];
    let expected = expected.map(|(field, reason)| (field.to_owned(), reason.to_owned()));
    assert_eq!(faults, expected);
    tenant.check_log().await;
}

#[tokio::test]
async fn validate_only_finds_the_same_faults_and_writes_nothing() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let dry = |contact| CreateContactRequest { validate_only: true, ..create(contact) };

    let good = contacts(&admin).create_contact(admin.request(dry(ada()))).await.unwrap();
    let bad = contacts(&admin).create_contact(admin.request(dry(Contact::default()))).await;

    let good = good.into_inner();
    assert_eq!((good.name.as_str(), good.display_name.as_str()), ("", "Ada Lovelace"));
    assert_eq!(field_faults(bad).len(), 3);
    let mut database = tenant.database().await;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM contacts.contacts")
        .fetch_one(&mut database)
        .await
        .unwrap();
    assert_eq!(rows, 0);
    tenant.check_log().await;
}

#[tokio::test]
async fn another_tenants_contact_answers_like_an_unknown_one() {
    let (one, two) = tokio::join!(Tenant::create(), Tenant::create());
    let (admin, stranger) = (one.admin(), two.admin());
    let created = contacts(&admin).create_contact(admin.request(create(ada()))).await.unwrap();
    let name = created.into_inner().name;
    // The same name where it never existed: a third tenant.
    let third = Tenant::create().await.admin();

    let foreign = contacts(&stranger).get_contact(stranger.request(get(&name))).await.unwrap_err();
    let unknown = contacts(&third).get_contact(third.request(get(&name))).await.unwrap_err();

    assert_eq!(foreign.code(), Code::NotFound);
    assert_eq!(reason(&foreign), "RESOURCE_NOT_FOUND");
    assert_eq!(foreign.message(), unknown.message());
    assert_eq!(foreign.details(), unknown.details());
}

#[tokio::test]
async fn names_are_well_formed_or_refused() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();

    for name in
        ["", "contacts/", "contacts/x", "conversations/01a1fbe9-45ac-70cf-90f7-b66ddf12b761"]
    {
        let faults = field_faults(contacts(&admin).get_contact(admin.request(get(name))).await);
        assert_eq!(faults[0].0, "name", "{name:?}");
    }
    let unknown = format!("contacts/{}", tenant.id);
    let outcome = contacts(&admin).get_contact(admin.request(get(&unknown))).await;
    assert_eq!(code_and_reason(outcome), (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned()));
}

#[tokio::test]
async fn roles_decide_who_may_write() {
    let tenant = Tenant::create().await;
    let subject = format!("serviceAccounts/{}", tenant.id);
    let viewer = tenant.client("roles/viewer", &subject);
    let unknown = tenant.client("roles/unheard-of", &subject);

    for client in [viewer, unknown] {
        let outcome = contacts(&client).create_contact(client.request(create(ada()))).await;
        let expected = (Code::PermissionDenied, "PERMISSION_MISSING".to_owned());
        assert_eq!(code_and_reason(outcome), expected);
    }
    let nobody = Client::new("x");
    let outcome = contacts(&nobody).create_contact(nobody.request(create(ada()))).await;
    assert_eq!(code_and_reason(outcome), (Code::Unauthenticated, "TOKEN_INVALID".to_owned()));
}

/// A call on a connection of its own.
async fn contacts_call(client: &Client, request: CreateContactRequest) -> Result<Contact, Status> {
    Ok(contacts(client).create_contact(client.request(request)).await?.into_inner())
}
