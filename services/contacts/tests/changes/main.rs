//! What becomes of contacts: lists, updates, deletions, over the wire.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod lists;

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{
    Contact, CreateContactRequest, DeleteContactRequest, GetContactRequest, ListContactsRequest,
    ListContactsResponse, UndeleteContactRequest, UpdateContactRequest,
};
use crm_proto::messaging::v1::conversation_service_client::ConversationServiceClient;
use crm_proto::messaging::v1::message::SenderType;
use crm_proto::messaging::v1::message_service_client::MessageServiceClient;
use crm_proto::messaging::v1::{
    Conversation, CreateMessageRequest, ListConversationsRequest, Message,
};
use crm_testing::{Channel, Client, Tenant, code_and_reason, field_faults, server};
use futures_util::future::join_all;
use prost::Message as _;
use prost_types::FieldMask;
use tonic::{Code, Status};

fn contacts(client: &Client) -> ContactServiceClient<Channel> {
    ContactServiceClient::new(client.channel(server().addresses.contacts))
}

async fn create(client: &Client, display_name: &str, email: &str) -> Contact {
    let contact = Contact {
        display_name: display_name.to_owned(),
        email: email.to_owned(),
        ..Contact::default()
    };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    contacts(client).create_contact(client.request(request)).await.unwrap().into_inner()
}

async fn get(client: &Client, name: &str) -> Contact {
    let request = GetContactRequest { name: name.to_owned() };
    contacts(client).get_contact(client.request(request)).await.unwrap().into_inner()
}

async fn update(client: &Client, request: UpdateContactRequest) -> Result<Contact, Status> {
    Ok(contacts(client).update_contact(client.request(request)).await?.into_inner())
}

async fn delete(client: &Client, request: DeleteContactRequest) -> Result<Contact, Status> {
    Ok(contacts(client).delete_contact(client.request(request)).await?.into_inner())
}

async fn undelete(client: &Client, name: &str) -> Result<Contact, Status> {
    let request = UndeleteContactRequest { name: name.to_owned(), ..Default::default() };
    Ok(contacts(client).undelete_contact(client.request(request)).await?.into_inner())
}

async fn list(
    client: &Client,
    request: ListContactsRequest,
) -> Result<ListContactsResponse, Status> {
    Ok(contacts(client).list_contacts(client.request(request)).await?.into_inner())
}

async fn conversations(client: &Client, contact: &str) -> Vec<Conversation> {
    let mut conversations =
        ConversationServiceClient::new(client.channel(server().addresses.messaging));
    let request = ListConversationsRequest { contact: contact.to_owned(), ..Default::default() };
    let listed = conversations.list_conversations(client.request(request)).await.unwrap();
    listed.into_inner().conversations
}

async fn send(client: &Client, parent: &str) -> Result<Message, Status> {
    let mut messages = MessageServiceClient::new(client.channel(server().addresses.messaging));
    let request = CreateMessageRequest {
        parent: parent.to_owned(),
        message: Some(Message {
            sender_type: SenderType::User.into(),
            content: "hello".to_owned(),
            ..Message::default()
        }),
        ..CreateMessageRequest::default()
    };
    Ok(messages.create_message(client.request(request)).await?.into_inner())
}

fn patch(contact: Contact, paths: &[&str]) -> UpdateContactRequest {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    UpdateContactRequest {
        contact: Some(contact),
        update_mask: Some(FieldMask { paths }),
        ..UpdateContactRequest::default()
    }
}

fn deletion(name: &str) -> DeleteContactRequest {
    DeleteContactRequest { name: name.to_owned(), ..DeleteContactRequest::default() }
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names_and_nothing_else() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let created = create(&admin, "Ada", "ada@example.com").await;
    let sent = Contact {
        name: created.name.clone(),
        display_name: "ignored".repeat(100),
        phone: "+44 20 7946 0958".to_owned(),
        ..Contact::default()
    };

    let masked = update(&admin, patch(sent, &["phone", "company"])).await.unwrap();
    let sent =
        Contact { name: created.name.clone(), company: "Engines".to_owned(), ..Default::default() };
    let populated = UpdateContactRequest { contact: Some(sent), ..Default::default() };
    let populated = update(&admin, populated).await.unwrap();
    let cleared = update(
        &admin,
        patch(Contact { name: created.name.clone(), ..Default::default() }, &["email"]),
    )
    .await
    .unwrap();

    assert_eq!((masked.display_name.as_str(), masked.email.as_str()), ("Ada", "ada@example.com"));
    assert_eq!(masked.phone, "+44 20 7946 0958");
    assert_eq!((masked.revision, masked.create_time), (2, created.create_time));
    assert_eq!(
        (populated.company.as_str(), populated.phone.as_str()),
        ("Engines", masked.phone.as_str())
    );
    assert_eq!(cleared.email, "");
    assert_eq!(get(&admin, &created.name).await, cleared);
    tenant.check_log().await;
}

#[tokio::test]
async fn the_rules_of_a_contact_hold_for_what_it_becomes() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let name = create(&admin, "Ada", "ada@example.com").await.name;
    let with = |contact: Contact| Contact { name: name.clone(), ..contact };

    let unreachable = update(&admin, patch(with(Contact::default()), &["email"])).await;
    let everything = patch(
        with(Contact { email: "x".repeat(256), phone: "1".to_owned(), ..Default::default() }),
        &["display_name", "email", "phone", "favourite"],
    );
    let everything = update(&admin, everything).await;
    let nothing =
        UpdateContactRequest { contact: Some(with(Contact::default())), ..Default::default() };
    let nothing = update(&admin, nothing).await;
    let all = update(&admin, patch(with(Contact::default()), &["*"])).await;

    let fields = |outcome| -> Vec<String> {
        field_faults(outcome).into_iter().map(|(field, _)| field).collect()
    };
    assert_eq!(fields(unreachable), ["contact.email", "contact.phone"]);
    let expected =
        ["contact.email", "update_mask", "contact.display_name", "contact.email", "contact.phone"];
    assert_eq!(fields(everything), expected);
    assert_eq!(fields(nothing), ["update_mask"]);
    assert_eq!(fields(all), ["contact.display_name", "contact.email", "contact.phone"]);
    assert_eq!(get(&admin, &name).await.revision, 1);
    tenant.check_log().await;
}

#[tokio::test]
async fn a_stale_etag_is_refused_and_without_one_nobody_loses_an_update() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let created = create(&admin, "Ada", "ada@example.com").await;
    let company = |company: &str, etag: &str| {
        let contact = Contact {
            name: created.name.clone(),
            company: company.to_owned(),
            etag: etag.to_owned(),
            ..Contact::default()
        };
        UpdateContactRequest { contact: Some(contact), ..Default::default() }
    };

    let fresh = update(&admin, company("one", &created.etag)).await.unwrap();
    let aborted = (Code::Aborted, "CONCURRENT_CHANGE".to_owned());
    for etag in [created.etag.as_str(), "\"x\"", "junk", "*"] {
        assert_eq!(code_and_reason(update(&admin, company("two", etag)).await), aborted, "{etag}");
    }
    let mut outcomes = Vec::new();
    for outcome in join_all((0..2).map(|i| update(&admin, company(&i.to_string(), "")))).await {
        outcomes.push(outcome.unwrap().revision);
    }
    let stale = DeleteContactRequest { etag: fresh.etag, ..deletion(&created.name) };
    assert_eq!(code_and_reason(delete(&admin, stale).await), aborted);

    outcomes.sort_unstable();
    assert_eq!(outcomes, [3, 4]);
    tenant.check_log().await;
}

#[tokio::test]
async fn fields_that_are_wrong_for_any_contact_are_named_before_what_became_of_this_one() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let created = create(&admin, "Ada", "ada@example.com").await;
    let gone = create(&admin, "Gone", "gone@example.com").await;
    delete(&admin, deletion(&gone.name)).await.unwrap();
    let wrong = |name: &str, etag: &str| {
        let contact = Contact {
            name: name.to_owned(),
            email: "no address".to_owned(),
            phone: "no number".to_owned(),
            etag: etag.to_owned(),
            ..Contact::default()
        };
        UpdateContactRequest { contact: Some(contact), ..Default::default() }
    };
    let unknown = format!("contacts/{}", server().clock.new_id());

    for (name, etag) in [(&created.name, "\"0\""), (&gone.name, ""), (&unknown, "")] {
        let faults = field_faults(update(&admin, wrong(name, etag)).await);

        let expected = [("contact.email", "EMAIL"), ("contact.phone", "PHONE")];
        assert_eq!(faults, expected.map(|(field, why)| (field.to_owned(), why.to_owned())));
    }
    // What is right by itself, and wrong for what it was, is not known of another.
    let bare =
        Contact { name: created.name.clone(), etag: "\"0\"".to_owned(), ..Contact::default() };
    let mask = Some(FieldMask { paths: vec!["email".to_owned()] });
    let request =
        UpdateContactRequest { contact: Some(bare), update_mask: mask, ..Default::default() };
    let aborted = (Code::Aborted, "CONCURRENT_CHANGE".to_owned());
    assert_eq!(code_and_reason(update(&admin, request).await), aborted);
}

/// Whether each change that the log recorded of a conversation says that it is
/// deleted, and whether it has a cause.
async fn recorded_deletions(tenant: &Tenant, conversation: &str) -> Vec<(bool, bool)> {
    let mut database = tenant.database().await;
    let recorded: Vec<(Vec<u8>, Option<String>)> = sqlx::query_as(
        "SELECT after, cause FROM platform.changes WHERE name = $1 ORDER BY revision, ordinal",
    )
    .bind(conversation)
    .fetch_all(&mut database)
    .await
    .unwrap();
    let deletion = |(after, cause): &(Vec<u8>, Option<String>)| {
        let after = Conversation::decode(after.as_slice()).unwrap();
        (after.delete_time.is_some(), cause.is_some())
    };
    recorded.iter().map(deletion).collect()
}

#[tokio::test]
async fn a_deleted_contact_takes_its_conversations_along_and_brings_them_back() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let created = create(&admin, "Ada", "ada@example.com").await;
    let parent = created.initial_conversation.clone();
    send(&admin, &parent).await.unwrap();
    let before = conversations(&admin, &created.name).await;
    let failed = |reason: &str| (Code::FailedPrecondition, reason.to_owned());

    let deleted = delete(&admin, deletion(&created.name)).await.unwrap();

    assert!(deleted.delete_time.is_some());
    assert_eq!(get(&admin, &created.name).await, deleted);
    assert_eq!(conversations(&admin, &created.name).await, []);
    assert_eq!(code_and_reason(send(&admin, &parent).await), failed("RESOURCE_DELETED"));
    let again = delete(&admin, deletion(&created.name)).await;
    assert_eq!(code_and_reason(again), failed("RESOURCE_DELETED"));
    let sent =
        Contact { name: created.name.clone(), company: "x".to_owned(), ..Default::default() };
    let updated =
        update(&admin, UpdateContactRequest { contact: Some(sent), ..Default::default() });
    assert_eq!(code_and_reason(updated.await), failed("RESOURCE_DELETED"));
    assert_eq!(list(&admin, ListContactsRequest::default()).await.unwrap().contacts, []);
    let shown = ListContactsRequest { show_deleted: true, ..Default::default() };
    assert_eq!(list(&admin, shown).await.unwrap().contacts, [deleted]);

    let restored = undelete(&admin, &created.name).await.unwrap();

    assert_eq!(restored.delete_time, None);
    assert_eq!(
        code_and_reason(undelete(&admin, &created.name).await),
        failed("RESOURCE_NOT_DELETED")
    );
    let after = conversations(&admin, &created.name).await;
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].last_message_time, before[0].last_message_time);
    assert_eq!(after[0].revision, restored.revision);
    send(&admin, &parent).await.unwrap();
    // What the log recorded of the conversation says that it was deleted, when,
    // and that it was restored.
    assert_eq!(
        recorded_deletions(&tenant, &parent).await,
        [(false, true), (false, false), (true, true), (false, true), (false, false)]
    );
    tenant.check_log().await;
}

#[tokio::test]
async fn a_repeated_change_answers_what_it_answered_first() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let name = create(&admin, "Ada", "ada@example.com").await.name;
    let contact =
        Contact { name: name.clone(), company: "Engines".to_owned(), ..Default::default() };
    let first = UpdateContactRequest {
        contact: Some(contact),
        request_id: server().clock.new_id().to_string(),
        ..Default::default()
    };
    let removal =
        DeleteContactRequest { request_id: server().clock.new_id().to_string(), ..deletion(&name) };

    let updated = update(&admin, first.clone()).await.unwrap();
    let removed = join_all((0..8).map(|_| delete(&admin, removal.clone()))).await;
    // By now the contact is deleted, and yet the first request has its answer.
    let late = update(&admin, first.clone()).await.unwrap();

    assert_eq!(updated.encode_to_vec(), late.encode_to_vec());
    let removed: Vec<_> = removed.into_iter().map(|r| r.unwrap().encode_to_vec()).collect();
    assert!(removed.iter().all(|answer| *answer == removed[0]));
    let mut other = first;
    other.contact.as_mut().unwrap().company = "Other".to_owned();
    let expected = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
    assert_eq!(code_and_reason(update(&admin, other).await), expected);
    tenant.check_log().await;
}

#[tokio::test]
async fn validate_only_changes_nothing() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let created = create(&admin, "Ada", "ada@example.com").await;
    let contact = Contact {
        name: created.name.clone(),
        display_name: "Countess".to_owned(),
        ..Default::default()
    };
    let request =
        UpdateContactRequest { contact: Some(contact), validate_only: true, ..Default::default() };

    let preview = update(&admin, request).await.unwrap();
    let removal = DeleteContactRequest { validate_only: true, ..deletion(&created.name) };
    let removal = delete(&admin, removal).await.unwrap();

    assert_eq!(preview.display_name, "Countess");
    assert!(removal.delete_time.is_some());
    assert_eq!(get(&admin, &created.name).await, created);
    tenant.check_log().await;
}

#[tokio::test]
async fn changes_of_what_is_not_ones_own_answer_like_those_of_what_is_not_there() {
    let (one, two) = tokio::join!(Tenant::create(), Tenant::create());
    let (admin, stranger) = (one.admin(), two.admin());
    let created = create(&admin, "Ada", "ada@example.com").await;
    let contact =
        Contact { name: created.name.clone(), company: "x".to_owned(), ..Default::default() };
    let not_found = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());

    let updated =
        update(&stranger, UpdateContactRequest { contact: Some(contact), ..Default::default() });
    assert_eq!(code_and_reason(updated.await), not_found);
    assert_eq!(code_and_reason(delete(&stranger, deletion(&created.name)).await), not_found);
    assert_eq!(code_and_reason(undelete(&stranger, &created.name).await), not_found);
    assert_eq!(list(&stranger, ListContactsRequest::default()).await.unwrap().contacts, []);
    assert_eq!(get(&admin, &created.name).await, created);
    two.check_log().await;
}
