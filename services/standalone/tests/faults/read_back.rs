//! What is there in the end, asked as anyone would ask.

use std::collections::{HashMap, HashSet};

use crm_proto::changes::v1::change_service_client::ChangeServiceClient;
use crm_proto::changes::v1::{Change, ListChangesRequest};
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, ListContactsRequest};
use crm_proto::messaging::v1::message_service_client::MessageServiceClient;
use crm_proto::messaging::v1::{ListMessagesRequest, Message};
use crm_testing::{Server, Tenant};
use prost::Message as _;

use crate::calls::Written;

/// The most that a page may have.
const PAGE: i32 = 1000;

/// The contacts and messages of a tenant.
pub(crate) struct ReadBack {
    /// What was written, by name and revision.
    log: HashMap<(String, i64), Written>,
    /// What is there, by name.
    rows: HashMap<String, Written>,
}

impl ReadBack {
    /// Reads the whole log, all contacts, and the messages of these
    /// conversations.
    pub(crate) async fn of(server: &Server, tenant: &Tenant, conversations: &[String]) -> Self {
        let changes = changes(server, tenant).await;
        let log = changes.iter().filter_map(written);
        let log = log.map(|written| ((written.name().to_owned(), written.revision()), written));
        let mut rows: Vec<_> =
            contacts(server, tenant).await.into_iter().map(Written::Contact).collect();
        for conversation in conversations {
            let messages = messages(server, tenant, conversation).await;
            rows.extend(messages.into_iter().map(Written::Message));
        }
        let rows = rows.into_iter().map(|row| (row.name().to_owned(), row));
        Self { log: log.collect(), rows: rows.collect() }
    }

    /// How many writes there were.
    pub(crate) fn writes(&self) -> usize {
        self.log.len()
    }

    /// The texts of what is there.
    pub(crate) fn texts(&self) -> Vec<&str> {
        self.rows.values().map(Written::text).collect()
    }

    /// The texts that are there more than once.
    pub(crate) fn doubled(&self) -> Vec<&str> {
        let mut seen = HashSet::new();
        self.texts().into_iter().filter(|text| !seen.insert(*text)).collect()
    }

    /// Those of these answers that the log does not have just as they were
    /// given, or whose resource is not there as its latest change left it.
    pub(crate) fn lost<'a>(&self, acknowledged: &'a [Written]) -> Vec<&'a Written> {
        let kept = |written: &Written| {
            let recorded = self.log.get(&(written.name().to_owned(), written.revision()));
            let row = self.rows.get(written.name());
            recorded == Some(written)
                && row.is_some_and(|row| {
                    row.revision() >= written.revision()
                        && self.log.get(&(row.name().to_owned(), row.revision())) == Some(row)
                })
        };
        acknowledged.iter().filter(|written| !kept(written)).collect()
    }
}

/// The contact or the message that a change is of; `None` for a conversation.
fn written(change: &Change) -> Option<Written> {
    let after = change.after.as_ref().unwrap();
    let bytes = after.value.as_slice();
    match change.resource_type.as_str() {
        "crm.contacts.v1.Contact" => Some(Written::Contact(Contact::decode(bytes).unwrap())),
        "crm.messaging.v1.Message" => Some(Written::Message(Message::decode(bytes).unwrap())),
        other => {
            assert_eq!(other, "crm.messaging.v1.Conversation");
            None
        }
    }
}

async fn changes(server: &Server, tenant: &Tenant) -> Vec<Change> {
    let admin = tenant.admin();
    let mut client = ChangeServiceClient::new(admin.channel(server.addresses.messaging));
    let mut changes = Vec::new();
    let mut after_revision = 0;
    loop {
        let request = ListChangesRequest { after_revision, page_size: PAGE, ..Default::default() };
        let page = client.list_changes(admin.request(request)).await.unwrap().into_inner();
        changes.extend(page.changes);
        after_revision = page.next_after_revision;
        if after_revision >= page.revision {
            return changes;
        }
    }
}

async fn contacts(server: &Server, tenant: &Tenant) -> Vec<Contact> {
    let admin = tenant.admin();
    let mut client = ContactServiceClient::new(admin.channel(server.addresses.contacts));
    let mut contacts = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListContactsRequest {
            page_size: PAGE,
            page_token,
            show_deleted: true,
            ..ListContactsRequest::default()
        };
        let page = client.list_contacts(admin.request(request)).await.unwrap().into_inner();
        contacts.extend(page.contacts);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return contacts;
        }
    }
}

async fn messages(server: &Server, tenant: &Tenant, parent: &str) -> Vec<Message> {
    let admin = tenant.admin();
    let mut client = MessageServiceClient::new(admin.channel(server.addresses.messaging));
    let mut messages = Vec::new();
    let mut page_token = String::new();
    loop {
        let request =
            ListMessagesRequest { parent: parent.to_owned(), page_size: PAGE, page_token };
        let page = client.list_messages(admin.request(request)).await.unwrap().into_inner();
        messages.extend(page.messages);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return messages;
        }
    }
}
