//! Between messages and contacts.

use crm_error::{ApiError, Violations};
use crm_proto::contacts::v1 as pb;
use crm_service::mask::masked;
use crm_service::open::settle;
use crm_service::page::{self, Binding, Page, Position};
use crm_service::text::present;
use crm_service::{etag, filter, names};
use prost::Message as _;
use serde_json::Value;

use crate::contact::{
    Contact, ContactError, ContactFilter, ContactPatch, Field, NewContact, Recorded, Target,
    phone_key, read_metadata, recorded_contact,
};

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

impl From<Contact> for pb::Contact {
    fn from(contact: Contact) -> Self {
        let revision = contact.revision;
        with_revision(recorded_contact(contact), revision)
    }
}

/// The message of a contact that has not been created: it has no name.
pub(super) fn preview(contact: Contact) -> pb::Contact {
    pb::Contact {
        name: String::new(),
        initial_conversation: String::new(),
        ..recorded_contact(contact)
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
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
}
