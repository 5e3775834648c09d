//! Messages: sending and listing them, and the lists of conversations.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crm_proto::messaging::v1::message::SenderType;
use crm_proto::messaging::v1::{
    ConversationView, CreateMessageRequest, ListConversationsRequest, ListConversationsResponse,
};
use crm_testing::{Tenant, code_and_reason, field_faults, server};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use prost::Message as _;
use tonic::Code;

use crate::calls::{contact, failed, list_conversations, list_messages, message, not_found, send};

/// The length of the checksum that a page token begins with.
const CHECKSUM: usize = 16;

#[tokio::test]
async fn messages_come_back_in_order_and_move_their_conversation() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let contact = contact(&admin).await;
    let parent = &contact.initial_conversation;

    let first = send(&admin, message(parent, SenderType::User, " Hello\r\n\u{1} ")).await.unwrap();
    let second = send(&admin, message(parent, SenderType::Contact, "Hi")).await.unwrap();
    let third = send(&admin, message(parent, SenderType::System, "Joined")).await.unwrap();

    assert_eq!(first.content, " Hello\r\n\u{1} ");
    assert!(first.name.starts_with(&format!("{parent}/messages/")));
    assert_eq!(second.sender_id, contact.name);
    assert_eq!(third.sender_id, first.sender_id);
    let read = list_messages(&admin, parent, 0, "").await.unwrap();
    assert_eq!(read.messages, [first, second, third.clone()]);
    assert_eq!((read.revision, read.next_page_token.as_str()), (4, ""));
    let request = ListConversationsRequest {
        contact: contact.name,
        view: ConversationView::Full.into(),
        message_page_size: 2,
        ..ListConversationsRequest::default()
    };
    let listed = list_conversations(&admin, request).await.unwrap().conversations.remove(0);
    assert_eq!(listed.last_message_time, third.create_time);
    assert_eq!(listed.etag, third.etag);
    assert_eq!(listed.messages, read.messages[1..]);
    tenant.check_log().await;
}

#[tokio::test]
async fn a_conversations_times_never_go_back() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let contact = contact(&admin).await;
    // As a replica whose clock is ahead leaves it.
    let mut database = tenant.database().await;
    sqlx::query(
        "UPDATE messaging.conversations
         SET update_time = update_time + interval '1 hour',
             last_message_time = create_time + interval '1 hour'",
    )
    .execute(&mut database)
    .await
    .unwrap();
    let request = ListConversationsRequest { contact: contact.name.clone(), ..Default::default() };
    let before = list_conversations(&admin, request.clone()).await.unwrap();

    send(&admin, message(&contact.initial_conversation, SenderType::User, "late")).await.unwrap();

    let after = list_conversations(&admin, request).await.unwrap();
    let times = |listed: &ListConversationsResponse| {
        let conversation = &listed.conversations[0];
        (conversation.update_time, conversation.last_message_time)
    };
    assert_eq!(times(&after), times(&before));
    assert!(after.revision > before.revision);
    tenant.check_log().await;
}

#[tokio::test]
async fn many_senders_to_one_conversation_all_succeed_in_one_order() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let parent = contact(&admin).await.initial_conversation;

    let calls = (0..60).map(|i| {
        let request = message(&parent, SenderType::User, &i.to_string());
        send(&admin, request)
    });
    // More than sessions, which none waits for in vain.
    let calls = stream::iter(calls).buffer_unordered(20);
    let sent: Vec<_> = calls.map(Result::unwrap).collect().await;

    let mut walked = Vec::new();
    let mut token = String::new();
    loop {
        let page = list_messages(&admin, &parent, 7, &token).await.unwrap();
        assert!(page.messages.len() <= 7);
        walked.extend(page.messages);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert!(walked.windows(2).all(|pair| pair[0].revision < pair[1].revision));
    let mut expected = sent;
    expected.sort_by_key(|message| message.revision);
    assert_eq!(walked, expected);
    tenant.check_log().await;
}

#[tokio::test]
async fn a_walk_shows_the_revision_of_its_first_page_and_misses_nothing() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    for _ in 0..5 {
        contact(&admin).await;
    }
    let page = |token: &str| ListConversationsRequest {
        page_size: 2,
        page_token: token.to_owned(),
        ..ListConversationsRequest::default()
    };

    let first = list_conversations(&admin, page("")).await.unwrap();
    contact(&admin).await;
    let second = list_conversations(&admin, page(&first.next_page_token)).await.unwrap();
    let third = list_conversations(&admin, page(&second.next_page_token)).await.unwrap();

    assert_eq!((first.revision, second.revision, third.revision), (5, 5, 5));
    assert_eq!(third.next_page_token, "");
    let walked: Vec<_> =
        [first, second, third].into_iter().flat_map(|page| page.conversations).collect();
    let revisions: Vec<_> = walked.iter().map(|conversation| conversation.revision).collect();
    assert_eq!(revisions, [5, 4, 3, 2, 1]);
}

/// A token with another place in a list: no secret is in it.
fn forged(tenant: &Tenant, method: &str, arguments: &[&str], place: &str) -> String {
    let mut list = Vec::new();
    for part in [&[tenant.id.to_string().as_str(), method], arguments].concat() {
        list.extend(part.len().to_be_bytes());
        list.extend(part.as_bytes());
    }
    let sealed = [digest(&SHA256, &list).as_ref(), place.as_bytes()].concat();
    let sealed = digest(&SHA256, &sealed);
    URL_SAFE_NO_PAD.encode([&sealed.as_ref()[..CHECKSUM], place.as_bytes()].concat())
}

#[tokio::test]
async fn a_page_token_is_good_for_its_own_list_only() {
    let (one, two) = tokio::join!(Tenant::create(), Tenant::create());
    let (admin, stranger) = (one.admin(), two.admin());
    let parent = contact(&admin).await.initial_conversation;
    let other = contact(&admin).await.initial_conversation;
    for _ in 0..2 {
        send(&admin, message(&parent, SenderType::User, "x")).await.unwrap();
    }
    let token = list_messages(&admin, &parent, 1, "").await.unwrap().next_page_token;
    assert!(!token.is_empty());

    let foreign = list_messages(&stranger, &parent, 1, &token).await;
    let elsewhere = list_messages(&admin, &other, 1, &token).await;
    let request = ListConversationsRequest {
        page_token: token.clone(),
        ..ListConversationsRequest::default()
    };
    let otherwise = list_conversations(&admin, request).await;

    assert_eq!(field_faults(foreign), [("page_token".to_owned(), "PAGE_TOKEN".to_owned())]);
    assert_eq!(field_faults(elsewhere)[0].0, "page_token");
    assert_eq!(field_faults(otherwise)[0].0, "page_token");
    // A token that was taken apart and put together again, for another time: as
    // it was, or by someone who knows how.
    let conversations = ListConversationsRequest { page_size: 1, ..Default::default() };
    let token = list_conversations(&admin, conversations.clone()).await.unwrap().next_page_token;
    let token = URL_SAFE_NO_PAD.decode(token).unwrap();
    let (checksum, place) = token.split_at(CHECKSUM);
    for time in ["-4800-01-01T00:00:00Z", "+262142-12-31T00:00:00Z"] {
        let mut place: serde_json::Value = serde_json::from_slice(place).unwrap();
        place[1]["create_time"] = time.into();
        let place = place.to_string();
        let with = |page_token| ListConversationsRequest { page_token, ..conversations.clone() };
        let changed = URL_SAFE_NO_PAD.encode([checksum, place.as_bytes()].concat());
        let changed = list_conversations(&admin, with(changed)).await;
        assert_eq!(field_faults(changed)[0].0, "page_token", "{time}");
        let forged = forged(&one, "ListConversations", &["", "0", "0", "", "false"], &place);
        list_conversations(&admin, with(forged)).await.unwrap();
    }
    let token = list_messages(&admin, &parent, 1, "").await.unwrap().next_page_token;
    for junk in ["x", "AAAA", "e30", &token[1..], &"a".repeat(1024)] {
        assert_eq!(
            field_faults(list_messages(&admin, &parent, 1, junk).await)[0].0,
            "page_token",
            "{junk}"
        );
    }
    assert_eq!(field_faults(list_messages(&admin, &parent, -1, "").await)[0].1, "NUMBER_GTE");
}

#[tokio::test]
async fn pages_stay_below_what_clients_accept() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let contact = contact(&admin).await;
    let parent = contact.initial_conversation;
    let large = "🦀".repeat(32_768);
    for _ in 0..34 {
        send(&admin, message(&parent, SenderType::User, &large)).await.unwrap();
    }

    let mut read = 0;
    let mut token = String::new();
    loop {
        let page = list_messages(&admin, &parent, 1000, &token).await.unwrap();
        assert!(page.encoded_len() < 4 << 20, "{}", page.encoded_len());
        read += page.messages.len();
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let request = ListConversationsRequest {
        contact: contact.name,
        view: ConversationView::Full.into(),
        message_page_size: 100,
        ..ListConversationsRequest::default()
    };
    let full = list_conversations(&admin, request).await.unwrap();

    assert_eq!(read, 34);
    assert!(full.encoded_len() < 4 << 20, "{}", full.encoded_len());
    let too_long = format!("{large}x");
    let outcome = send(&admin, message(&parent, SenderType::User, &too_long)).await;
    assert_eq!(field_faults(outcome)[0].1, "STRING_MAX_LEN");
}

#[tokio::test]
async fn nobody_speaks_in_anothers_name() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let subject = format!("serviceAccounts/{}", tenant.id);
    let user = tenant.client("roles/user", &subject);
    let parent = contact(&admin).await.initial_conversation;
    let mut forged = message(&parent, SenderType::User, "hello");
    forged.message.as_mut().unwrap().sender_id = "users/somebody-else".to_owned();

    let sent = send(&user, forged).await.unwrap();
    let system = send(&user, message(&parent, SenderType::System, "hello")).await;
    let nobody = send(&user, message(&parent, SenderType::Unspecified, "\u{2003}")).await;

    assert_eq!(sent.sender_id, subject);
    let expected = (Code::PermissionDenied, "PERMISSION_MISSING".to_owned());
    assert_eq!(code_and_reason(system), expected);
    let fields: Vec<_> = field_faults(nobody).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["message.sender_type", "message.content"]);
    tenant.check_log().await;
}

#[tokio::test]
async fn a_repeated_message_is_sent_once() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let parent = contact(&admin).await.initial_conversation;
    let request = CreateMessageRequest {
        request_id: server().clock.new_id().to_string(),
        ..message(&parent, SenderType::User, "once")
    };

    let answers = join_all((0..10).map(|_| send(&admin, request.clone()))).await;

    let bytes: Vec<_> = answers.into_iter().map(|m| m.unwrap().encode_to_vec()).collect();
    assert!(bytes.iter().all(|answer| *answer == bytes[0]));
    assert_eq!(list_messages(&admin, &parent, 0, "").await.unwrap().messages.len(), 1);
    let changed = CreateMessageRequest {
        request_id: request.request_id,
        ..message(&parent, SenderType::User, "twice")
    };
    let expected = (Code::InvalidArgument, "REQUEST_ID_REUSED".to_owned());
    assert_eq!(code_and_reason(send(&admin, changed).await), expected);
    tenant.check_log().await;
}

#[tokio::test]
async fn what_is_not_there_and_what_is_not_ones_own_answer_alike() {
    let (one, two) = tokio::join!(Tenant::create(), Tenant::create());
    let (admin, stranger) = (one.admin(), two.admin());
    let theirs = contact(&admin).await;
    let parent = &theirs.initial_conversation;
    let sent = send(&stranger, message(parent, SenderType::User, "x")).await;
    let listed = list_messages(&stranger, parent, 0, "").await;
    let request = ListConversationsRequest { contact: theirs.name, ..Default::default() };
    let conversations = list_conversations(&stranger, request).await;

    assert_eq!(code_and_reason(sent), not_found());
    assert_eq!(code_and_reason(listed), not_found());
    assert_eq!(code_and_reason(conversations), not_found());
    let all = list_conversations(&stranger, ListConversationsRequest::default()).await.unwrap();
    assert_eq!((all.conversations.len(), all.revision), (0, 0));
    two.check_log().await;
}

#[tokio::test]
async fn a_closed_or_deleted_conversation_takes_no_message() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let parent = contact(&admin).await.initial_conversation;
    let mut database = tenant.database().await;
    let update = |sql: &'static str| sqlx::query(sql);

    update("UPDATE messaging.conversations SET state = 4").execute(&mut database).await.unwrap();
    let closed = send(&admin, message(&parent, SenderType::User, "x")).await;
    update("UPDATE messaging.conversations SET delete_time = now()")
        .execute(&mut database)
        .await
        .unwrap();
    let deleted = send(&admin, message(&parent, SenderType::User, "x")).await;
    let listed = list_messages(&admin, &parent, 0, "").await;

    assert_eq!(code_and_reason(closed), failed("CONVERSATION_CLOSED"));
    assert_eq!(code_and_reason(deleted), failed("RESOURCE_DELETED"));
    assert_eq!(code_and_reason(listed), failed("RESOURCE_DELETED"));
    // The refused ones left no number behind.
    tenant.check_log().await;
}
