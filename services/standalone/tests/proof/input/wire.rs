//! The encoding of protobuf, by hand: what no library would write.

/// A number as a varint.
pub(super) fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
    out
}

/// The head of a field: its number and its wire type.
pub(super) fn tag(number: u32, wire_type: u8) -> Vec<u8> {
    varint(u64::from(number) << 3 | u64::from(wire_type))
}

/// A field with a varint.
pub(super) fn number(field: u32, value: u64) -> Vec<u8> {
    [tag(field, 0), varint(value)].concat()
}

/// A field with text, bytes or a message.
pub(super) fn bytes(field: u32, value: &[u8]) -> Vec<u8> {
    [tag(field, 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// An entry of a map of texts.
pub(super) fn entry(field: u32, key: &[u8], value: &[u8]) -> Vec<u8> {
    bytes(field, &[bytes(1, key), bytes(2, value)].concat())
}

/// A double.
pub(super) fn double(field: u32, value: f64) -> Vec<u8> {
    [tag(field, 1), value.to_le_bytes().to_vec()].concat()
}

/// A message in its frame (gRPC over HTTP/2, Length-Prefixed-Message), with any
/// flag and any length.
pub(super) fn frame(flag: u8, length: usize, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap();
    [[flag].as_slice(), &length.to_be_bytes(), message].concat()
}

/// Something of every wire type, as it stands alone in a message: number 0 is
/// no field, 6 and 7 no wire types, and 4 an end without a begin.
pub(super) fn of_wire_type(field: u32, wire_type: u8) -> Vec<u8> {
    let content = match wire_type {
        0 => vec![1],
        1 => vec![0; 8],
        2 => vec![0],
        3 => tag(field, 4),
        5 => vec![0; 4],
        _ => vec![],
    };
    [tag(field, wire_type), content].concat()
}
