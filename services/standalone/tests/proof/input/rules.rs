//! The `buf.validate` rules of a field, read without the code that checks them.

use prost_reflect::{DynamicMessage, FieldDescriptor, Value};

/// What a field may be.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) is_required: bool,
    pub(super) min_len: Option<usize>,
    pub(super) max_len: Option<usize>,
    pub(super) max_items: Option<usize>,
    is_uuid: bool,
    may_be_zero: bool,
    gte: Option<i64>,
    lte: Option<i64>,
    known: Option<Vec<i64>>,
    excluded: Vec<i64>,
}

impl Rules {
    pub(super) fn of(field: &FieldDescriptor) -> Self {
        let pool = field.parent_pool();
        let extension = pool.get_extension_by_name("buf.validate.field").unwrap();
        let options = field.options();
        let rules = options.get_extension(&extension);
        let rules = rules.as_message().unwrap();
        let own = |kind: &str| {
            let set = rules.has_field_by_name(kind).then(|| rules.get_field_by_name(kind));
            set.flatten().and_then(|rules| rules.as_message().cloned())
        };
        let mut found = Self {
            is_required: rules.get_field_by_name("required").unwrap().as_bool().unwrap(),
            may_be_zero: rules.get_field_by_name("ignore").unwrap().as_enum_number() == Some(1),
            ..Self::default()
        };
        if let Some(string) = own("string") {
            found.min_len = number(&string, "min_len").and_then(|n| n.try_into().ok());
            found.max_len = number(&string, "max_len").and_then(|n| n.try_into().ok());
            found.is_uuid = string.has_field_by_name("uuid");
        }
        for kind in ["int32", "int64", "uint32"] {
            if let Some(numbers) = own(kind) {
                found.gte = number(&numbers, "gte");
                found.lte = number(&numbers, "lte");
            }
        }
        if let Some(repeated) = own("repeated") {
            found.max_items = number(&repeated, "max_items").and_then(|n| n.try_into().ok());
        }
        if let (Some(rules), Some(kind)) = (own("enum"), field.kind().as_enum()) {
            let known = kind.values().map(|value| i64::from(value.number()));
            found.known = rules.has_field_by_name("defined_only").then(|| known.collect());
            let excluded = rules.get_field_by_name("not_in").unwrap();
            found.excluded = excluded
                .as_list()
                .unwrap()
                .iter()
                .filter_map(|n| n.as_i32().map(Into::into))
                .collect();
        }
        found
    }

    /// Whether a text breaks them; NUL breaks every field's.
    pub(super) fn refuse_text(&self, text: &str) -> bool {
        let length = text.chars().count();
        let ignored = self.may_be_zero && text.is_empty();
        text.contains('\0')
            || self.max_len.is_some_and(|most| length > most)
            || self.min_len.is_some_and(|least| length < least && !ignored)
            || (self.is_required && text.is_empty())
            || (self.is_uuid && !ignored && !is_uuid(text))
    }

    /// Whether a number breaks them.
    pub(super) fn refuse_number(&self, number: i64) -> bool {
        self.gte.is_some_and(|least| number < least)
            || self.lte.is_some_and(|most| number > most)
            || self.known.as_ref().is_some_and(|known| !known.contains(&number))
            || self.excluded.contains(&number)
    }
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let lengths: Vec<_> = parts.iter().map(|part| part.len()).collect();
    lengths == [8, 4, 4, 4, 12]
        && parts.iter().all(|part| part.chars().all(|c| c.is_ascii_hexdigit()))
}

fn number(rules: &DynamicMessage, rule: &str) -> Option<i64> {
    if !rules.has_field_by_name(rule) {
        return None;
    }
    match rules.get_field_by_name(rule)?.as_ref() {
        Value::I32(n) => Some((*n).into()),
        Value::U32(n) => Some((*n).into()),
        Value::I64(n) => Some(*n),
        Value::U64(n) => i64::try_from(*n).ok(),
        _ => None,
    }
}
