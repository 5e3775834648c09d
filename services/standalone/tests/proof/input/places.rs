//! Every field of a request, and requests in which one of them is hostile.

use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

use super::wire;

/// What google.api.field_behavior says of a field.
const OUTPUT_ONLY: i32 = 3;
const IMMUTABLE: i32 = 5;
const IDENTIFIER: i32 = 8;

/// A field of a request, by way of the fields above it.
#[derive(Clone, Debug)]
pub(super) struct Place(pub(super) Vec<FieldDescriptor>);

/// The types whose values have hostile forms of their own.
const WHOLE: [&str; 2] = ["google.protobuf.Struct", "google.protobuf.FieldMask"];

/// Every field of a message and of the messages in it.
pub(super) fn places(message: &MessageDescriptor) -> Vec<Place> {
    below(message, &[])
}

fn below(message: &MessageDescriptor, above: &[FieldDescriptor]) -> Vec<Place> {
    let mut found = Vec::new();
    for field in message.fields() {
        let steps = [above, std::slice::from_ref(&field)].concat();
        found.push(Place(steps.clone()));
        if let Kind::Message(inner) = field.kind()
            && !field.is_map()
            && !WHOLE.contains(&inner.full_name())
        {
            found.extend(below(&inner, &steps));
        }
    }
    found
}

impl Place {
    pub(super) fn field(&self) -> &FieldDescriptor {
        self.0.last().unwrap()
    }

    /// Its path in the request, as violations name it; lists have one item.
    pub(super) fn path(&self) -> String {
        let mut path = String::new();
        for (index, step) in self.0.iter().enumerate() {
            if index > 0 {
                path.push('.');
            }
            path.push_str(step.name());
            if step.is_list() && index + 1 < self.0.len() {
                path.push_str("[0]");
            }
        }
        path
    }

    /// The field of the resource that it is in, or is.
    pub(super) fn resource_field(&self) -> Option<&FieldDescriptor> {
        self.0.get(1).filter(|_| self.0[0].kind().as_message().is_some())
    }

    /// Whether only answers have it.
    pub(super) fn is_output_only(&self) -> bool {
        self.0.iter().any(|field| behaves(field, &[OUTPUT_ONLY]))
    }

    /// Whether an update can name the field of the resource that it is in.
    pub(super) fn is_maskable(&self) -> bool {
        self.resource_field()
            .is_some_and(|field| !behaves(field, &[OUTPUT_ONLY, IMMUTABLE, IDENTIFIER]))
    }

    /// Whether one is the other, or in it.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let shorter = self.0.len().min(other.0.len());
        self.0[..shorter] == other.0[..shorter]
    }
}

/// Whether the resource's field is what a caller may choose.
pub(super) fn is_chosen(field: &FieldDescriptor) -> bool {
    !behaves(field, &[OUTPUT_ONLY, IDENTIFIER])
}

fn behaves(field: &FieldDescriptor, wanted: &[i32]) -> bool {
    let pool = field.parent_pool();
    let extension = pool.get_extension_by_name("google.api.field_behavior").unwrap();
    let options = field.options();
    let behaviors = options.get_extension(&extension);
    let mut numbers = behaviors.as_list().unwrap().iter().filter_map(Value::as_enum_number);
    numbers.any(|number| wanted.contains(&number))
}

/// The message with nothing at these places but this, each encoded with its
/// tag. Of a list that is entered, one item stays.
pub(super) fn rebuild(
    message: &DynamicMessage,
    hostile: &[(&[FieldDescriptor], &[u8])],
) -> Vec<u8> {
    let mut others = message.clone();
    for (steps, _) in hostile {
        others.clear_field(&steps[0]);
    }
    let mut out = others.encode_to_vec();
    let mut entered: Vec<&FieldDescriptor> = Vec::new();
    for (steps, bytes) in hostile {
        let field = &steps[0];
        if steps.len() == 1 {
            out.extend_from_slice(bytes);
        } else if !entered.contains(&field) {
            entered.push(field);
            let below: Vec<_> = hostile
                .iter()
                .filter(|(steps, _)| steps[0] == *field)
                .map(|(steps, bytes)| (&steps[1..], *bytes))
                .collect();
            out.extend(wire::bytes(field.number(), &rebuild(&inner(message, field), &below)));
        }
    }
    out
}

fn inner(message: &DynamicMessage, field: &FieldDescriptor) -> DynamicMessage {
    let there = message.get_field(field);
    let first = match there.as_ref() {
        Value::List(items) => items.first().and_then(Value::as_message).cloned(),
        value => value.as_message().cloned(),
    };
    first.unwrap_or_else(|| DynamicMessage::new(field.kind().as_message().cloned().unwrap()))
}
