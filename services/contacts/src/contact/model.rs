//! What a contact is, and its rules.

use chrono::{DateTime, Utc};
use crm_error::Violations;
use crm_service::repeat::RequestKey;
use email_address::{EmailAddress, Options};
use serde_json::Value;
use uuid::Uuid;

use super::error::ContactError;

/// What people write between the digits of a phone number.
const PHONE_FILL: &str = " ()-./";

/// Input to create a contact. Blank texts are absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct NewContact {
    pub(crate) display_name: Option<String>,
    pub(crate) email: Option<String>,
    pub(crate) phone: Option<String>,
    pub(crate) company: Option<String>,
    pub(crate) position: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) metadata: Option<Value>,
}

/// A contact.
#[derive(Clone, Debug)]
pub(crate) struct Contact {
    pub(crate) id: Uuid,
    pub(crate) display_name: String,
    pub(crate) email: Option<String>,
    pub(crate) phone: Option<String>,
    pub(crate) company: Option<String>,
    pub(crate) position: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) metadata: Option<Value>,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) update_time: DateTime<Utc>,
    pub(crate) delete_time: Option<DateTime<Utc>>,
    /// The tenant's revision at which it was last changed.
    pub(crate) revision: i64,
}

/// A write that may be repeated: its method and its request.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) method: &'static str,
    pub(crate) key: RequestKey,
}

/// A field that an update can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    DisplayName,
    Email,
    Phone,
    Company,
    Position,
    Source,
    Metadata,
}

/// What an update changes: these fields, to what `new` has. `violations` is
/// what is wrong with the request already.
#[derive(Clone, Debug)]
pub(crate) struct ContactPatch {
    pub(crate) fields: Vec<Field>,
    pub(crate) new: NewContact,
    pub(crate) violations: Violations,
}

/// Which contact a change is for, and the revision that it must have, if any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) id: Uuid,
    pub(crate) revision: Option<i64>,
}

/// What is done to a contact.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Update(Box<ContactPatch>),
    Delete,
    Undelete,
}

/// Which contacts are listed, and how many.
#[derive(Clone, Debug)]
pub(crate) struct ContactFilter {
    pub(crate) email: Option<String>,
    /// By its digits: see [`phone_key`].
    pub(crate) phone: Option<String>,
    /// What the metadata must contain, all of them.
    pub(crate) metadata: Vec<Value>,
    pub(crate) show_deleted: bool,
    pub(crate) page_size: i64,
}

/// A contact as the change log has it: its public message without revision
/// and etag, and the revision.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) after: Vec<u8>,
    pub(crate) revision: i64,
}

impl NewContact {
    /// Adds what the rules of a contact find wrong; fields are those of the
    /// request.
    pub(crate) fn check(&self, violations: &mut Violations) {
        self.check_name(violations);
        self.check_reachable(violations);
        self.check_addresses(violations);
    }

    fn check_name(&self, violations: &mut Violations) {
        if self.display_name.is_none() {
            violations.add("contact.display_name", "NOT_BLANK", "It must not be blank.");
        }
    }

    fn check_reachable(&self, violations: &mut Violations) {
        if self.email.is_none() && self.phone.is_none() {
            let text = "An email address or a phone number is needed.";
            violations.add("contact.email", "UNREACHABLE", text);
            violations.add("contact.phone", "UNREACHABLE", text);
        }
    }

    fn check_addresses(&self, violations: &mut Violations) {
        if let Some(email) = &self.email
            && !is_email(email)
        {
            violations.add("contact.email", "EMAIL", "An email address (RFC 5321).");
        }
        if let Some(phone) = &self.phone
            && !is_phone(phone)
        {
            violations.add(
                "contact.phone",
                "PHONE",
                "A phone number: 3 to 20 digits, with a leading `+`, blanks and `()-./` as people \
                 write them.",
            );
        }
    }
}

impl Contact {
    /// A new contact. The caller has checked the input.
    pub(crate) fn create(new: NewContact, id: Uuid, now: DateTime<Utc>) -> Self {
        Self {
            id,
            display_name: new.display_name.unwrap_or_default(),
            email: new.email,
            phone: new.phone,
            company: new.company,
            position: new.position,
            source: new.source,
            metadata: new.metadata,
            create_time: now,
            update_time: now,
            delete_time: None,
            revision: 0,
        }
    }
}

impl ContactPatch {
    /// All that is wrong with the request, whatever contact it is for.
    pub(crate) fn faults(&self) -> Violations {
        let mut violations = self.violations.clone();
        let is_named = |field| self.fields.contains(&field);
        let named = NewContact {
            display_name: self.new.display_name.clone(),
            email: self.new.email.clone().filter(|_| is_named(Field::Email)),
            phone: self.new.phone.clone().filter(|_| is_named(Field::Phone)),
            ..NewContact::default()
        };
        if is_named(Field::DisplayName) {
            named.check_name(&mut violations);
        }
        if is_named(Field::Email) && is_named(Field::Phone) {
            named.check_reachable(&mut violations);
        }
        named.check_addresses(&mut violations);
        violations
    }

    /// Makes of the contact what it becomes.
    ///
    /// # Errors
    ///
    /// All that is wrong with the request, and with what the contact becomes.
    fn apply(&self, contact: &mut Contact) -> Result<(), Violations> {
        let mut violations = self.violations.clone();
        let mut all = NewContact {
            display_name: Some(contact.display_name.clone()),
            email: contact.email.take(),
            phone: contact.phone.take(),
            company: contact.company.take(),
            position: contact.position.take(),
            source: contact.source.take(),
            metadata: contact.metadata.take(),
        };
        let new = &self.new;
        for field in &self.fields {
            match field {
                Field::DisplayName => all.display_name.clone_from(&new.display_name),
                Field::Email => all.email.clone_from(&new.email),
                Field::Phone => all.phone.clone_from(&new.phone),
                Field::Company => all.company.clone_from(&new.company),
                Field::Position => all.position.clone_from(&new.position),
                Field::Source => all.source.clone_from(&new.source),
                Field::Metadata => all.metadata.clone_from(&new.metadata),
            }
        }
        all.check(&mut violations);
        contact.display_name = all.display_name.unwrap_or_default();
        contact.email = all.email;
        contact.phone = all.phone;
        contact.company = all.company;
        contact.position = all.position;
        contact.source = all.source;
        contact.metadata = all.metadata;
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }
}

fn is_email(text: &str) -> bool {
    let options = Options::default().without_display_text().without_domain_literal();
    !text.chars().any(char::is_control) && EmailAddress::parse_with_options(text, options).is_ok()
}

impl Contact {
    /// Applies a change.
    ///
    /// # Errors
    ///
    /// When the contact's state or the rules of a contact forbid it.
    pub(crate) fn apply(
        &mut self,
        change: &Change,
        now: DateTime<Utc>,
    ) -> Result<(), ContactError> {
        match (change, self.delete_time) {
            (Change::Update(_) | Change::Delete, Some(_)) => {
                return Err(ContactError::Deleted(self.id));
            }
            (Change::Undelete, None) => return Err(ContactError::NotDeleted(self.id)),
            (Change::Update(patch), None) => patch.apply(self).map_err(ContactError::Invalid)?,
            (Change::Delete, None) => self.delete_time = Some(now),
            (Change::Undelete, Some(_)) => self.delete_time = None,
        }
        self.update_time = self.update_time.max(now);
        Ok(())
    }
}

/// What two spellings of one phone number have in common: the digits, and a
/// leading `+`.
pub(crate) fn phone_key(text: &str) -> String {
    text.chars().filter(|c| !PHONE_FILL.contains(*c)).collect()
}

fn is_phone(text: &str) -> bool {
    let number = text.strip_prefix('+').unwrap_or(text);
    let digits = number.chars().filter(char::is_ascii_digit).count();
    (3..=20).contains(&digits)
        && number.starts_with(|c: char| c.is_ascii_digit() || c == '(')
        && number.chars().all(|c| c.is_ascii_digit() || PHONE_FILL.contains(c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_phone_number_has_one_key_however_it_is_written(
            plus: bool,
            digits in "[0-9]{3,20}",
            fill in proptest::collection::vec("[ ()./-]{0,3}", 20),
        ) {
            let key = format!("{}{digits}", if plus { "+" } else { "" });
            let spread = digits.chars().zip(&fill).map(|(digit, fill)| format!("{digit}{fill}"));
            let written = format!("{}{}", if plus { "+" } else { "" }, spread.collect::<String>());

            prop_assert!(is_phone(&written), "{}", written);
            prop_assert_eq!(phone_key(&written), key);
        }

        #[test]
        fn what_is_a_phone_number_has_a_key_of_digits(text in any::<String>(), near in "[+0-9 ()./x-]{0,30}") {
            for text in [text, near] {
                let key = phone_key(&text);

                prop_assert_eq!(&phone_key(&key), &key);
                if is_phone(&text) {
                    let digits = key.strip_prefix('+').unwrap_or(&key);
                    prop_assert!((3..=20).contains(&digits.len()));
                    prop_assert!(digits.bytes().all(|digit| digit.is_ascii_digit()));
                }
            }
        }

        #[test]
        fn an_email_address_has_one_at_and_no_line(text in any::<String>(), near in "[a-z@<>,. \n-]{0,20}") {
            for text in [text, near, format!("{}@example.com", "a")] {
                if is_email(&text) {
                    prop_assert!(text.contains('@') && !text.contains(['\n', '\r', '\0', '<']));
                }
            }
        }
    }

    fn faults(new: &NewContact) -> Vec<(String, &'static str)> {
        let mut violations = Violations::default();
        new.check(&mut violations);
        violations.into_vec().into_iter().map(|v| (v.field, v.reason)).collect()
    }

    fn named(email: Option<&str>, phone: Option<&str>) -> NewContact {
        NewContact {
            display_name: Some("Ada".to_owned()),
            email: email.map(str::to_owned),
            phone: phone.map(str::to_owned),
            ..NewContact::default()
        }
    }

    #[test]
    fn a_contact_needs_a_name_and_an_address_and_hears_of_both_at_once() {
        let found = faults(&NewContact::default());

        let fields: Vec<_> = found.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, ["contact.display_name", "contact.email", "contact.phone"]);
    }

    #[test]
    fn either_address_suffices_and_each_is_checked() {
        assert_eq!(faults(&named(Some("ada@example.com"), None)), []);
        assert_eq!(faults(&named(None, Some("+44 (0)20 7946-0958"))), []);
        for email in [
            "ada",
            "@example.com",
            "ada@",
            "a b@example.com",
            "ada@example.com,bob@example.com",
            "Ada <ada@example.com>",
            "x\r\nBcc: a <ada@example.com>",
            "ada@example.com\n",
        ] {
            assert_eq!(
                faults(&named(Some(email), None)),
                [("contact.email".to_owned(), "EMAIL")],
                "{email}"
            );
        }
        for phone in ["12", "phone", "+", "1+23", "1234567890123456789012", "-123"] {
            assert_eq!(
                faults(&named(None, Some(phone))),
                [("contact.phone".to_owned(), "PHONE")],
                "{phone}"
            );
        }
    }
}
