//! Hostile `google.protobuf.Struct`s, by hand: fields = 1; in an entry key = 1,
//! value = 2; in a Value null = 1, number = 2, string = 3, bool = 4, struct = 5,
//! list = 6; in a ListValue values = 1.

use super::hostile::{Hostile, Verdict};
use super::{texts, wire};

/// Numbers that are easily lost.
const NUMBERS: [f64; 13] = [
    -0.0,
    5e-324,
    -5e-324,
    f64::MIN_POSITIVE,
    f64::MAX,
    f64::MIN,
    1e308,
    1e-308,
    0.1,
    1.0 / 3.0,
    9_007_199_254_740_993.0,
    1e21,
    123_456_789.123_456_79,
];

/// A Struct with one key.
fn object(key: &[u8], value: &[u8]) -> Vec<u8> {
    wire::bytes(1, &[wire::bytes(1, key), wire::bytes(2, value)].concat())
}

/// A Value of so many objects in each other.
fn objects(depth: usize) -> Vec<u8> {
    (0..depth).fold(wire::number(1, 0), |inner, _| wire::bytes(5, &object(b"k", &inner)))
}

/// A Value of so many lists in each other.
fn lists(depth: usize) -> Vec<u8> {
    (0..depth).fold(wire::number(4, 1), |inner, _| wire::bytes(6, &wire::bytes(1, &inner)))
}

pub(super) fn values(field: u32) -> Vec<Hostile> {
    let mut all = Vec::new();
    let mut add = |name: String, content: &[u8], verdict| {
        let bytes = wire::bytes(field, content);
        all.push(Hostile { name: format!("Struct: {name}"), bytes, verdict });
    };
    add("empty".to_owned(), &[], Verdict::Open);
    // The Struct itself is the first level.
    for depth in [30, 31] {
        add(format!("{} objects deep", depth + 1), &object(b"k", &objects(depth)), Verdict::Open);
        add(format!("{} lists deep", depth + 1), &object(b"k", &lists(depth)), Verdict::Open);
    }
    add("33 objects deep".to_owned(), &object(b"k", &objects(32)), Verdict::Refused);
    add("33 lists deep".to_owned(), &object(b"k", &lists(32)), Verdict::Refused);
    for depth in [64, 100, 10_000] {
        // No library reads so deep: a hundred messages in each other is the end.
        add(format!("{depth} objects deep"), &object(b"k", &objects(depth)), Verdict::Malformed);
        add(format!("{depth} lists deep"), &object(b"k", &lists(depth)), Verdict::Malformed);
    }
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        add(number.to_string(), &object(b"k", &wire::double(2, number)), Verdict::Refused);
    }
    for number in NUMBERS {
        add(format!("{number:e}"), &object(b"k", &wire::double(2, number)), Verdict::Open);
    }
    add("a value of no kind".to_owned(), &object(b"k", &[]), Verdict::Open);
    add("an unknown null".to_owned(), &object(b"k", &wire::number(1, 7)), Verdict::Open);
    let both = [wire::number(4, 1), wire::bytes(3, b"last")].concat();
    add("a value of two kinds".to_owned(), &object(b"k", &both), Verdict::Open);
    let twice = [object(b"k", &wire::number(4, 0)), object(b"k", &wire::number(4, 1))].concat();
    add("two of one key".to_owned(), &twice, Verdict::Open);
    add("NUL in a key".to_owned(), &object(b"a\0", &both), Verdict::Refused);
    add("NUL in a text".to_owned(), &object(b"k", &wire::bytes(3, b"\0")), Verdict::Refused);
    add("too large".to_owned(), &object(b"k", &wire::bytes(3, &[b'x'; 65_536])), Verdict::Refused);
    let large = object(b"k", &wire::bytes(3, &[b'x'; 65_500]));
    add("nearly too large".to_owned(), &large, Verdict::Open);
    let wide = wire::bytes(6, &wire::bytes(1, &wire::double(2, 1e308)).repeat(5000));
    add("5000 large numbers".to_owned(), &object(b"k", &wide), Verdict::Open);
    let nothing = wire::bytes(6, &wire::bytes(1, &[]).repeat(100_000));
    add("100,000 times nothing".to_owned(), &object(b"k", &nothing), Verdict::Refused);
    let keys: Vec<_> = (0..2000).map(|n| object(n.to_string().as_bytes(), &[])).collect();
    add("2000 keys".to_owned(), &keys.concat(), Verdict::Open);
    for (name, text) in texts::texts(None) {
        if !text.contains('\0') && text.len() < 1000 {
            let content = object(text.as_bytes(), &wire::bytes(3, text.as_bytes()));
            add(format!("key and text: {name}"), &content, Verdict::Open);
        }
    }
    for (name, bytes) in texts::no_texts() {
        let value = wire::bytes(3, bytes);
        add(format!("no UTF-8: {name}"), &object(b"k", &value), Verdict::Malformed);
        add(format!("key of no UTF-8: {name}"), &object(bytes, &[]), Verdict::Malformed);
    }
    all
}
