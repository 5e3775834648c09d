//! What was accepted is answered, and read again, to the bit.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage as _, Value};

use super::places::{Place, is_chosen};
use super::send::{self, Answer};
use super::subject::Subject;

/// Compares the answer to a write with what was sent, and with what a Get
/// answers afterwards.
pub(super) async fn check_round_trip(
    subject: &Subject,
    place: &Place,
    request: &[u8],
    answer: &Answer,
) -> Result<(), String> {
    let output = subject.method.descriptor.output();
    let answered = DynamicMessage::decode(output.clone(), answer.message.clone())
        .map_err(|error| format!("the answer: {error}"))?;
    let input = subject.method.input();
    let Some(resource) = input.fields().find(|field| field.kind().as_message() == Some(&output))
    else {
        return Ok(());
    };
    let sent = DynamicMessage::decode(input, request).map_err(|error| error.to_string())?;
    let sent = sent.get_field(&resource).as_message().cloned().unwrap();
    for field in output.fields() {
        let is_named =
            !subject.is_update() || place.resource_field() == Some(&field) && place.is_maskable();
        if is_chosen(&field) && is_named {
            compare(&field, &sent, &answered)?;
        } else if !is_chosen(&field) {
            is_not_taken(&field, &sent, &answered)?;
        }
    }
    if subject.is_real() { read_again(subject, &answered).await } else { Ok(()) }
}

/// The answer has what was sent, or the default that the contract names.
fn compare(
    field: &FieldDescriptor,
    sent: &DynamicMessage,
    answered: &DynamicMessage,
) -> Result<(), String> {
    let wanted = settled(field, sent.get_field(field).into_owned());
    let found = answered.get_field(field).into_owned();
    let is_default = !sent.has_field(field) || wanted == Value::default_value_for_field(field);
    if is_default && is_defaulted(field) {
        return Ok(());
    }
    if same(&wanted, &found) {
        return Ok(());
    }
    Err(format!("{} was sent as {}, and is {}", field.name(), shown(&wanted), shown(&found)))
}

/// Whose blank texts are absent.
const BLANK_IS_NONE: [&str; 2] = ["crm.contacts.v1.Contact", "crm.messaging.v1.Conversation"];

/// Fields whose default is not the zero of their kind.
fn is_defaulted(field: &FieldDescriptor) -> bool {
    matches!(field.kind(), Kind::Enum(_))
        || ["port", "tenant_capacity", "spare_target", "slug"].contains(&field.name())
}

/// What the contract makes of a value: a blank text is none, JSON has one
/// zero and one null.
fn settled(field: &FieldDescriptor, value: Value) -> Value {
    match value {
        Value::String(text) if BLANK_IS_NONE.contains(&field.parent_message().full_name()) => {
            let is_blank = crm_service::text::is_blank(&text);
            Value::String(if is_blank { String::new() } else { text })
        }
        Value::Message(message) => Value::Message(settled_message(message)),
        other => other,
    }
}

fn settled_message(mut message: DynamicMessage) -> DynamicMessage {
    let descriptor = message.descriptor();
    let is_value = descriptor.full_name() == "google.protobuf.Value";
    if is_value && message.fields().next().is_none() {
        message.set_field_by_name("null_value", Value::EnumNumber(0));
    }
    for field in descriptor.fields().filter(|field| message.has_field(field)).collect::<Vec<_>>() {
        let value = match message.get_field(&field).into_owned() {
            Value::F64(0.0) if is_value => Value::F64(0.0),
            Value::EnumNumber(_) if is_value => Value::EnumNumber(0),
            Value::Message(inner) => Value::Message(settled_message(inner)),
            Value::List(items) => Value::List(items.into_iter().map(settled_item).collect()),
            Value::Map(items) => Value::Map(
                items.into_iter().map(|(key, value)| (key, settled_item(value))).collect(),
            ),
            other => other,
        };
        message.set_field(&field, value);
    }
    message
}

fn settled_item(value: Value) -> Value {
    match value {
        Value::Message(message) => Value::Message(settled_message(message)),
        other => other,
    }
}

/// Equality that tells one zero from the other.
fn same(left: &Value, right: &Value) -> bool {
    left == right && bits(left) == bits(right)
}

/// The bits of every number in a value, in the order of its keys.
fn bits(value: &Value) -> Vec<u64> {
    match value {
        Value::F64(number) => vec![number.to_bits()],
        Value::Message(message) => message.fields().flat_map(|(_, value)| bits(value)).collect(),
        Value::List(items) => items.iter().flat_map(bits).collect(),
        Value::Map(items) => {
            let mut items: Vec<_> = items.iter().collect();
            items.sort_by_key(|(key, _)| key.as_str().unwrap_or_default().to_owned());
            items.into_iter().flat_map(|(_, value)| bits(value)).collect()
        }
        _ => vec![],
    }
}

/// A value of a field that only answers have is the server's own.
fn is_not_taken(
    field: &FieldDescriptor,
    sent: &DynamicMessage,
    answered: &DynamicMessage,
) -> Result<(), String> {
    let (sent, found) = (sent.get_field(field), answered.get_field(field));
    let is_text = sent.as_str().is_some_and(|text| text.len() > 3);
    if is_text && sent == found && field.name() != "name" && field.name() != "etag" {
        return Err(format!("{} was taken from the request", field.name()));
    }
    Ok(())
}

/// What a Get of the answer's name answers is the answer.
async fn read_again(subject: &Subject, answered: &DynamicMessage) -> Result<(), String> {
    let output = answered.descriptor();
    let getter = subject.getter.as_ref().ok_or("the resource cannot be read")?;
    let mut request = DynamicMessage::new(getter.input());
    let name = answered.get_field_by_name("name").unwrap().into_owned();
    request.set_field_by_name("name", name);
    let request = prost::Message::encode_to_vec(&request);
    let caller = subject.world.right_caller(getter);
    let read = send::send(&subject.channel, getter, &caller, &request).await?;
    let read = DynamicMessage::decode(output, read.message).map_err(|error| error.to_string())?;
    let (written, read) = (Value::Message(answered.clone()), Value::Message(read));
    if same(&written, &read) {
        return Ok(());
    }
    Err(format!("what is read is not what was written: {} {}", shown(&read), shown(&written)))
}

fn shown(value: &Value) -> String {
    format!("{value:?}").chars().take(300).collect()
}
