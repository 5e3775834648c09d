//! The change feed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crm_proto::changes::v1::{Change, ListChangesRequest};
use crm_proto::contacts::v1::{
    Contact, ListContactsRequest, UndeleteContactRequest, UpdateContactRequest,
};
use crm_proto::messaging::v1::conversation::State;
use crm_proto::messaging::v1::{Conversation, ConversationView, Message};
use crm_testing::{Client, Tenant, code_and_reason, field_faults, server};
use futures_util::future::join_all;
use futures_util::stream;
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tonic::Code;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::calls::{
    contact, contacts, create, delete_contact, get, get_message, list_changes, say, to_state,
    update, with,
};

const WRITERS: usize = 8;

fn after(after_revision: i64, page_size: i32) -> ListChangesRequest {
    ListChangesRequest { after_revision, page_size, ..ListChangesRequest::default() }
}

/// Everything in the feed after a revision, page by page, to its present end.
async fn read(client: &Client, mut revision: i64, page_size: i32) -> Vec<Change> {
    let mut read = Vec::new();
    loop {
        let page = list_changes(client, after(revision, page_size)).await.unwrap();
        read.extend(page.changes);
        revision = page.next_after_revision;
        if revision == page.revision {
            return read;
        }
    }
}

fn resource<T: prost::Message + Default>(change: &Change) -> T {
    let any = change.after.as_ref().unwrap();
    assert_eq!(any.type_url, format!("type.googleapis.com/{}", change.resource_type));
    T::decode(any.value.as_slice()).unwrap()
}

/// What one of many callers does: every kind of write.
async fn write(client: &Client) {
    for round in 0..6 {
        let made = contact(client).await;
        let conversation = create(client, with(&made.name)).await.unwrap();
        say(client, &conversation.name, "hello").await.unwrap();
        update(client, to_state(&conversation.name, State::Snoozed)).await.unwrap();
        let renamed = Contact { company: "Engines".to_owned(), ..made.clone() };
        let renamed = Contact { etag: String::new(), ..renamed };
        let request = UpdateContactRequest { contact: Some(renamed), ..Default::default() };
        contacts(client).update_contact(client.request(request)).await.unwrap();
        if round % 3 > 0 {
            delete_contact(client, &made.name).await;
        }
        if round % 3 > 1 {
            let request = UndeleteContactRequest { name: made.name, ..Default::default() };
            contacts(client).undelete_contact(client.request(request)).await.unwrap();
        }
    }
}

/// The log as the database has it.
async fn log(tenant: &Tenant) -> Vec<(i64, i32, String)> {
    let rows = sqlx::query_as(
        "SELECT revision, ordinal::int, name FROM platform.changes ORDER BY revision, ordinal",
    );
    rows.fetch_all(&mut tenant.database().await).await.unwrap()
}

#[tokio::test]
async fn a_change_shows_the_resource_as_its_get_method_did() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let contact = contact(&admin).await;
    let first = get(&admin, &contact.initial_conversation, ConversationView::Basic).await.unwrap();
    let message = say(&admin, &first.name, "hello").await.unwrap();
    let moved = get(&admin, &first.name, ConversationView::Basic).await.unwrap();
    delete_contact(&admin, &contact.name).await;
    let deleted = get(&admin, &first.name, ConversationView::Basic).await.unwrap();

    let page = list_changes(&admin, ListChangesRequest::default()).await.unwrap();

    assert_eq!((page.next_after_revision, page.revision), (3, 3));
    let shown: Vec<_> = page
        .changes
        .iter()
        .map(|c| (c.revision, c.ordinal, c.resource.as_str(), c.cause.as_str()))
        .collect();
    let (contact_name, conversation) = (contact.name.as_str(), first.name.as_str());
    assert_eq!(
        shown,
        [
            (1, 0, contact_name, ""),
            (1, 1, conversation, contact_name),
            (2, 0, message.name.as_str(), ""),
            (2, 1, conversation, ""),
            (3, 0, contact_name, ""),
            (3, 1, conversation, contact_name),
        ]
    );
    let [created, begun, said, touched, gone, hidden] = page.changes.as_slice() else {
        panic!("six changes");
    };
    assert_eq!(resource::<Contact>(created), contact);
    assert_eq!(resource::<Conversation>(begun), first);
    assert_eq!(resource::<Message>(said), message);
    assert_eq!(resource::<Conversation>(touched), moved);
    assert!(resource::<Contact>(gone).delete_time.is_some());
    assert_eq!(resource::<Conversation>(hidden), deleted);
    let actor = &message.sender_id;
    assert!(page.changes.iter().all(|c| c.actor == *actor && c.change_time.is_some()));
    tenant.check_log().await;
}

#[tokio::test]
async fn the_feed_is_whole_and_in_order_while_many_write() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let done = AtomicBool::new(false);

    let writers = async {
        join_all((0..WRITERS).map(|_| write(&admin))).await;
        done.store(true, Ordering::SeqCst);
    };
    let reader = async {
        let (mut changes, mut revision): (Vec<Change>, i64) = (Vec::new(), 0);
        loop {
            let was_done = done.load(Ordering::SeqCst);
            let page = list_changes(&admin, after(revision, 7)).await.unwrap();
            // A page has only whole revisions, each later than those before.
            if let Some(first) = page.changes.first() {
                assert_eq!((first.revision, first.ordinal), (revision + 1, 0));
            }
            let last = page.changes.last().map_or(revision, |last| last.revision);
            assert_eq!(page.next_after_revision, last);
            revision = page.next_after_revision;
            changes.extend(page.changes);
            if was_done && revision == page.revision {
                return changes;
            }
        }
    };
    let ((), changes) = tokio::join!(writers, reader);

    let read: Vec<_> =
        changes.iter().map(|c| (c.revision, c.ordinal, c.resource.clone())).collect();
    assert!(read.len() > WRITERS * 6 * 7);
    assert_eq!(read, log(&tenant).await);
    let (first, last) = (changes[0].revision, changes[changes.len() - 1].revision);
    let mut revisions: Vec<_> = changes.iter().map(|c| c.revision).collect();
    revisions.dedup();
    assert_eq!(revisions, (first..=last).collect::<Vec<_>>());
    tenant.check_log().await;
}

#[tokio::test]
async fn a_list_and_then_the_feed_have_no_gap_between_them() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    for _ in 0..20 {
        contact(&admin).await;
    }
    let page = |page_token: String| ListContactsRequest {
        page_size: 6,
        page_token,
        ..ListContactsRequest::default()
    };
    let list = async || {
        let mut listed = BTreeMap::new();
        let mut request = page(String::new());
        loop {
            let answer = contacts(&admin).list_contacts(admin.request(request)).await.unwrap();
            let answer = answer.into_inner();
            listed.extend(answer.contacts.into_iter().map(|c| (c.name.clone(), c)));
            if answer.next_page_token.is_empty() {
                return (listed, answer.revision);
            }
            request = page(answer.next_page_token);
        }
    };

    let writers = join_all((0..WRITERS).map(|_| write(&admin)));
    let (_, (mut mirror, revision)) = tokio::join!(writers, list());
    for change in read(&admin, revision, 0).await {
        if change.resource_type != "crm.contacts.v1.Contact" {
            continue;
        }
        let contact: Contact = resource(&change);
        match contact.delete_time {
            None => mirror.insert(change.resource, contact),
            Some(_) => mirror.remove(&change.resource),
        };
    }

    assert!(mirror.len() > 20 + WRITERS);
    assert_eq!(mirror, list().await.0);
    tenant.check_log().await;
}

#[tokio::test]
async fn a_revision_is_never_split_however_large_it_is() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let contact = contact(&admin).await;
    for _ in 0..4 {
        create(&admin, with(&contact.name)).await.unwrap();
    }
    delete_contact(&admin, &contact.name).await;
    let sizes = async |from: i64, page_size: i32| {
        let page = list_changes(&admin, after(from, page_size)).await.unwrap();
        (page.changes.len(), page.next_after_revision, page.revision)
    };

    // Two changes, four times one, and then six at once.
    assert_eq!(sizes(0, 1).await, (2, 1, 6));
    assert_eq!(sizes(1, 1).await, (1, 2, 6));
    assert_eq!(sizes(1, 3).await, (3, 4, 6));
    assert_eq!(sizes(4, 6).await, (1, 5, 6));
    assert_eq!(sizes(4, 7).await, (7, 6, 6));
    assert_eq!(sizes(5, 1).await, (6, 6, 6));
    assert_eq!(sizes(6, 1).await, (0, 6, 6));
}

#[tokio::test]
async fn pages_of_the_feed_stay_below_what_clients_accept() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let parent = contact(&admin).await.initial_conversation;
    for _ in 0..34 {
        say(&admin, &parent, &"🦀".repeat(32_768)).await.unwrap();
    }

    let (mut messages, mut revision) = (0, 0);
    loop {
        let page = list_changes(&admin, after(revision, 1000)).await.unwrap();
        assert!(page.encoded_len() < 2 << 20, "{}", page.encoded_len());
        let is_message = |c: &&Change| c.resource_type == "crm.messaging.v1.Message";
        messages += page.changes.iter().filter(is_message).count();
        revision = page.next_after_revision;
        if revision == page.revision {
            break;
        }
    }

    assert_eq!(messages, 34);
}

#[tokio::test]
async fn a_filter_shows_one_type_and_moves_on_over_the_others() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let made = contact(&admin).await;
    for _ in 0..5 {
        say(&admin, &made.initial_conversation, "hello").await.unwrap();
    }
    let message = say(&admin, &made.initial_conversation, "last").await.unwrap();
    contact(&admin).await;
    let fitting = async |from: i64, page_size: i32, resource_type: &str| {
        let filter = format!("resource_type = \"{resource_type}\"");
        let page =
            list_changes(&admin, ListChangesRequest { filter, ..after(from, page_size) }).await;
        let page = page.unwrap();
        assert!(page.changes.iter().all(|change| change.resource_type == resource_type));
        let revisions: Vec<_> = page.changes.iter().map(|change| change.revision).collect();
        (revisions, page.next_after_revision)
    };

    assert_eq!(fitting(0, 1, "crm.contacts.v1.Contact").await, (vec![1], 1));
    assert_eq!(fitting(1, 1, "crm.contacts.v1.Contact").await, (vec![8], 8));
    assert_eq!(fitting(0, 6, "crm.messaging.v1.Message").await, ((2..=7).collect(), 8));
    assert_eq!(fitting(8, 0, "crm.messaging.v1.Conversation").await, (vec![], 8));
    assert_eq!(get_message(&admin, &message.name).await.unwrap().revision, 7);
    // Every type that may enter the log can leave it.
    let types: i64 = sqlx::query_scalar("SELECT count(*) FROM platform.resource_types")
        .fetch_one(&mut tenant.database().await)
        .await
        .unwrap();
    let seen: BTreeMap<_, _> =
        read(&admin, 0, 0).await.into_iter().map(|c| (c.resource_type, c.revision)).collect();
    assert_eq!(seen.len() as i64, types);
}

#[tokio::test]
async fn a_filter_that_fits_nothing_reads_a_long_log_in_several_pages() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    contact(&admin).await;
    sqlx::query(
        "WITH head AS (UPDATE platform.head SET revision = 25001)
         INSERT INTO platform.changes (revision, ordinal, kind, name, actor, after)
         SELECT revision, 0, 1, 'contacts/' || revision, 'x', ''
         FROM generate_series(2, 25001) AS revision",
    )
    .execute(&mut tenant.database().await)
    .await
    .unwrap();

    let (mut ends, mut revision) = (Vec::new(), 0);
    while revision < 25_001 {
        let filter = "resource_type = \"crm.messaging.v1.Message\"".to_owned();
        let request = ListChangesRequest { filter, ..after(revision, 0) };
        let page = list_changes(&admin, request).await.unwrap();
        assert_eq!((page.changes.len(), page.revision), (0, 25_001));
        revision = page.next_after_revision;
        ends.push(revision);
    }

    assert_eq!(ends, [10_000, 20_000, 25_001]);
}

#[tokio::test]
async fn a_feed_refuses_what_it_cannot_answer() {
    let (one, two) = tokio::join!(Tenant::create(), Tenant::create());
    let (admin, stranger) = (one.admin(), two.admin());
    contact(&admin).await;
    let fault = |field: &str, reason: &str| (field.to_owned(), reason.to_owned());
    let filtered = |filter: &str| ListChangesRequest {
        filter: filter.to_owned(),
        ..ListChangesRequest::default()
    };

    for (request, expected) in [
        (after(2, 0), vec![fault("after_revision", "FUTURE_REVISION")]),
        (after(i64::MAX, 0), vec![fault("after_revision", "FUTURE_REVISION")]),
        (
            ListChangesRequest { filter: "actor = x".to_owned(), ..after(-1, -1) },
            vec![
                fault("after_revision", "NUMBER_GTE"),
                fault("page_size", "NUMBER_GTE"),
                fault("filter", "FILTER"),
            ],
        ),
        (filtered("resource_type = Contact"), vec![fault("filter", "FILTER")]),
        (filtered("resource_type"), vec![fault("filter", "FILTER")]),
    ] {
        assert_eq!(field_faults(list_changes(&admin, request).await), expected);
    }
    // Another tenant's log is another one.
    let theirs = list_changes(&stranger, ListChangesRequest::default()).await.unwrap();
    assert_eq!((theirs.changes.len(), theirs.revision), (0, 0));
}

#[tokio::test]
async fn who_may_not_read_everything_may_not_read_the_feed() {
    let tenant = Tenant::create().await;
    let subject = format!("serviceAccounts/{}", tenant.id);

    for role in ["roles/viewer", "roles/user", "roles/manager"] {
        let client = tenant.client(role, &subject);
        let outcome = list_changes(&client, ListChangesRequest::default()).await;
        let expected = (Code::PermissionDenied, "PERMISSION_MISSING".to_owned());
        assert_eq!(code_and_reason(outcome), expected, "{role}");
    }
    let owner = tenant.client("roles/owner", &subject);
    list_changes(&owner, ListChangesRequest::default()).await.unwrap();
}

/// What reflection says of a symbol: the names of the messages in its file.
async fn described(symbol: &str) -> Option<Vec<String>> {
    // Anyone may ask.
    let channel = Client::new("").channel(server().addresses.messaging);
    let mut reflection = ServerReflectionClient::new(channel);
    let question = MessageRequest::FileContainingSymbol(symbol.to_owned());
    let request = ServerReflectionRequest { message_request: Some(question), ..Default::default() };
    let answers = reflection.server_reflection_info(stream::iter([request])).await;
    let answer = answers.unwrap().into_inner().message().await.ok()??;
    let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response else {
        return None;
    };
    let file = FileDescriptorProto::decode(files.file_descriptor_proto[0].as_slice()).unwrap();
    Some(file.message_type.iter().map(|message| message.name().to_owned()).collect())
}

#[tokio::test]
async fn reflection_knows_the_resources_of_changes_and_no_service_of_others() {
    for name in ["contacts.v1.Contact", "messaging.v1.Conversation", "messaging.v1.Message"] {
        let (_, message) = name.rsplit_once('.').unwrap();
        let messages = described(&format!("crm.{name}")).await.unwrap();
        assert!(messages.iter().any(|known| known == message), "{name}: {messages:?}");
    }
    assert_eq!(described("crm.contacts.v1.ContactService").await, None);
    assert_eq!(described("crm.registry.v1.AcquireLeaseResponse").await, None);
}
