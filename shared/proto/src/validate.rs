//! The field rules (`buf.validate`) of every message. They only collect; the
//! caller answers all violations at once.

use std::fmt;

use prost_types::Timestamp;

/// The first second that a Timestamp can be, 0001-01-01T00:00:00Z, and the
/// last, 9999-12-31T23:59:59Z (google/protobuf/timestamp.proto).
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// How much of a map's key a path shows, in characters.
const MAX_KEY: usize = 32;

/// A field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's path in the request, such as `contact.display_name`.
    pub field: String,
    /// The rule, in upper snake case, such as `STRING_MAX_LEN`.
    pub reason: &'static str,
    /// What would be right, as a sentence.
    pub description: String,
}

/// All that is wrong with a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// Adds a violation.
    pub fn add(
        &mut self,
        field: impl Into<String>,
        reason: &'static str,
        description: impl Into<String>,
    ) {
        self.0.push(Violation { field: field.into(), reason, description: description.into() });
    }

    /// Whether a field has been found wrong already.
    pub fn has(&self, field: &str) -> bool {
        self.0.iter().any(|violation| violation.field == field)
    }

    /// Keeps only the violations of fields that are looked at.
    pub fn retain(&mut self, is_looked_at: impl Fn(&str) -> bool) {
        self.0.retain(|violation| is_looked_at(&violation.field));
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The violations, in the order in which they were found.
    pub fn into_vec(self) -> Vec<Violation> {
        self.0
    }
}

/// A message whose fields have rules.
pub trait Validate {
    /// Adds what is wrong with the message, which stands at `at`.
    fn validate(&self, at: &Path<'_>, out: &mut Violations);
}

/// Where a field stands in a request. It becomes text only for a violation.
#[derive(Clone, Copy, Debug)]
pub enum Path<'a> {
    /// The request itself.
    Root,
    /// A field of the message at the parent.
    Field(&'a Path<'a>, &'a str),
    /// An item of the list at the parent.
    Item(&'a Path<'a>, usize),
    /// A value of the map at the parent.
    Key(&'a Path<'a>, &'a str),
}

impl<'a> Path<'a> {
    /// The path of a field of this message.
    pub fn field(&'a self, name: &'a str) -> Path<'a> {
        Path::Field(self, name)
    }

    /// The path of an item of this list.
    pub fn item(&'a self, index: usize) -> Path<'a> {
        Path::Item(self, index)
    }

    /// The path of a value of this map.
    pub fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Item(parent, index) => write!(f, "{parent}[{index}]"),
            Path::Key(parent, key) => {
                // A path is a hint for people, and travels in metadata.
                let end = key.char_indices().nth(MAX_KEY).map_or(key.len(), |(end, _)| end);
                write!(f, "{parent}[{:?}]", &key[..end])
            }
        }
    }
}

/// Whether it is there: no other rule is asked about what is not.
fn required(present: bool, at: &Path<'_>, out: &mut Violations) -> bool {
    if !present {
        out.add(at.to_string(), "REQUIRED", "It is required.");
    }
    present
}

fn no_nul(value: &str, at: &Path<'_>, out: &mut Violations) {
    if value.contains('\0') {
        out.add(at.to_string(), "NO_NUL", "No NUL character.");
    }
}

/// A Timestamp has bounds of its own, without any rule.
fn timestamp(value: Option<&Timestamp>, at: &Path<'_>, out: &mut Violations) {
    let is_time = |time: &Timestamp| {
        TIMESTAMP_SECONDS.contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos)
    };
    if !value.is_none_or(is_time) {
        let text = "From year 1 to 9999, with 0 to 999,999,999 nanos.";
        out.add(at.to_string(), "TIMESTAMP", text);
    }
}

fn min_len(value: &str, limit: usize, at: &Path<'_>, out: &mut Violations) {
    if value.chars().count() < limit {
        out.add(at.to_string(), "STRING_MIN_LEN", format!("At least {limit} characters."));
    }
}

fn max_len(value: &str, limit: usize, at: &Path<'_>, out: &mut Violations) {
    // A string of `limit` bytes has no more characters than that.
    if value.len() > limit && value.chars().count() > limit {
        out.add(at.to_string(), "STRING_MAX_LEN", format!("At most {limit} characters."));
    }
}

fn uuid(value: &str, at: &Path<'_>, out: &mut Violations) {
    let well_formed = value.len() == 36
        && value.bytes().enumerate().all(|(i, byte)| match i {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    if !well_formed {
        out.add(at.to_string(), "STRING_UUID", "A UUID of 36 characters.");
    }
}

fn gte(value: i64, limit: i64, at: &Path<'_>, out: &mut Violations) {
    if value < limit {
        out.add(at.to_string(), "NUMBER_GTE", format!("At least {limit}."));
    }
}

fn lte(value: i64, limit: i64, at: &Path<'_>, out: &mut Violations) {
    if value > limit {
        out.add(at.to_string(), "NUMBER_LTE", format!("At most {limit}."));
    }
}

fn defined_only(value: i32, known: &[i32], at: &Path<'_>, out: &mut Violations) {
    if !known.contains(&value) {
        out.add(at.to_string(), "ENUM_DEFINED_ONLY", "One of the defined values.");
    }
}

fn not_in(value: i32, excluded: &[i32], at: &Path<'_>, out: &mut Violations) {
    if excluded.contains(&value) {
        out.add(at.to_string(), "ENUM_NOT_IN", "It must be specified.");
    }
}

fn min_items(count: usize, limit: usize, at: &Path<'_>, out: &mut Violations) {
    if count < limit {
        out.add(at.to_string(), "MIN_ITEMS", format!("At least {limit} entries."));
    }
}

fn max_items(count: usize, limit: usize, at: &Path<'_>, out: &mut Violations) {
    if count > limit {
        out.add(at.to_string(), "MAX_ITEMS", format!("At most {limit} entries."));
    }
}

include!(concat!(env!("OUT_DIR"), "/validate.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contacts::v1::{Contact, CreateContactRequest};
    use crate::messaging::v1::{Conversation, CreateConversationRequest, Message};
    use crate::registry::v1::{CreateTenantRequest, ReportActivityRequest, Tenant, TenantCalls};

    fn faults(message: &impl Validate) -> Vec<(String, &'static str)> {
        let mut out = Violations::default();
        message.validate(&Path::Root, &mut out);
        out.into_vec().into_iter().map(|v| (v.field, v.reason)).collect()
    }

    #[test]
    fn every_broken_rule_is_named_with_its_path() {
        let request = CreateContactRequest {
            contact: Some(Contact {
                display_name: "é".repeat(256),
                email: "a".repeat(255),
                phone: "1".repeat(51),
                ..Contact::default()
            }),
            request_id: "no uuid".to_owned(),
            validate_only: false,
        };

        let found = faults(&request);

        let expected = [
            ("contact.display_name".to_owned(), "STRING_MAX_LEN"),
            ("contact.phone".to_owned(), "STRING_MAX_LEN"),
            ("request_id".to_owned(), "STRING_UUID"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_missing_message_is_required_and_an_absent_request_id_is_fine() {
        let found = faults(&CreateContactRequest::default());

        assert_eq!(found, [("contact".to_owned(), "REQUIRED")]);
    }

    #[test]
    fn items_beyond_the_most_and_messages_of_answers_are_not_looked_at() {
        let report = ReportActivityRequest {
            instance: "x".to_owned(),
            tenants: vec![TenantCalls::default(); 100_000],
            ..ReportActivityRequest::default()
        };
        let conversation = CreateConversationRequest {
            conversation: Some(Conversation {
                contact: "contacts/x".to_owned(),
                messages: vec![Message::default(); 100_000],
                ..Conversation::default()
            }),
            ..CreateConversationRequest::default()
        };

        assert_eq!(faults(&report).len(), 1001);
        assert_eq!(faults(&conversation), []);
    }

    #[test]
    fn a_time_is_within_its_bounds() {
        let found = |seconds, nanos| {
            let last_call_time = Some(Timestamp { seconds, nanos });
            faults(&TenantCalls {
                tenant: "tenants/x".to_owned(),
                last_call_time,
                ..TenantCalls::default()
            })
        };

        for (seconds, nanos) in [(0, 0), (-62_135_596_800, 0), (253_402_300_799, 999_999_999)] {
            assert_eq!(found(seconds, nanos), [], "{seconds} {nanos}");
        }
        for (seconds, nanos) in [
            (0, -1),
            (0, 1_000_000_000),
            (253_402_300_800, 0),
            (-62_135_596_801, 999_999_999),
            (i64::MIN, i32::MIN),
        ] {
            let wrong = [("last_call_time".to_owned(), "TIMESTAMP")];
            assert_eq!(found(seconds, nanos), wrong, "{seconds} {nanos}");
        }
    }

    #[test]
    fn keys_and_values_of_maps_are_checked() {
        let labels = [(String::new(), "x".repeat(256))].into();
        let request = CreateTenantRequest {
            tenant: Some(Tenant { labels, kind: 9, ..Tenant::default() }),
            ..CreateTenantRequest::default()
        };

        let found = faults(&request);

        let reasons: Vec<_> = found.iter().map(|(_, reason)| *reason).collect();
        assert_eq!(reasons, ["ENUM_DEFINED_ONLY", "STRING_MIN_LEN", "STRING_MAX_LEN"]);
        assert_eq!(found[1].0, "tenant.labels[\"\"]");
    }
}
