//! Between messages (of protobuf) and messaging's own types.

use crm_error::{ApiError, Violations};
use crm_proto::changes::v1 as changes_pb;
use crm_proto::contacts::v1 as contacts_pb;
use crm_proto::messaging::v1 as pb;
use crm_service::mask::masked;
use crm_service::open::settle;
use crm_service::page::{self, Binding, Page, Position};
use crm_service::text::present;
use crm_service::{etag, filter, names, timestamp};
use prost::Message as _;
use prost_types::Any;
use uuid::Uuid;

use crate::change::{Change, ChangeFilter, ChangePage, ResourceType};
use crate::conversation::{
    Conversation, ConversationError, ConversationFilter, ConversationPatch, NewConversation, State,
    Target, recorded_conversation,
};
use crate::message::{Message, MessageError, NewMessage, recorded_message};
use crate::write::Recorded;

/// The most conversations in a page with messages.
const MAX_FULL_PAGE: i64 = 25;
/// The most messages of one conversation there.
const MAX_MESSAGES: i64 = 100;

/// What a request asks for.
///
/// # Errors
///
/// All that is wrong with it.
pub(super) fn new_conversation(
    request: pb::CreateConversationRequest,
    mut violations: Violations,
) -> Result<NewConversation, ApiError> {
    let conversation = request.conversation.unwrap_or_default();
    let contact = &conversation.contact;
    let id = names::parse_field("contacts", contact, "conversation.contact", &mut violations);
    let contact_id = settle(id, violations)?;
    let state = match conversation.state() {
        State::Unspecified => State::Active,
        state @ (State::Active | State::Snoozed | State::Archived | State::Closed) => state,
    };
    Ok(NewConversation { contact_id, display_name: present(conversation.display_name), state })
}

/// A field that an update can name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    State,
    DisplayName,
}

/// The fields that an update can name.
const FIELDS: [(&str, Field); 2] = [("state", Field::State), ("display_name", Field::DisplayName)];

/// What an update asks for. Only the fields that it names are looked at.
///
/// # Errors
///
/// All that is wrong with them.
pub(super) fn conversation_update(
    request: pb::UpdateConversationRequest,
    mut violations: Violations,
) -> Result<(Target, ConversationPatch), ApiError> {
    let conversation = request.conversation.unwrap_or_default();
    let name = &conversation.name;
    let id = names::parse_field("conversations", name, "conversation.name", &mut violations);
    if name.is_empty() {
        violations.add("conversation.name", "REQUIRED", "It is required.");
    }
    let fields = match &request.update_mask {
        Some(mask) => masked(&FIELDS, &mask.paths, &mut violations),
        None => {
            FIELDS.into_iter().filter(|(_, field)| is_populated(&conversation, *field)).collect()
        }
    };
    if fields.is_empty() && !violations.has("update_mask") {
        violations.add("update_mask", "NOTHING_TO_UPDATE", "At least one field.");
    }
    violations.retain(|field| match field.strip_prefix("conversation.") {
        Some(field) => fields.iter().any(|(name, _)| *name == field) || field == "name",
        None => true,
    });
    let is_named = |named| fields.iter().any(|(_, field)| *field == named);
    let state = is_named(Field::State).then(|| conversation.state());
    if conversation.state == 0 && state.is_some() {
        violations.add("conversation.state", "ENUM_NOT_IN", "It must be specified.");
    }
    let target = id.map(|id| Target { id, revision: etag::parse(&conversation.etag) });
    let display_name = is_named(Field::DisplayName).then(|| present(conversation.display_name));
    Ok((settle(target, violations)?, ConversationPatch { state, display_name }))
}

fn is_populated(conversation: &pb::Conversation, field: Field) -> bool {
    match field {
        Field::State => conversation.state != 0,
        Field::DisplayName => !conversation.display_name.is_empty(),
    }
}

/// Which conversations a list asks for.
pub(super) fn filter(
    request: &pb::ListConversationsRequest,
    violations: &mut Violations,
) -> ConversationFilter {
    let page_size = page::size(request.page_size);
    let mut filter = ConversationFilter {
        of_contact: names::parse_field("contacts", &request.contact, "contact", violations),
        show_deleted: request.show_deleted,
        page_size,
        messages: messages_shown(request.view(), request.message_page_size),
        ..ConversationFilter::default()
    };
    if filter.messages > 0 {
        filter.page_size = page_size.min(MAX_FULL_PAGE);
    }
    for equals in filter::parse(&request.filter, &["contact", "state"], violations) {
        if equals.field == "contact" {
            filter.contact_id = names::parse("contacts", &equals.value);
            if filter.contact_id.is_none() {
                violations.add("filter", "FILTER", "`contact` is `contacts/` and a UUID.");
            }
        } else {
            filter.state = State::from_str_name(&equals.value);
            if filter.state.is_none_or(|state| state == State::Unspecified) {
                let text = "`state` is the name of a state, such as STATE_ACTIVE.";
                violations.add("filter", "FILTER", text);
            }
        }
    }
    filter
}

/// How many messages of each conversation a view shows.
pub(super) fn messages_shown(view: pb::ConversationView, page_size: i32) -> i64 {
    match view {
        pb::ConversationView::Full => page::size(page_size).min(MAX_MESSAGES),
        pb::ConversationView::Unspecified | pb::ConversationView::Basic => 0,
    }
}

pub(super) fn new_message(
    request: pb::CreateMessageRequest,
    violations: &mut Violations,
) -> Option<NewMessage> {
    let id = names::parse_field("conversations", &request.parent, "parent", violations);
    let message = request.message?;
    NewMessage::check(&message.content, violations);
    Some(NewMessage {
        conversation_id: id?,
        sender_type: message.sender_type(),
        content: message.content,
    })
}

/// The ids in a message's name: its conversation's and its own.
pub(super) fn message_ids(name: &str, violations: &mut Violations) -> Option<(Uuid, Uuid)> {
    let ids = names::parse_child("conversations", "messages", name);
    if ids.is_none() && !name.is_empty() {
        let text = "`conversations/`, a UUID, `/messages/` and a UUID.";
        violations.add("name", "RESOURCE_NAME", text);
    }
    ids
}

pub(super) fn conversation_page(
    page: Page<Conversation>,
    binding: &Binding,
) -> pb::ListConversationsResponse {
    let position = |last: &Conversation| Position { create_time: last.create_time, id: last.id };
    pb::ListConversationsResponse {
        next_page_token: page.next_token(binding, position),
        revision: page.revision,
        conversations: page.items.into_iter().map(Into::into).collect(),
    }
}

pub(super) fn message_page(page: Page<Message>, binding: &Binding) -> pb::ListMessagesResponse {
    pb::ListMessagesResponse {
        next_page_token: page.next_token(binding, |last| last.revision),
        revision: page.revision,
        messages: page.items.into_iter().map(Into::into).collect(),
    }
}

impl From<Conversation> for pb::Conversation {
    fn from(mut conversation: Conversation) -> Self {
        let revision = conversation.revision;
        let messages = std::mem::take(&mut conversation.messages);
        Self {
            etag: etag::format(revision),
            revision,
            messages: messages.into_iter().map(Into::into).collect(),
            ..recorded_conversation(conversation)
        }
    }
}

/// A conversation that has not been created: it has no name.
pub(super) fn preview_conversation(conversation: Conversation) -> pb::Conversation {
    pb::Conversation { name: String::new(), ..recorded_conversation(conversation) }
}

/// The answer to a write, from what the change log recorded of it.
pub(super) fn conversation_from_recorded(
    recorded: &Recorded,
) -> Result<pb::Conversation, ConversationError> {
    let conversation = pb::Conversation::decode(recorded.after.as_slice());
    let conversation = conversation.map_err(|error| ConversationError::Corrupt(error.into()))?;
    let revision = recorded.revision;
    Ok(pb::Conversation { etag: etag::format(revision), revision, ..conversation })
}

impl From<Message> for pb::Message {
    fn from(message: Message) -> Self {
        let revision = message.revision;
        with_revision(recorded_message(message), revision)
    }
}

/// A message that has not been sent: it has no name.
pub(super) fn preview(message: Message) -> pb::Message {
    pb::Message { name: String::new(), ..recorded_message(message) }
}

/// The answer to a write, from what the change log recorded of it.
pub(super) fn message_from_recorded(recorded: &Recorded) -> Result<pb::Message, MessageError> {
    let message = pb::Message::decode(recorded.after.as_slice());
    let message = message.map_err(|error| MessageError::Corrupt(error.into()))?;
    Ok(with_revision(message, recorded.revision))
}

fn with_revision(message: pb::Message, revision: i64) -> pb::Message {
    pb::Message { etag: etag::format(revision), revision, ..message }
}

/// Which changes a list asks for.
pub(super) fn change_filter(
    request: &changes_pb::ListChangesRequest,
    violations: &mut Violations,
) -> ChangeFilter {
    let mut resource_type = None;
    for equals in filter::parse(&request.filter, &["resource_type"], violations) {
        resource_type = ResourceType::named(&equals.value);
        if resource_type.is_none() {
            let text = format!("`resource_type` is one of {}.", ResourceType::names());
            violations.add("filter", "FILTER", text);
        }
    }
    let page_size = page::size(request.page_size);
    ChangeFilter { after_revision: request.after_revision, resource_type, page_size }
}

pub(super) fn change_page(page: ChangePage) -> changes_pb::ListChangesResponse {
    changes_pb::ListChangesResponse {
        changes: page.changes.into_iter().map(Into::into).collect(),
        next_after_revision: page.next_after_revision,
        revision: page.revision,
    }
}

impl From<Change> for changes_pb::Change {
    fn from(change: Change) -> Self {
        let mut value = change.after;
        // In protobuf, messages are merged by joining their bytes.
        value.extend(carried(change.resource_type, change.revision));
        let resource_type = change.resource_type.as_str();
        Self {
            revision: change.revision,
            ordinal: change.ordinal.into(),
            resource: change.name,
            resource_type: resource_type.to_owned(),
            actor: change.actor,
            cause: change.cause.unwrap_or_default(),
            change_time: Some(timestamp(change.create_time)),
            after: Some(Any { type_url: format!("type.googleapis.com/{resource_type}"), value }),
        }
    }
}

/// What a change carries of its resource, and so the log leaves out: etag and
/// revision, encoded.
fn carried(resource_type: ResourceType, revision: i64) -> Vec<u8> {
    let etag = etag::format(revision);
    match resource_type {
        ResourceType::Contact => {
            contacts_pb::Contact { etag, revision, ..Default::default() }.encode_to_vec()
        }
        ResourceType::Conversation => {
            pb::Conversation { etag, revision, ..Default::default() }.encode_to_vec()
        }
        ResourceType::Message => {
            pb::Message { etag, revision, ..Default::default() }.encode_to_vec()
        }
    }
}
