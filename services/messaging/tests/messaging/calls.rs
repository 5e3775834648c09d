//! The calls that the tests make.

use crm_proto::changes::v1::change_service_client::ChangeServiceClient;
use crm_proto::changes::v1::{ListChangesRequest, ListChangesResponse};
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::contacts::v1::{Contact, CreateContactRequest, DeleteContactRequest};
use crm_proto::messaging::v1::conversation::State;
use crm_proto::messaging::v1::conversation_service_client::ConversationServiceClient;
use crm_proto::messaging::v1::message::SenderType;
use crm_proto::messaging::v1::message_service_client::MessageServiceClient;
use crm_proto::messaging::v1::{
    Conversation, ConversationView, CreateConversationRequest, CreateMessageRequest,
    GetConversationRequest, GetMessageRequest, ListConversationsRequest, ListConversationsResponse,
    ListMessagesRequest, ListMessagesResponse, Message, UpdateConversationRequest,
};
use crm_testing::{Channel, Client, server};
use tonic::{Code, Status};

pub(crate) fn contacts(client: &Client) -> ContactServiceClient<Channel> {
    ContactServiceClient::new(client.channel(server().addresses.contacts))
}

fn conversations(client: &Client) -> ConversationServiceClient<Channel> {
    ConversationServiceClient::new(client.channel(server().addresses.messaging))
}

fn messages(client: &Client) -> MessageServiceClient<Channel> {
    MessageServiceClient::new(client.channel(server().addresses.messaging))
}

/// A contact, with its conversation.
pub(crate) async fn contact(client: &Client) -> Contact {
    let contact = Contact {
        display_name: "Grace Hopper".to_owned(),
        phone: "+1 555 0100".to_owned(),
        ..Contact::default()
    };
    let request = CreateContactRequest { contact: Some(contact), ..Default::default() };
    contacts(client).create_contact(client.request(request)).await.unwrap().into_inner()
}

pub(crate) async fn delete_contact(client: &Client, name: &str) {
    let request = DeleteContactRequest { name: name.to_owned(), ..Default::default() };
    contacts(client).delete_contact(client.request(request)).await.unwrap();
}

/// A conversation with a contact, to be created.
pub(crate) fn with(contact: &str) -> CreateConversationRequest {
    let conversation = Conversation { contact: contact.to_owned(), ..Conversation::default() };
    CreateConversationRequest { conversation: Some(conversation), ..Default::default() }
}

pub(crate) async fn create(
    client: &Client,
    request: CreateConversationRequest,
) -> Result<Conversation, Status> {
    Ok(conversations(client).create_conversation(client.request(request)).await?.into_inner())
}

/// A conversation, with two messages at most.
pub(crate) async fn get(
    client: &Client,
    name: &str,
    view: ConversationView,
) -> Result<Conversation, Status> {
    let request =
        GetConversationRequest { name: name.to_owned(), view: view.into(), message_page_size: 2 };
    Ok(conversations(client).get_conversation(client.request(request)).await?.into_inner())
}

pub(crate) async fn list_conversations(
    client: &Client,
    request: ListConversationsRequest,
) -> Result<ListConversationsResponse, Status> {
    Ok(conversations(client).list_conversations(client.request(request)).await?.into_inner())
}

pub(crate) fn to_state(name: &str, state: State) -> UpdateConversationRequest {
    let conversation =
        Conversation { name: name.to_owned(), state: state.into(), ..Conversation::default() };
    UpdateConversationRequest { conversation: Some(conversation), ..Default::default() }
}

pub(crate) async fn update(
    client: &Client,
    request: UpdateConversationRequest,
) -> Result<Conversation, Status> {
    Ok(conversations(client).update_conversation(client.request(request)).await?.into_inner())
}

pub(crate) fn message(parent: &str, sender: SenderType, content: &str) -> CreateMessageRequest {
    CreateMessageRequest {
        parent: parent.to_owned(),
        message: Some(Message {
            sender_type: sender.into(),
            content: content.to_owned(),
            ..Message::default()
        }),
        ..CreateMessageRequest::default()
    }
}

pub(crate) async fn send(
    client: &Client,
    request: CreateMessageRequest,
) -> Result<Message, Status> {
    Ok(messages(client).create_message(client.request(request)).await?.into_inner())
}

/// Sends a message of the tenant's side.
pub(crate) async fn say(client: &Client, parent: &str, content: &str) -> Result<Message, Status> {
    send(client, message(parent, SenderType::User, content)).await
}

pub(crate) async fn get_message(client: &Client, name: &str) -> Result<Message, Status> {
    let request = GetMessageRequest { name: name.to_owned() };
    Ok(messages(client).get_message(client.request(request)).await?.into_inner())
}

pub(crate) async fn list_messages(
    client: &Client,
    parent: &str,
    page_size: i32,
    page_token: &str,
) -> Result<ListMessagesResponse, Status> {
    let request = ListMessagesRequest {
        parent: parent.to_owned(),
        page_size,
        page_token: page_token.to_owned(),
    };
    Ok(messages(client).list_messages(client.request(request)).await?.into_inner())
}

pub(crate) async fn list_changes(
    client: &Client,
    request: ListChangesRequest,
) -> Result<ListChangesResponse, Status> {
    let channel = client.channel(server().addresses.messaging);
    let mut changes = ChangeServiceClient::new(channel);
    Ok(changes.list_changes(client.request(request)).await?.into_inner())
}

pub(crate) fn not_found() -> (Code, String) {
    (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned())
}

pub(crate) fn failed(reason: &str) -> (Code, String) {
    (Code::FailedPrecondition, reason.to_owned())
}
