//! Between messages and contacts.

use crm_error::{ApiError, Violations};
use crm_proto::contacts::v1 as pb;
use crm_proto::messaging::v1 as messaging_pb;
use crm_service::mask::masked;
use crm_service::open::settle;
use crm_service::page::{self, Binding, Page, Position};
use crm_service::text::present;
use crm_service::{etag, filter, names, timestamp};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use serde_json::{Map, Number, Value};

use crate::contact::{
    Contact, ContactError, ContactFilter, ContactPatch, Field, NewContact, Recorded, Target,
    phone_key,
};

/// The largest metadata, encoded.
const MAX_METADATA_BYTES: usize = 64 * 1024;
/// The deepest metadata.
const MAX_METADATA_DEPTH: usize = 32;

/// What a request asks for, with what the domain finds wrong.
pub(super) fn new_contact(contact: pb::Contact, violations: &mut Violations) -> NewContact {
    let new = NewContact {
        display_name: present(contact.display_name),
        email: present(contact.email),
        phone: present(contact.phone),
        company: present(contact.company),
        position: present(contact.position),
        source: present(contact.source),
        metadata: contact.metadata.and_then(|metadata| read_metadata(&metadata, violations)),
    };
    new.check(violations);
    new
}

/// Which contact a change is for.
pub(super) fn target(
    name: &str,
    etag: &str,
    mut violations: Violations,
) -> Result<Target, ApiError> {
    let id = names::parse_field("contacts", name, "name", &mut violations);
    let id = settle(id, violations)?;
    Ok(Target { id, revision: etag::parse(etag) })
}

/// What an update asks for. Only the fields that it names are looked at; what
/// is wrong with them is answered together with what the contact becomes.
pub(super) fn update(
    request: pb::UpdateContactRequest,
    mut violations: Violations,
) -> Result<(Target, ContactPatch), ApiError> {
    let contact = request.contact.unwrap_or_default();
    let id = names::parse_field("contacts", &contact.name, "contact.name", &mut violations);
    if contact.name.is_empty() {
        violations.add("contact.name", "REQUIRED", "It is required.");
    }
    let fields = match &request.update_mask {
        Some(mask) => masked(&FIELDS, &mask.paths, &mut violations),
        None => FIELDS.iter().filter(|(name, _)| is_populated(&contact, name)).copied().collect(),
    };
    if fields.is_empty() && !violations.has("update_mask") {
        violations.add("update_mask", "NOTHING_TO_UPDATE", "At least one field.");
    }
    violations.retain(|field| match field.strip_prefix("contact.") {
        Some(field) => fields.iter().any(|(name, _)| *name == field) || field == "name",
        None => true,
    });
    let target = id.map(|id| Target { id, revision: etag::parse(&contact.etag) });
    let is_metadata_asked = fields.iter().any(|(_, field)| *field == Field::Metadata);
    let metadata = contact.metadata.filter(|_| is_metadata_asked);
    let new = NewContact {
        display_name: present(contact.display_name),
        email: present(contact.email),
        phone: present(contact.phone),
        company: present(contact.company),
        position: present(contact.position),
        source: present(contact.source),
        metadata: metadata.and_then(|metadata| read_metadata(&metadata, &mut violations)),
    };
    let fields = fields.into_iter().map(|(_, field)| field).collect();
    let patch = ContactPatch { fields, new, violations };
    // No contact says what would become of it: the patch is checked by itself.
    let target = target.ok_or_else(|| ApiError::invalid(patch.faults()))?;
    Ok((target, patch))
}

/// The fields that an update can name.
const FIELDS: [(&str, Field); 7] = [
    ("display_name", Field::DisplayName),
    ("email", Field::Email),
    ("phone", Field::Phone),
    ("company", Field::Company),
    ("position", Field::Position),
    ("source", Field::Source),
    ("metadata", Field::Metadata),
];

fn is_populated(contact: &pb::Contact, field: &str) -> bool {
    match field {
        "display_name" => !contact.display_name.is_empty(),
        "email" => !contact.email.is_empty(),
        "phone" => !contact.phone.is_empty(),
        "company" => !contact.company.is_empty(),
        "position" => !contact.position.is_empty(),
        "source" => !contact.source.is_empty(),
        _ => contact.metadata.is_some(),
    }
}

/// Which contacts a list asks for.
pub(super) fn filter(
    request: &pb::ListContactsRequest,
    violations: &mut Violations,
) -> ContactFilter {
    let mut filter = ContactFilter {
        email: None,
        phone: None,
        metadata: Vec::new(),
        show_deleted: request.show_deleted,
        page_size: page::size(request.page_size),
    };
    for equals in filter::parse(&request.filter, &["email", "phone", "metadata.*"], violations) {
        match equals.field.as_str() {
            "email" => filter.email = Some(equals.value),
            "phone" => filter.phone = Some(phone_key(&equals.value)),
            _ => filter.metadata.push(metadata_part(equals)),
        }
    }
    filter
}

/// What metadata contains in which `metadata.a.b` has this value. Without
/// quotes it is a number, true, false or null, where it can be.
fn metadata_part(equals: filter::Equals) -> Value {
    let literal = (!equals.is_quoted).then(|| serde_json::from_str(&equals.value).ok()).flatten();
    let value = literal.unwrap_or(Value::String(equals.value));
    let path = equals.field.strip_prefix("metadata.").unwrap_or_default();
    path.rsplit('.').fold(value, |inner, step| serde_json::json!({ step: inner }))
}

pub(super) fn page(page: Page<Contact>, binding: &Binding) -> pb::ListContactsResponse {
    let position = |last: &Contact| Position { create_time: last.create_time, id: last.id };
    pb::ListContactsResponse {
        next_page_token: page.next_token(binding, position),
        revision: page.revision,
        contacts: page.items.into_iter().map(Into::into).collect(),
    }
}

/// What the deletion of a contact adds to what the log records of its
/// conversations.
pub(crate) fn deletion(contact: &Contact) -> messaging_pb::Conversation {
    messaging_pb::Conversation {
        delete_time: contact.delete_time.map(timestamp),
        ..messaging_pb::Conversation::default()
    }
}

impl From<Contact> for pb::Contact {
    fn from(contact: Contact) -> Self {
        let revision = contact.revision;
        with_revision(recorded_message(contact), revision)
    }
}

/// The message that the change log records: all but revision and etag, which
/// the change itself carries.
pub(crate) fn recorded_message(contact: Contact) -> pb::Contact {
    pb::Contact {
        name: format!("contacts/{}", contact.id),
        // The conversation that is made with a contact has the contact's id.
        initial_conversation: format!("conversations/{}", contact.id),
        ..preview(contact)
    }
}

/// The message of a contact that has not been created: it has no name.
pub(super) fn preview(contact: Contact) -> pb::Contact {
    pb::Contact {
        name: String::new(),
        display_name: contact.display_name,
        email: contact.email.unwrap_or_default(),
        phone: contact.phone.unwrap_or_default(),
        company: contact.company.unwrap_or_default(),
        position: contact.position.unwrap_or_default(),
        source: contact.source.unwrap_or_default(),
        metadata: contact.metadata.and_then(write_metadata),
        initial_conversation: String::new(),
        create_time: Some(timestamp(contact.create_time)),
        update_time: Some(timestamp(contact.update_time)),
        delete_time: contact.delete_time.map(timestamp),
        etag: String::new(),
        revision: 0,
    }
}

/// The answer to a write, from what the change log recorded of it.
pub(super) fn from_recorded(recorded: &Recorded) -> Result<pb::Contact, ContactError> {
    let message = pb::Contact::decode(recorded.after.as_slice());
    let message = message.map_err(|error| ContactError::Corrupt(error.into()))?;
    Ok(with_revision(message, recorded.revision))
}

fn with_revision(message: pb::Contact, revision: i64) -> pb::Contact {
    pb::Contact { etag: etag::format(revision), revision, ..message }
}

/// The conversation that is made with a contact, as the change log records it.
pub(crate) fn initial_conversation(contact: &Contact) -> messaging_pb::Conversation {
    messaging_pb::Conversation {
        name: format!("conversations/{}", contact.id),
        contact: format!("contacts/{}", contact.id),
        state: messaging_pb::conversation::State::Active.into(),
        create_time: Some(timestamp(contact.create_time)),
        update_time: Some(timestamp(contact.update_time)),
        ..messaging_pb::Conversation::default()
    }
}

fn read_metadata(metadata: &Struct, violations: &mut Violations) -> Option<Value> {
    const FIELD: &str = "contact.metadata";
    if metadata.encoded_len() > MAX_METADATA_BYTES {
        violations.add(FIELD, "METADATA_SIZE", "At most 64 KiB.");
        return None;
    }
    match struct_to_json(metadata, 1) {
        Ok(value) => Some(value),
        Err((reason, text)) => {
            violations.add(FIELD, reason, text);
            None
        }
    }
}

type Fault = (&'static str, &'static str);

fn struct_to_json(object: &Struct, depth: usize) -> Result<Value, Fault> {
    if depth > MAX_METADATA_DEPTH {
        return Err(("METADATA_DEPTH", "At most 32 levels deep."));
    }
    let mut map = Map::new();
    for (key, value) in &object.fields {
        map.insert(text(key)?, value_to_json(value, depth)?);
    }
    Ok(Value::Object(map))
}

fn value_to_json(value: &prost_types::Value, depth: usize) -> Result<Value, Fault> {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Ok(Value::Null),
        Some(Kind::BoolValue(value)) => Ok(Value::Bool(*value)),
        Some(Kind::StringValue(value)) => text(value).map(Value::String),
        Some(Kind::NumberValue(value)) => {
            // JSON, and so PostgreSQL, has one zero, and no infinity.
            let value = if *value == 0.0 { 0.0 } else { *value };
            let number = Number::from_f64(value);
            number.map(Value::Number).ok_or(("METADATA_NUMBER", "Numbers must be finite."))
        }
        Some(Kind::StructValue(object)) => struct_to_json(object, depth + 1),
        Some(Kind::ListValue(_)) if depth >= MAX_METADATA_DEPTH => {
            Err(("METADATA_DEPTH", "At most 32 levels deep."))
        }
        Some(Kind::ListValue(list)) => {
            list.values.iter().map(|value| value_to_json(value, depth + 1)).collect()
        }
    }
}

fn text(text: &str) -> Result<String, Fault> {
    if text.contains('\0') {
        return Err(("NO_NUL", "No NUL character."));
    }
    Ok(text.to_owned())
}

fn write_metadata(value: Value) -> Option<Struct> {
    match json_to_value(value).kind {
        Some(Kind::StructValue(object)) => Some(object),
        _ => None,
    }
}

fn json_to_value(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(json_to_value).collect() })
        }
        Value::Object(map) => {
            let fields = map.into_iter().map(|(key, value)| (key, json_to_value(value)));
            Kind::StructValue(Struct { fields: fields.collect() })
        }
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests;
