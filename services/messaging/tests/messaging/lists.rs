//! Conversations: reading and listing them.

use crm_proto::contacts::v1::{Contact, UndeleteContactRequest};
use crm_proto::messaging::v1::conversation::State;
use crm_proto::messaging::v1::{Conversation, ConversationView, ListConversationsRequest};
use crm_testing::{Tenant, code_and_reason, field_faults};
use tonic::Status;

use crate::calls::{
    contact, contacts, create, delete_contact, failed, get, get_message, list_conversations,
    not_found, say, to_state, update, with,
};

#[tokio::test]
async fn a_view_shows_the_latest_messages_unless_the_conversation_is_deleted() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let contact = contact(&admin).await;
    let name = &contact.initial_conversation;
    let mut sent = Vec::new();
    for content in ["one", "two", "three"] {
        sent.push(say(&admin, name, content).await.unwrap());
    }

    let full = get(&admin, name, ConversationView::Full).await.unwrap();
    let basic = get(&admin, name, ConversationView::Basic).await.unwrap();
    let read = get_message(&admin, &sent[0].name).await.unwrap();
    delete_contact(&admin, &contact.name).await;
    let deleted = get(&admin, name, ConversationView::Full).await.unwrap();
    let unread = get_message(&admin, &sent[0].name).await;
    let unchanged = update(&admin, to_state(name, State::Closed)).await;
    let shown = ListConversationsRequest { show_deleted: true, ..Default::default() };
    let shown = list_conversations(&admin, shown).await.unwrap().conversations;

    assert_eq!(full.messages, sent[1..]);
    assert_eq!(basic, Conversation { messages: Vec::new(), ..full });
    assert_eq!(read, sent[0]);
    assert!(deleted.delete_time.is_some() && deleted.messages.is_empty());
    assert_eq!(code_and_reason(unread), failed("RESOURCE_DELETED"));
    assert_eq!(code_and_reason(unchanged), failed("RESOURCE_DELETED"));
    assert_eq!(shown, [deleted]);
    let all = list_conversations(&admin, ListConversationsRequest::default()).await.unwrap();
    assert_eq!(all.conversations, []);
    let undelete = UndeleteContactRequest { name: contact.name, ..Default::default() };
    contacts(&admin).undelete_contact(admin.request(undelete)).await.unwrap();
    let restored = get(&admin, name, ConversationView::Basic).await.unwrap();
    assert_eq!((restored.delete_time, restored.state()), (None, State::Active));
    tenant.check_log().await;
}

#[tokio::test]
async fn anothers_names_answer_the_bytes_of_unknown_ones() {
    let (one, two) = tokio::join!(Tenant::create(), Tenant::create());
    let (admin, stranger) = (one.admin(), two.admin());
    let contact = contact(&admin).await;
    let theirs = contact.initial_conversation;
    let message = say(&admin, &theirs, "secret").await.unwrap().name;
    let (id, unknown) = (theirs.strip_prefix("conversations/").unwrap(), two.id.to_string());
    let elsewhere = |name: &str| name.replace(id, &unknown);

    let read = |name: String| {
        let stranger = stranger.clone();
        async move { get(&stranger, &name, ConversationView::Full).await.unwrap_err() }
    };
    let read_message = |name: String| {
        let stranger = stranger.clone();
        async move { get_message(&stranger, &name).await.unwrap_err() }
    };
    let change = |name: String| {
        let stranger = stranger.clone();
        async move { update(&stranger, to_state(&name, State::Closed)).await.unwrap_err() }
    };
    let create = |name: String| {
        let stranger = stranger.clone();
        async move { create(&stranger, with(&name)).await.unwrap_err() }
    };
    let answers = [
        (read(theirs.clone()).await, read(elsewhere(&theirs)).await),
        (read_message(message.clone()).await, read_message(elsewhere(&message)).await),
        (change(theirs.clone()).await, change(elsewhere(&theirs)).await),
        (create(contact.name.clone()).await, create(elsewhere(&contact.name)).await),
    ];

    for (foreign, unknown_one) in answers {
        let bytes = |status: &Status| {
            let text = String::from_utf8_lossy(status.details()).replace(id, &unknown);
            (status.code(), status.message().to_owned(), text)
        };
        assert_eq!(bytes(&foreign), bytes(&unknown_one));
        assert_eq!(code_and_reason::<()>(Err(foreign)), not_found());
    }
    two.check_log().await;
}

#[tokio::test]
async fn a_list_shows_what_its_filter_fits_and_refuses_what_it_cannot_read() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let (ada, grace) = (contact(&admin).await, contact(&admin).await);
    for contact in [&ada, &grace] {
        for state in [State::Snoozed, State::Closed] {
            let mut request = with(&contact.name);
            request.conversation.as_mut().unwrap().state = state.into();
            create(&admin, request).await.unwrap();
        }
    }
    let fitting = |filter: String| {
        let request = ListConversationsRequest { filter, ..Default::default() };
        let admin = &admin;
        async move {
            let listed = list_conversations(admin, request).await.unwrap().conversations;
            listed.into_iter().map(|c| (c.contact.clone(), c.state())).collect::<Vec<_>>()
        }
    };

    let closed = fitting("state = STATE_CLOSED".to_owned()).await;
    let of_ada = fitting(format!("contact = \"{}\"", ada.name)).await;
    let both = fitting(format!("state=STATE_SNOOZED AND contact=\"{}\"", ada.name)).await;
    let nobody = fitting(format!("contact = \"contacts/{}\"", tenant.id)).await;
    let contradiction = ListConversationsRequest {
        contact: grace.name.clone(),
        filter: format!("contact = \"{}\"", ada.name),
        ..ListConversationsRequest::default()
    };
    let contradiction = list_conversations(&admin, contradiction).await.unwrap().conversations;

    let pair = |contact: &Contact, state: State| (contact.name.clone(), state);
    assert_eq!(closed, [pair(&grace, State::Closed), pair(&ada, State::Closed)]);
    let expected = [State::Closed, State::Snoozed, State::Active].map(|state| pair(&ada, state));
    assert_eq!(of_ada, expected);
    assert_eq!(both, [pair(&ada, State::Snoozed)]);
    assert_eq!((nobody, contradiction), (vec![], vec![]));
    for filter in [
        "state = CLOSED",
        "state = STATE_UNSPECIFIED",
        "state = 4",
        "contact = ada",
        "display_name = \"x\"",
        "state != STATE_CLOSED",
        "state = STATE_CLOSED OR state = STATE_ACTIVE",
    ] {
        let request = ListConversationsRequest { filter: filter.to_owned(), ..Default::default() };
        let faults = field_faults(list_conversations(&admin, request).await);
        assert_eq!(faults, [("filter".to_owned(), "FILTER".to_owned())], "{filter}");
    }
}

#[tokio::test]
async fn a_page_token_is_bound_to_every_argument() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let (contact, _) = (contact(&admin).await, contact(&admin).await);
    create(&admin, with(&contact.name)).await.unwrap();
    let base = ListConversationsRequest { page_size: 1, ..Default::default() };
    let page_token = list_conversations(&admin, base.clone()).await.unwrap().next_page_token;

    let next = ListConversationsRequest { page_token, ..base };
    list_conversations(&admin, ListConversationsRequest { page_size: 2, ..next.clone() })
        .await
        .unwrap();
    for other in [
        ListConversationsRequest { contact: contact.name.clone(), ..next.clone() },
        ListConversationsRequest { filter: "state = STATE_ACTIVE".to_owned(), ..next.clone() },
        ListConversationsRequest { show_deleted: true, ..next.clone() },
        ListConversationsRequest { view: ConversationView::Full.into(), ..next.clone() },
        ListConversationsRequest { message_page_size: 3, ..next.clone() },
    ] {
        let faults = field_faults(list_conversations(&admin, other).await);
        assert_eq!(faults, [("page_token".to_owned(), "PAGE_TOKEN".to_owned())]);
    }
}

#[tokio::test]
async fn names_have_one_form() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let id = tenant.id;

    for name in ["", "conversations/x", "contacts/0192f0c1-2345-7abc-8def-0123456789ab"] {
        let faults = field_faults(get(&admin, name, ConversationView::Basic).await);
        assert_eq!(faults[0].0, "name", "{name}");
    }
    for name in [
        String::new(),
        format!("conversations/{id}"),
        format!("messages/{id}"),
        format!("conversations/{id}/messages/x"),
        format!("conversations/{id}/messages/{id}/messages/{id}"),
    ] {
        assert_eq!(field_faults(get_message(&admin, &name).await)[0].0, "name", "{name}");
    }
    let unknown = get_message(&admin, &format!("conversations/{id}/messages/{id}")).await;
    assert_eq!(code_and_reason(unknown), not_found());
}
