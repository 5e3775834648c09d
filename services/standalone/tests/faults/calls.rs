//! The writes that these tests make, and their answers.

use std::net::SocketAddr;

use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest, UpdateContactRequest};
use crm_proto::messaging::v1::message::SenderType;
use crm_proto::messaging::v1::message_service_client::MessageServiceClient;
use crm_proto::messaging::v1::{CreateMessageRequest, Message};
use crm_testing::{Channel, Client};
use tonic::Status;

/// A write.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Create(CreateContactRequest),
    Update(UpdateContactRequest),
    Send(CreateMessageRequest),
}

/// What a write was answered with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Written {
    Contact(Contact),
    Message(Message),
}

/// A client with a connection to contacts, and one to messaging.
pub(crate) struct Caller {
    client: Client,
    contacts: ContactServiceClient<Channel>,
    messages: MessageServiceClient<Channel>,
}

impl Call {
    /// Creates a contact of this name.
    pub(crate) fn create(display_name: String, request_id: String) -> Self {
        let contact = Contact {
            email: format!("{display_name}@example.com"),
            display_name,
            company: "Engines".to_owned(),
            ..Contact::default()
        };
        Self::Create(CreateContactRequest {
            contact: Some(contact),
            request_id,
            ..CreateContactRequest::default()
        })
    }

    /// Gives a contact another company.
    pub(crate) fn update(name: String, company: String) -> Self {
        let contact = Contact { name, company, ..Contact::default() };
        Self::Update(UpdateContactRequest {
            contact: Some(contact),
            ..UpdateContactRequest::default()
        })
    }

    /// Says something in a conversation.
    pub(crate) fn send(parent: String, content: String, request_id: String) -> Self {
        let message =
            Message { sender_type: SenderType::User.into(), content, ..Message::default() };
        Self::Send(CreateMessageRequest {
            parent,
            message: Some(message),
            request_id,
            ..CreateMessageRequest::default()
        })
    }
}

impl Written {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Contact(contact) => &contact.name,
            Self::Message(message) => &message.name,
        }
    }

    pub(crate) fn revision(&self) -> i64 {
        match self {
            Self::Contact(contact) => contact.revision,
            Self::Message(message) => message.revision,
        }
    }

    /// What its caller made unique.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Contact(contact) => &contact.display_name,
            Self::Message(message) => &message.content,
        }
    }
}

impl Caller {
    pub(crate) fn new(client: Client, contacts: SocketAddr, messaging: SocketAddr) -> Self {
        let contacts = ContactServiceClient::new(client.channel(contacts));
        let messages = MessageServiceClient::new(client.channel(messaging));
        Self { client, contacts, messages }
    }

    pub(crate) async fn write(&mut self, call: Call) -> Result<Written, Status> {
        Ok(match call {
            Call::Create(message) => {
                let answer = self.contacts.create_contact(self.client.request(message)).await?;
                Written::Contact(answer.into_inner())
            }
            Call::Update(message) => {
                let answer = self.contacts.update_contact(self.client.request(message)).await?;
                Written::Contact(answer.into_inner())
            }
            Call::Send(message) => {
                let answer = self.messages.create_message(self.client.request(message)).await?;
                Written::Message(answer.into_inner())
            }
        })
    }

    /// Creates a contact, and answers its conversation.
    pub(crate) async fn conversation(&mut self, display_name: String) -> (Contact, String) {
        let created = self.write(Call::create(display_name, String::new())).await.unwrap();
        let Written::Contact(contact) = created else { unreachable!("a contact was created") };
        let conversation = contact.initial_conversation.clone();
        (contact, conversation)
    }
}
