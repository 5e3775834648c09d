//! Properties of what is converted.

use std::collections::BTreeSet;

use proptest::prelude::*;
use prost_types::Value as Part;

use super::*;

fn any_part() -> impl Strategy<Value = Part> {
    let number = prop_oneof![
        any::<f64>().prop_filter("JSON has no others", |number| number.is_finite()),
        prop::sample::select(vec![-0.0, 1e308, -1e308, 5e-324, f64::MAX, 0.1, 1e15, 1e16, 1e21]),
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
        Some(Kind::ListValue(list)) => {
            Some(Kind::ListValue(ListValue { values: list.values.iter().map(settled).collect() }))
        }
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

    #[test]
    fn a_mask_names_known_fields_or_is_wrong_once(
        paths in proptest::collection::vec(
            prop_oneof![
                prop::sample::select(FIELDS.map(|(name, _)| name.to_owned()).to_vec()),
                prop::sample::select(vec!["*".to_owned(), "name".to_owned(), String::new()]),
                any::<String>(),
            ],
            0..8,
        ),
    ) {
        let mut violations = Violations::default();

        let fields = masked(&FIELDS, &paths, &mut violations);

        let known: BTreeSet<_> = FIELDS.iter().map(|(name, _)| *name).collect();
        let wanted: BTreeSet<_> = paths.iter().map(String::as_str).collect();
        let found: BTreeSet<_> = fields.iter().map(|(name, _)| *name).collect();
        let faults = violations.into_vec();
        if paths == ["*"] {
            prop_assert!(faults.is_empty());
            prop_assert_eq!(found, known);
        } else {
            prop_assert_eq!(faults.len(), usize::from(!wanted.is_subset(&known)));
            prop_assert_eq!(found, wanted.intersection(&known).copied().collect());
            prop_assert_eq!(fields.len(), wanted.intersection(&known).count());
        }
    }
}
