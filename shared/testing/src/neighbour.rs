//! A tenant beside those of the tests, with a canary wherever it has a text.

use std::collections::BTreeMap;

use crm_proto::contacts::v1 as contacts;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::messaging::v1 as messaging;
use crm_proto::messaging::v1::conversation_service_client::ConversationServiceClient;
use crm_proto::messaging::v1::message_service_client::MessageServiceClient;
use crm_proto::registry::v1 as registry;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::sync::OnceCell;

use crate::client::Client;
use crate::server::server;
use crate::tenant::Tenant;
use crate::watch::{canary, registry_canary};

/// What a tenant has whose texts are all canaries.
#[derive(Clone, Debug)]
pub struct Planted {
    /// A contact.
    pub contact: contacts::Contact,
    /// One that is deleted, with its conversation and a message in that.
    pub deleted_contact: contacts::Contact,
    /// A conversation with the contact, beside the initial one.
    pub conversation: messaging::Conversation,
    /// A message in that.
    pub message: messaging::Message,
    /// A message in the deleted conversation.
    pub deleted_message: messaging::Message,
}

/// Makes the neighbour of this test program, once.
pub(crate) async fn settle() {
    static NEIGHBOUR: OnceCell<()> = OnceCell::const_new();
    let settled = NEIGHBOUR.get_or_init(|| async {
        Tenant::create_alone().await.plant().await;
    });
    settled.await;
}

impl Tenant {
    /// Fills this tenant: every text in it becomes its canary.
    pub async fn plant(&self) -> Planted {
        let admin = self.admin();
        self.label().await;
        let contact = self.plant_contact(&admin).await;
        let deleted = self.plant_contact(&admin).await;
        let conversation = messaging::Conversation {
            contact: contact.name.clone(),
            display_name: canary(self.id),
            ..Default::default()
        };
        let request = messaging::CreateConversationRequest {
            conversation: Some(conversation),
            ..Default::default()
        };
        let channel = admin.channel(server().addresses.messaging);
        let mut conversations = ConversationServiceClient::new(channel);
        let conversation = conversations.create_conversation(admin.request(request)).await;
        let conversation = conversation.unwrap().into_inner();
        let message = self.plant_message(&admin, &conversation.name).await;
        let deleted_message = self.plant_message(&admin, &deleted.initial_conversation).await;
        let request = contacts::DeleteContactRequest { name: deleted.name, ..Default::default() };
        let mut client = ContactServiceClient::new(admin.channel(server().addresses.contacts));
        let deleted_contact = client.delete_contact(admin.request(request)).await;
        let deleted_contact = deleted_contact.unwrap().into_inner();
        Planted { contact, deleted_contact, conversation, message, deleted_message }
    }

    async fn label(&self) {
        let text = registry_canary(self.id);
        let operator = Client::operator(server());
        let tenant = registry::Tenant {
            name: self.tenant.name.clone(),
            display_name: text.clone(),
            labels: [("canary".to_owned(), text)].into(),
            ..Default::default()
        };
        let request = registry::UpdateTenantRequest { tenant: Some(tenant), ..Default::default() };
        let channel = operator.channel(server().addresses.registry);
        TenantServiceClient::new(channel).update_tenant(operator.request(request)).await.unwrap();
    }

    async fn plant_contact(&self, admin: &Client) -> contacts::Contact {
        let text = canary(self.id);
        let value = Value { kind: Some(Kind::StringValue(text.clone())) };
        let contact = contacts::Contact {
            display_name: text.clone(),
            email: format!("{text}@example.com"),
            phone: "+49 30 901820".to_owned(),
            company: text.clone(),
            position: text.clone(),
            source: text.clone(),
            metadata: Some(Struct { fields: BTreeMap::from([(text, value)]) }),
            ..Default::default()
        };
        let request =
            contacts::CreateContactRequest { contact: Some(contact), ..Default::default() };
        let mut client = ContactServiceClient::new(admin.channel(server().addresses.contacts));
        client.create_contact(admin.request(request)).await.unwrap().into_inner()
    }

    async fn plant_message(&self, admin: &Client, conversation: &str) -> messaging::Message {
        let message = messaging::Message {
            sender_type: messaging::message::SenderType::User.into(),
            content: canary(self.id),
            ..Default::default()
        };
        let request = messaging::CreateMessageRequest {
            parent: conversation.to_owned(),
            message: Some(message),
            ..Default::default()
        };
        let mut client = MessageServiceClient::new(admin.channel(server().addresses.messaging));
        client.create_message(admin.request(request)).await.unwrap().into_inner()
    }
}
