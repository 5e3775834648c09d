//! Metadata: a message to the caller, JSON in the database.

use crm_error::Violations;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use serde_json::{Map, Number, Value};

/// The largest metadata, encoded.
const MAX_METADATA_BYTES: usize = 64 * 1024;
/// The deepest metadata.
const MAX_METADATA_DEPTH: usize = 32;

/// What is stored, unless something is wrong with it.
pub(crate) fn read_metadata(metadata: &Struct, violations: &mut Violations) -> Option<Value> {
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

/// What is answered.
pub(super) fn write_metadata(value: Value) -> Option<Struct> {
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
mod tests {
    use proptest::prelude::*;
    use prost_types::Value as Part;

    use super::*;

    fn any_part() -> impl Strategy<Value = Part> {
        let rare = vec![-0.0, 1e308, -1e308, 5e-324, f64::MAX, 0.1, 1e15, 1e16, 1e21];
        let number = prop_oneof![
            any::<f64>().prop_filter("JSON has no others", |number| number.is_finite()),
            prop::sample::select(rare),
        ];
        let text = any::<String>().prop_map(|text| text.replace('\0', ""));
        let leaf = prop_oneof![
            Just(Kind::NullValue(0)),
            any::<bool>().prop_map(Kind::BoolValue),
            number.prop_map(Kind::NumberValue),
            text.prop_map(Kind::StringValue),
        ];
        let leaf = leaf.prop_map(|kind| Part { kind: Some(kind) });
        leaf.prop_recursive(20, 60, 4, |inner| {
            let fields = proptest::collection::btree_map("\\PC{0,6}", inner.clone(), 0..4);
            let values = proptest::collection::vec(inner, 0..4);
            prop_oneof![
                fields.prop_map(|fields| Kind::StructValue(Struct { fields })),
                values.prop_map(|values| Kind::ListValue(ListValue { values })),
            ]
            .prop_map(|kind| Part { kind: Some(kind) })
        })
    }

    /// JSON has one zero.
    fn settled(part: &Part) -> Part {
        let kind = match part.kind.clone() {
            Some(Kind::NumberValue(0.0)) => Some(Kind::NumberValue(0.0)),
            Some(Kind::StructValue(object)) => {
                let fields = object.fields.iter().map(|(key, part)| (key.clone(), settled(part)));
                Some(Kind::StructValue(Struct { fields: fields.collect() }))
            }
            Some(Kind::ListValue(list)) => Some(Kind::ListValue(ListValue {
                values: list.values.iter().map(settled).collect(),
            })),
            kind => kind,
        };
        Part { kind }
    }

    proptest! {
        #[test]
        fn metadata_comes_back_from_json_to_the_bit(part in any_part()) {
            let metadata = Struct { fields: [("k".to_owned(), part)].into() };
            let mut violations = Violations::default();

            let json = read_metadata(&metadata, &mut violations).unwrap();
            let text = serde_json::to_string(&json).unwrap();
            let read = write_metadata(serde_json::from_str(&text).unwrap()).unwrap();

            prop_assert!(violations.is_empty());
            let expected = Struct {
                fields: metadata.fields.iter().map(|(key, part)| (key.clone(), settled(part))).collect(),
            };
            // Encoded, zeros differ.
            prop_assert_eq!(read.encode_to_vec(), expected.encode_to_vec());
        }
    }
}
