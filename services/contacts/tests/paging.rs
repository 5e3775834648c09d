//! Paging through many contacts while they come and go.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{
    Contact, CreateContactRequest, DeleteContactRequest, ListContactsRequest,
};
use crm_testing::{Channel, Client, Tenant, server};

/// How many contacts there are at first; every fourth may be deleted.
const CONTACTS: usize = 10_000;
const PAGE_SIZE: i32 = 139;

fn contacts(client: &Client) -> ContactServiceClient<Channel> {
    ContactServiceClient::new(client.channel(server().addresses.contacts))
}

/// Makes contacts as a write of one revision, seven in the same microsecond.
async fn insert(tenant: &Tenant) -> Vec<String> {
    let names = sqlx::query_scalar(
        "WITH head AS (UPDATE platform.head SET revision = revision + 1 RETURNING revision),
         made AS (
             INSERT INTO contacts.contacts
                 (contact_id, display_name, email, create_time, update_time, revision)
             SELECT gen_random_uuid(), 'Ada ' || i, 'ada@example.com', at, at, head.revision
             FROM head, generate_series(1, $1) AS i,
                 LATERAL (SELECT now() - i / 7 * interval '1 microsecond' AS at) AS t
             RETURNING contact_id, revision
         ), known AS (
             INSERT INTO messaging.contacts (contact_id, revision) SELECT * FROM made
         )
         INSERT INTO platform.changes (revision, ordinal, kind, name, actor, after)
         SELECT revision, row_number() OVER () - 1, 1, 'contacts/' || contact_id, 'x', ''
         FROM made
         RETURNING name",
    );
    names.bind(CONTACTS as i64).fetch_all(&mut tenant.database().await).await.unwrap()
}

async fn create(client: &Client) {
    let contact = Contact {
        display_name: "Grace".to_owned(),
        phone: "12345".to_owned(),
        ..Contact::default()
    };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    contacts(client).create_contact(client.request(request)).await.unwrap();
}

async fn delete(client: &Client, name: &str) {
    let request = DeleteContactRequest { name: name.to_owned(), ..Default::default() };
    contacts(client).delete_contact(client.request(request)).await.unwrap();
}

/// All pages, and how often each contact stands in them.
async fn walk(client: &Client) -> HashMap<String, usize> {
    let mut seen = HashMap::new();
    let mut page_token = String::new();
    let mut revision = None;
    loop {
        let request = ListContactsRequest {
            page_size: PAGE_SIZE,
            page_token,
            ..ListContactsRequest::default()
        };
        let page = contacts(client).list_contacts(client.request(request)).await.unwrap();
        let page = page.into_inner();
        assert!(page.contacts.len() <= PAGE_SIZE as usize);
        assert_eq!(*revision.get_or_insert(page.revision), page.revision);
        for contact in page.contacts {
            *seen.entry(contact.name).or_insert(0) += 1;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return seen;
        }
    }
}

#[tokio::test]
async fn who_stands_throughout_is_listed_exactly_once() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let names = insert(&tenant).await;
    let (doomed, standing): (Vec<_>, Vec<_>) =
        names.into_iter().enumerate().partition(|(i, _)| i % 4 == 0);
    let walked = AtomicBool::new(false);

    let deleting = async {
        let mut deleted = 0;
        for (_, name) in &doomed {
            if walked.load(Ordering::SeqCst) {
                break;
            }
            delete(&admin, name).await;
            deleted += 1;
        }
        deleted
    };
    let inserting = async {
        let mut inserted = 0;
        while !walked.load(Ordering::SeqCst) {
            create(&admin).await;
            inserted += 1;
        }
        inserted
    };
    let walking = async {
        let seen = walk(&admin).await;
        walked.store(true, Ordering::SeqCst);
        seen
    };
    let (deleted, inserted, seen) = tokio::join!(deleting, inserting, walking);

    assert!(deleted > 0 && inserted > 0, "{deleted} deleted, {inserted} inserted");
    for (_, name) in &standing {
        assert_eq!(seen.get(name), Some(&1), "{name}");
    }
    assert!(seen.values().all(|times| *times == 1));
    let listed = walk(&admin).await;
    assert_eq!(listed.len(), CONTACTS - deleted + inserted);
    tenant.check_log().await;
}
