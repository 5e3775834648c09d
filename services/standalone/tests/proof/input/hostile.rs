//! Hostile values for a field, by its kind.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, Value};

use super::places::Place;
use super::rules::Rules;
use super::{texts, wire};

/// A value for a field, encoded with its tag.
#[derive(Clone, Debug)]
pub(super) struct Hostile {
    /// What it is, in a few words.
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    /// What the answer has to be.
    pub(super) verdict: Verdict,
}

/// What the contract says of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The bytes are no message.
    Malformed,
    /// The field's rules refuse it.
    Refused,
    /// The domain decides; what it takes it must keep.
    Open,
}

fn hostile(name: impl Into<String>, bytes: Vec<u8>, verdict: Verdict) -> Hostile {
    Hostile { name: name.into(), bytes, verdict }
}

/// What a field can be given; `valid` is what the example has there.
pub(super) fn values(place: &Place, valid: &Value) -> Vec<Hostile> {
    let field = place.field();
    let rules = Rules::of(field);
    let mut values = match field.kind() {
        _ if field.is_map() => maps(field),
        _ if field.is_list() => lists(field, valid, &rules),
        Kind::String => strings(place, valid, &rules),
        Kind::Message(message) => match message.full_name() {
            "google.protobuf.Struct" => super::metadata::values(field.number()),
            "google.protobuf.FieldMask" => masks(field.number()),
            "google.protobuf.Timestamp" => timestamps(field.number()),
            _ => vec![hostile("empty message", wire::bytes(field.number(), b""), Verdict::Open)],
        },
        Kind::Double => doubles(field.number()),
        Kind::Enum(known) => {
            let known = known.values().map(|value| i64::from(value.number()));
            numbers(field, &rules, known.chain([9999, -1, i32::MIN.into(), i32::MAX.into()]))
        }
        Kind::Bool => [2, u64::MAX]
            .map(|n| hostile(format!("bool {n}"), wire::number(field.number(), n), Verdict::Open))
            .into(),
        Kind::Int32 => numbers(field, &rules, around(i32::MIN.into(), i32::MAX.into())),
        Kind::Int64 => numbers(field, &rules, around(i64::MIN, i64::MAX)),
        Kind::Uint32 => numbers(field, &rules, around(0, u32::MAX.into())),
        other => panic!("{}: give {other:?} hostile values", field.full_name()),
    };
    if rules.is_required {
        values.push(hostile("missing", vec![], Verdict::Refused));
    } else {
        values.push(hostile("missing", vec![], Verdict::Open));
    }
    values.extend(wrong_wire_types(field));
    if place.is_output_only() {
        // Nobody looks at it: a few will do.
        let step = values.len().div_ceil(8);
        values = values.into_iter().step_by(step).collect();
    }
    values
}

/// Every other wire type than the field's own is an error of encoding.
fn wrong_wire_types(field: &FieldDescriptor) -> Vec<Hostile> {
    let own = match field.kind() {
        Kind::String | Kind::Bytes | Kind::Message(_) => 2,
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => 1,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => 5,
        _ => 0,
    };
    let wrong = (0..8).filter(|wire_type| *wire_type != own);
    wrong
        .map(|wire_type| {
            let bytes = wire::of_wire_type(field.number(), wire_type);
            hostile(format!("wire type {wire_type}"), bytes, Verdict::Malformed)
        })
        .collect()
}

fn strings(place: &Place, valid: &Value, rules: &Rules) -> Vec<Hostile> {
    let field = place.field().number();
    let encode = |name: String, text: &str| {
        let verdict = if rules.refuse_text(text) { Verdict::Refused } else { Verdict::Open };
        hostile(name, wire::bytes(field, text.as_bytes()), verdict)
    };
    let texts = texts::texts(rules.max_len).into_iter();
    let mut all: Vec<_> = texts.map(|(name, text)| encode(name, &text)).collect();
    let name = place.field().name();
    let almost = texts::almost(name, valid.as_str().unwrap_or_default());
    all.extend(almost.into_iter().map(|text| {
        let shown: String = text.chars().take(40).collect();
        encode(format!("almost: {shown}"), &text)
    }));
    all.extend(texts::no_texts().into_iter().map(|(name, bytes)| {
        hostile(format!("no UTF-8: {name}"), wire::bytes(field, bytes), Verdict::Malformed)
    }));
    all
}

/// The edges of a kind of numbers, and numbers around zero.
fn around(min: i64, max: i64) -> impl Iterator<Item = i64> {
    [0, -1, 1, 1000, 1001, 65_535, 65_536, min, max].into_iter().filter(move |n| *n >= min)
}

fn numbers(
    field: &FieldDescriptor,
    rules: &Rules,
    numbers: impl Iterator<Item = i64>,
) -> Vec<Hostile> {
    let mut all: Vec<_> = numbers
        .map(|n| {
            let verdict = if rules.refuse_number(n) { Verdict::Refused } else { Verdict::Open };
            hostile(n.to_string(), wire::number(field.number(), n.cast_unsigned()), verdict)
        })
        .collect();
    let endless = [wire::tag(field.number(), 0), vec![0xff; 10], vec![1]].concat();
    all.push(hostile("a varint of 11 bytes", endless, Verdict::Malformed));
    let cut = [wire::tag(field.number(), 0), vec![0xff]].concat();
    all.push(hostile("a varint that is cut off", cut, Verdict::Malformed));
    all
}

fn doubles(field: u32) -> Vec<Hostile> {
    [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 5e-324, -0.0, f64::MAX]
        .map(|n| hostile(n.to_string(), wire::double(field, n), Verdict::Open))
        .into()
}

fn timestamps(field: u32) -> Vec<Hostile> {
    let end_of_time = 253_402_300_799;
    let mut all = Vec::new();
    for seconds in [0, -1, end_of_time, -62_135_596_800] {
        for (nanos, is_valid) in
            [(0, true), (999_999_999, true), (1_000_000_000, false), (-1, false), (i32::MIN, false)]
        {
            all.push((seconds, nanos, is_valid));
        }
    }
    for seconds in [end_of_time + 1, -62_135_596_801, i64::MIN, i64::MAX, 9_000_000_000_000] {
        all.push((seconds, 0, false));
    }
    all.into_iter()
        .map(|(seconds, nanos, is_valid)| {
            let inner =
                [wire::number(1, seconds.cast_unsigned()), wire::number(2, extended(nanos))];
            let verdict = if is_valid { Verdict::Open } else { Verdict::Refused };
            hostile(format!("{seconds} s {nanos} ns"), wire::bytes(field, &inner.concat()), verdict)
        })
        .collect()
}

/// A negative number takes ten bytes, whatever its kind.
fn extended(number: i32) -> u64 {
    i64::from(number).cast_unsigned()
}

fn masks(field: u32) -> Vec<Hostile> {
    let mask = |paths: &[&str]| {
        let paths: Vec<_> = paths.iter().map(|path| wire::bytes(1, path.as_bytes())).collect();
        wire::bytes(field, &paths.concat())
    };
    let many = vec!["nope"; 10_000];
    let empty = vec![""; 100_000];
    let mut all = vec![hostile("no path", mask(&[]), Verdict::Refused)];
    for paths in [
        &["nope"][..],
        &[""],
        &["*", "display_name"],
        &["**"],
        &["display_name.x"],
        &["displayName"],
        &["DISPLAY_NAME"],
        &["display_name", "nope"],
        &["display_name "],
        &["create_time"],
        &["etag"],
        &["name"],
        &["labels.key"],
        &["metadata.key"],
        &["`display_name`"],
        &["x' OR '1'='1"],
        &["display_name,email"],
        &["\0"],
        &["\u{202e}"],
        &many,
        &empty,
    ] {
        let name: String = paths.join(" ").chars().take(40).collect();
        all.push(hostile(format!("mask {name}"), mask(paths), Verdict::Refused));
    }
    for paths in [&["*"][..], &["display_name", "display_name"]] {
        all.push(hostile(format!("mask {}", paths.join(" ")), mask(paths), Verdict::Open));
    }
    let broken = wire::bytes(field, &wire::bytes(1, b"\xff"));
    all.push(hostile("mask that is no text", broken, Verdict::Malformed));
    all
}

fn maps(field: &FieldDescriptor) -> Vec<Hostile> {
    let entry =
        |key: &str, value: &str| wire::entry(field.number(), key.as_bytes(), value.as_bytes());
    let many = |count: usize| (0..count).map(|n| entry(&n.to_string(), "x")).collect::<Vec<_>>();
    let long = "\u{1f600}".repeat(63);
    let mut all = vec![
        hostile("two of one key", [entry("k", "1"), entry("k", "2")].concat(), Verdict::Open),
        hostile("64 pairs", many(64).concat(), Verdict::Open),
        hostile("65 pairs", many(65).concat(), Verdict::Refused),
        hostile("50,000 pairs", many(50_000).concat(), Verdict::Refused),
        hostile("an empty key", entry("", "v"), Verdict::Refused),
        hostile("no key", wire::bytes(field.number(), &wire::bytes(2, b"v")), Verdict::Refused),
        hostile("no value", wire::bytes(field.number(), &wire::bytes(1, b"k")), Verdict::Open),
        hostile("the longest key", entry(&long, &"é".repeat(255)), Verdict::Open),
        hostile("a key too long", entry(&format!("{long}x"), ""), Verdict::Refused),
        hostile("a value too long", entry("k", &"é".repeat(256)), Verdict::Refused),
        hostile("NUL in a key", entry("k\0", "v"), Verdict::Refused),
        hostile("NUL in a value", entry("k", "v\0"), Verdict::Refused),
    ];
    let escaped: Vec<_> = (0..64).map(|n| format!("{n}{}", "\u{202e}".repeat(70))).collect();
    let worst: Vec<_> = escaped.iter().map(|key| entry(key, "\0")).collect();
    all.push(hostile("as many long faults as can be", worst.concat(), Verdict::Refused));
    for (name, text) in texts::texts(None) {
        if !text.is_empty() && !text.contains('\0') && text.chars().count() <= 63 {
            all.push(hostile(format!("label {name}"), entry(&text, &text), Verdict::Open));
        }
    }
    for (name, bytes) in texts::no_texts() {
        let bytes = wire::entry(field.number(), bytes, b"");
        all.push(hostile(format!("label of no UTF-8: {name}"), bytes, Verdict::Malformed));
    }
    all
}

fn lists(field: &FieldDescriptor, valid: &Value, rules: &Rules) -> Vec<Hostile> {
    let first = valid.as_list().and_then(<[Value]>::first).and_then(Value::as_message);
    let first = first.map(prost_reflect::prost::Message::encode_to_vec).unwrap_or_default();
    let mut all = Vec::new();
    for (count, item) in [(1, &[][..]), (2, &first), (1001, &first), (1001, &[]), (100_000, &[])] {
        let bytes = wire::bytes(field.number(), item).repeat(count);
        if bytes.len() > 500 * 1024 {
            continue;
        }
        let refused = rules.max_items.is_some_and(|most| count > most);
        let verdict = if refused { Verdict::Refused } else { Verdict::Open };
        all.push(hostile(format!("{count} items of {} bytes", item.len()), bytes, verdict));
    }
    all
}

/// The value that a message has at a place; the default where it has none.
pub(super) fn value_at(message: &DynamicMessage, place: &Place) -> Value {
    let mut value = Value::Message(message.clone());
    for step in &place.0 {
        let message = match &value {
            Value::List(items) => items.first().and_then(Value::as_message).cloned(),
            value => value.as_message().cloned(),
        };
        value = message.map_or_else(
            || Value::default_value_for_field(step),
            |message| message.get_field(step).into_owned(),
        );
    }
    value
}
