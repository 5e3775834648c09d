//! Conversations: creating and changing them.

use crm_proto::messaging::v1::conversation::State;
use crm_proto::messaging::v1::{
    Conversation, ConversationView, CreateConversationRequest, ListConversationsRequest, Message,
    UpdateConversationRequest,
};
use crm_testing::{Tenant, code_and_reason, field_faults, server};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use prost::Message as _;
use prost_types::FieldMask;
use tonic::Code;

use crate::calls::{
    contact, create, delete_contact, failed, get, list_conversations, not_found, say, to_state,
    update, with,
};

#[tokio::test]
async fn a_contact_has_several_conversations_each_read_as_it_was_created() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let contact = contact(&admin).await;
    let mut request = with(&contact.name);
    let wanted = request.conversation.as_mut().unwrap();
    wanted.display_name = "Invoices".to_owned();
    wanted.state = State::Snoozed.into();
    // What only answers have is not looked at.
    wanted.messages = vec![Message::default()];

    let named = create(&admin, request.clone()).await.unwrap();
    let plain = create(&admin, with(&contact.name)).await.unwrap();
    let preview =
        create(&admin, CreateConversationRequest { validate_only: true, ..request }).await.unwrap();

    assert_eq!((named.display_name.as_str(), named.state()), ("Invoices", State::Snoozed));
    assert_eq!((plain.display_name.as_str(), plain.state()), ("", State::Active));
    assert_eq!((named.revision, named.etag.as_str()), (2, "\"2\""));
    assert_eq!((preview.name.as_str(), preview.etag.as_str()), ("", ""));
    assert_eq!(preview.display_name, "Invoices");
    assert_eq!(get(&admin, &named.name, ConversationView::Basic).await.unwrap(), named);
    let request = ListConversationsRequest { contact: contact.name, ..Default::default() };
    let listed = list_conversations(&admin, request).await.unwrap();
    let names: Vec<_> = listed.conversations.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, [&plain.name, &named.name, &contact.initial_conversation]);
    assert_eq!(listed.conversations[1], named);
    tenant.check_log().await;
}

#[tokio::test]
async fn a_conversation_needs_a_contact_that_is_there() {
    let (one, two) = tokio::join!(Tenant::create(), Tenant::create());
    let (admin, stranger) = (one.admin(), two.admin());
    let (theirs, deleted) = (contact(&admin).await, contact(&admin).await);
    delete_contact(&admin, &deleted.name).await;
    let unknown = format!("contacts/{}", one.id);

    let foreign = create(&stranger, with(&theirs.name)).await;
    let gone = create(&admin, with(&deleted.name)).await;
    let preview = CreateConversationRequest { validate_only: true, ..with(&deleted.name) };
    let previewed = create(&admin, preview).await;
    let nobody = create(&admin, with(&unknown)).await;
    let mut wrong = with("");
    wrong.conversation.as_mut().unwrap().display_name = "x".repeat(256);
    wrong.conversation.as_mut().unwrap().state = 9;
    let wrong = create(&admin, wrong).await;

    assert_eq!(code_and_reason(foreign), not_found());
    assert_eq!(code_and_reason(gone), failed("RESOURCE_DELETED"));
    assert_eq!(code_and_reason(previewed), failed("RESOURCE_DELETED"));
    assert_eq!(code_and_reason(nobody), not_found());
    let fields: Vec<_> = field_faults(wrong).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["conversation.contact", "conversation.state", "conversation.display_name"]);
    assert_eq!(
        field_faults(create(&admin, with("conversations/x")).await),
        [("conversation.contact".to_owned(), "RESOURCE_NAME".to_owned())]
    );
    one.check_log().await;
    two.check_log().await;
}

#[tokio::test]
async fn a_contact_has_no_more_conversations_than_one_revision_can_delete() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let contact = contact(&admin).await;
    let mut database = tenant.database().await;
    sqlx::query(
        "WITH head AS (UPDATE platform.head SET revision = revision + 1 RETURNING revision),
         made AS (
             INSERT INTO messaging.conversations
                 (conversation_id, contact_id, state, create_time, update_time, revision, recorded)
             SELECT gen_random_uuid(), k.contact_id, 1, now(), now(), head.revision, ''
             FROM head, messaging.contacts AS k, generate_series(1, 998)
             RETURNING conversation_id, revision
         )
         INSERT INTO platform.changes (revision, ordinal, kind, name, actor, after)
         SELECT revision, row_number() OVER () - 1, 2, 'conversations/' || conversation_id, 'x', ''
         FROM made",
    )
    .execute(&mut database)
    .await
    .unwrap();

    let two = join_all([with(&contact.name), with(&contact.name)].map(|c| create(&admin, c))).await;

    let refused: Vec<_> = two.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1);
    let refused = code_and_reason::<()>(Err(refused.into_iter().next().unwrap()));
    assert_eq!(refused, failed("CONVERSATION_LIMIT_REACHED"));
    delete_contact(&admin, &contact.name).await;
    tenant.check_log().await;
}

#[tokio::test]
async fn a_contact_that_is_deleted_meanwhile_keeps_no_conversation() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    for _ in 0..10 {
        let contact = contact(&admin).await;

        let created = join_all((0..6).map(|_| create(&admin, with(&contact.name))));
        tokio::join!(created, delete_contact(&admin, &contact.name));

        let request = ListConversationsRequest { contact: contact.name, ..Default::default() };
        assert_eq!(list_conversations(&admin, request).await.unwrap().conversations, []);
    }
    tenant.check_log().await;
}

#[tokio::test]
async fn repeated_writes_happen_once_and_answer_the_same_bytes() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let contact = contact(&admin).await;
    let request_id = server().clock.new_id().to_string();
    let request =
        CreateConversationRequest { request_id: request_id.clone(), ..with(&contact.name) };

    let created = join_all((0..10).map(|_| create(&admin, request.clone()))).await;
    let created: Vec<_> = created.into_iter().map(Result::unwrap).collect();
    let change = UpdateConversationRequest {
        request_id: request_id.clone(),
        ..to_state(&created[0].name, State::Closed)
    };
    let changed = join_all((0..10).map(|_| update(&admin, change.clone()))).await;
    let changed: Vec<_> = changed.into_iter().map(Result::unwrap).collect();
    update(&admin, to_state(&created[0].name, State::Active)).await.unwrap();
    let later = update(&admin, change).await.unwrap();

    for answers in [&created, &changed] {
        let bytes: Vec<_> = answers.iter().map(|answer| answer.encode_to_vec()).collect();
        assert!(bytes.iter().all(|answer| *answer == bytes[0]));
    }
    assert_eq!(later.encode_to_vec(), changed[0].encode_to_vec());
    let all = list_conversations(&admin, ListConversationsRequest::default()).await.unwrap();
    assert_eq!((all.conversations.len(), all.revision), (2, 4));
    let expected = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
    let mut other = request;
    other.conversation.as_mut().unwrap().display_name = "other".to_owned();
    assert_eq!(code_and_reason(create(&admin, other).await), expected);
    let other =
        UpdateConversationRequest { request_id, ..to_state(&created[0].name, State::Archived) };
    assert_eq!(code_and_reason(update(&admin, other).await), expected);
    tenant.check_log().await;
}

#[tokio::test]
async fn a_state_leads_only_where_the_contract_says() {
    use State::{Active, Archived, Closed, Snoozed};
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let name = contact(&admin).await.initial_conversation;

    for (to, allowed) in [
        (Active, true),
        (Snoozed, true),
        (Active, true),
        (Snoozed, true),
        (Archived, true),
        (Snoozed, false),
        (Active, true),
        (Archived, true),
        (Closed, true),
        (Snoozed, false),
        (Archived, false),
        (Closed, true),
        (Active, true),
    ] {
        let previewed = UpdateConversationRequest { validate_only: true, ..to_state(&name, to) };
        let previewed = update(&admin, previewed).await;
        let outcome = update(&admin, to_state(&name, to)).await;
        if allowed {
            assert_eq!((previewed.unwrap().state(), outcome.unwrap().state()), (to, to));
        } else {
            assert_eq!(code_and_reason(previewed), failed("STATE_TRANSITION_INVALID"), "{to:?}");
            assert_eq!(code_and_reason(outcome), failed("STATE_TRANSITION_INVALID"), "{to:?}");
        }
    }
    update(&admin, to_state(&name, Closed)).await.unwrap();
    assert_eq!(code_and_reason(say(&admin, &name, "x").await), failed("CONVERSATION_CLOSED"));
    update(&admin, to_state(&name, Active)).await.unwrap();
    say(&admin, &name, "x").await.unwrap();
    tenant.check_log().await;
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names_and_minds_the_etag() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let name = contact(&admin).await.initial_conversation;
    let sent = Conversation {
        name: name.clone(),
        display_name: "Invoices".to_owned(),
        state: State::Snoozed.into(),
        ..Conversation::default()
    };
    let masked = |conversation: &Conversation, paths: &[&str]| UpdateConversationRequest {
        conversation: Some(conversation.clone()),
        update_mask: Some(FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() }),
        ..UpdateConversationRequest::default()
    };

    let renamed = update(&admin, masked(&sent, &["display_name"])).await.unwrap();
    let message = say(&admin, &name, "hello").await.unwrap();
    let stale = Conversation { etag: renamed.etag.clone(), ..sent.clone() };
    let stale = update(&admin, masked(&stale, &["*"])).await;
    let fresh = Conversation { etag: message.etag.clone(), ..sent.clone() };
    let all = update(&admin, masked(&fresh, &["*"])).await.unwrap();
    let cleared =
        Conversation { name: name.clone(), display_name: " ".to_owned(), ..Default::default() };
    let cleared = update(&admin, masked(&cleared, &["display_name"])).await.unwrap();

    assert_eq!((renamed.display_name.as_str(), renamed.state()), ("Invoices", State::Active));
    assert_eq!(code_and_reason(stale), (Code::Aborted, "CONCURRENT_CHANGE".to_owned()));
    assert_eq!((all.display_name.as_str(), all.state()), ("Invoices", State::Snoozed));
    assert_eq!(all.last_message_time, message.create_time);
    assert_eq!((cleared.display_name.as_str(), cleared.state()), ("", State::Snoozed));
    assert_eq!(get(&admin, &name, ConversationView::Basic).await.unwrap(), cleared);
    let fault = |field: &str, reason: &str| vec![(field.to_owned(), reason.to_owned())];
    for (request, expected) in [
        (masked(&sent, &["contact"]), fault("update_mask", "FIELD_MASK")),
        (masked(&sent, &["*", "state"]), fault("update_mask", "FIELD_MASK")),
        (masked(&sent, &[]), fault("update_mask", "NOTHING_TO_UPDATE")),
        (masked(&cleared_state(&sent), &["*"]), fault("conversation.state", "ENUM_NOT_IN")),
        (to_state(&name, State::Unspecified), fault("update_mask", "NOTHING_TO_UPDATE")),
        (to_state("", State::Active), fault("conversation.name", "REQUIRED")),
        (to_state("contacts/x", State::Active), fault("conversation.name", "RESOURCE_NAME")),
    ] {
        assert_eq!(field_faults(update(&admin, request).await), expected);
    }
    tenant.check_log().await;
}

fn cleared_state(conversation: &Conversation) -> Conversation {
    Conversation { state: 0, ..conversation.clone() }
}

#[tokio::test]
async fn many_callers_of_one_conversation_all_succeed_without_an_etag() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let name = contact(&admin).await.initial_conversation;

    let states = (0..30).map(|i| {
        let state = if i % 2 == 0 { State::Active } else { State::Snoozed };
        update(&admin, to_state(&name, state))
    });
    let messages = (0..30).map(|_| say(&admin, &name, "x"));
    // More than sessions, which none waits for in vain.
    let (states, messages): (Vec<_>, Vec<_>) = tokio::join!(
        stream::iter(states).buffer_unordered(10).collect(),
        stream::iter(messages).buffer_unordered(10).collect(),
    );

    assert!(states.iter().all(Result::is_ok) && messages.iter().all(Result::is_ok));
    let conversation = get(&admin, &name, ConversationView::Basic).await.unwrap();
    assert_eq!(conversation.revision, 61);
    tenant.check_log().await;
}

#[tokio::test]
async fn who_may_only_read_changes_nothing() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let contact = contact(&admin).await;
    let viewer = tenant.client("roles/viewer", &format!("serviceAccounts/{}", tenant.id));
    let name = &contact.initial_conversation;

    let created = create(&viewer, with(&contact.name)).await;
    let changed = update(&viewer, to_state(name, State::Closed)).await;
    let read = get(&viewer, name, ConversationView::Full).await;

    let expected = (Code::PermissionDenied, "PERMISSION_MISSING".to_owned());
    assert_eq!(code_and_reason(created), expected);
    assert_eq!(code_and_reason(changed), expected);
    assert_eq!(read.unwrap().state(), State::Active);
}
