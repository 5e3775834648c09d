//! Keyset pages (AIP-158): sizes, and tokens that are bound to their list.

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use crm_auth::TenantId;
use crm_error::Violations;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The page size where none is asked for.
const DEFAULT_SIZE: i64 = 50;
/// The largest page.
const MAX_SIZE: i64 = 1000;

/// A page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// What is in it, in the list's order.
    pub items: Vec<T>,
    /// The tenant's revision that the first page showed.
    pub revision: i64,
    /// Whether another page follows.
    pub more: bool,
}

impl<T> Page<T> {
    /// The token of the page that follows, which begins after the last item;
    /// empty where this is the last page.
    pub fn next_token<P>(&self, binding: &Binding, position: impl FnOnce(&T) -> P) -> String
    where
        P: Serialize + DeserializeOwned,
    {
        let last = self.items.last().filter(|_| self.more);
        let next = last.map(|last| Cursor { revision: self.revision, after: position(last) });
        next.map(|cursor| cursor.encode(binding)).unwrap_or_default()
    }
}

/// Where a page of a list begins that shows the newest first: after this item.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Position {
    /// When the item was created.
    pub create_time: DateTime<Utc>,
    /// Its id.
    pub id: Uuid,
}

/// The most text in one page, in bytes: many clients take no answer of more
/// than 4 MiB. A page with more ends earlier.
pub const MAX_PAGE_BYTES: i64 = 1024 * 1024;

/// A time that PostgreSQL can store: a page token may carry any.
pub fn storable(time: DateTime<Utc>) -> DateTime<Utc> {
    let end = DateTime::from_timestamp(253_402_300_799, 0).unwrap_or(DateTime::UNIX_EPOCH);
    time.clamp(DateTime::UNIX_EPOCH, end)
}

/// How many items a page has: the default for 0, and never more than the
/// maximum. A negative size is left to the field's own rules.
pub fn size(asked: i32) -> i64 {
    match i64::from(asked) {
        ..=0 => DEFAULT_SIZE,
        asked => asked.min(MAX_SIZE),
    }
}

/// What a page token is good for: one list of one tenant with one set of
/// arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding(Vec<u8>);

/// How long a token's checksum is, in bytes.
const CHECKSUM: usize = 16;

impl Binding {
    /// The binding of a method's list with its arguments, page fields aside.
    pub fn new(tenant: TenantId, method: &str, arguments: &[&str]) -> Self {
        Self::of(&tenant.to_string(), method, arguments)
    }

    /// As [`Binding::new`], for a list of the platform's own.
    pub fn platform(method: &str, arguments: &[&str]) -> Self {
        Self::of("", method, arguments)
    }

    fn of(tenant: &str, method: &str, arguments: &[&str]) -> Self {
        let mut hash = Context::new(&SHA256);
        for part in [&[tenant, method], arguments].concat() {
            hash.update(&part.len().to_be_bytes());
            hash.update(part.as_bytes());
        }
        Self(hash.finish().as_ref().to_vec())
    }

    /// What shows that a token was made here, for this list. It keeps nobody
    /// out: whoever may read the list may begin where they like.
    fn checksum(&self, cursor: &[u8]) -> Vec<u8> {
        let mut hash = Context::new(&SHA256);
        hash.update(&self.0);
        hash.update(cursor);
        hash.finish().as_ref()[..CHECKSUM].to_vec()
    }
}

/// Where a page begins, and the revision that the first page showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor<P> {
    /// The tenant's revision at page one.
    pub revision: i64,
    /// The last item of the page before.
    pub after: P,
}

impl<P: Serialize + DeserializeOwned> Cursor<P> {
    /// The token of the page after this cursor: a checksum, and the cursor.
    fn encode(self, binding: &Binding) -> String {
        let cursor = serde_json::to_vec(&(self.revision, self.after)).unwrap_or_default();
        URL_SAFE_NO_PAD.encode([binding.checksum(&cursor), cursor].concat())
    }

    /// Reads the token of a request. An empty one is the first page; one that
    /// is not of this list, or was changed, is a violation.
    pub fn decode(token: &str, binding: &Binding, violations: &mut Violations) -> Option<Self> {
        if token.is_empty() {
            return None;
        }
        let cursor = Self::read(token, binding);
        if cursor.is_none() {
            let text = "The next_page_token of the same list with the same arguments.";
            violations.add("page_token", "PAGE_TOKEN", text);
        }
        cursor
    }

    fn read(token: &str, binding: &Binding) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (checksum, cursor) = bytes.split_at_checked(CHECKSUM)?;
        if checksum != binding.checksum(cursor) && !cfg!(bug_page_token_unbound) {
            return None;
        }
        let (revision, after) = serde_json::from_slice(cursor).ok()?;
        Some(Self { revision, after })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(token: &str, binding: &Binding) -> Option<Cursor<Position>> {
        Cursor::decode(token, binding, &mut Violations::default())
    }

    proptest! {
        #[test]
        fn a_token_is_read_back_and_no_byte_of_it_may_change(
            revision in 0..=i64::MAX,
            millis in 0_i64..4_102_444_800_000,
            id: u128,
            at: prop::sample::Index,
            other: char,
            argument in any::<String>(),
        ) {
            let binding = Binding::platform("ListContacts", &[&argument, "false"]);
            let create_time = DateTime::from_timestamp_millis(millis).unwrap();
            let after = Position { create_time, id: Uuid::from_u128(id) };
            let token = Cursor { revision, after }.encode(&binding);

            let cursor = read(&token, &binding).unwrap();
            prop_assert_eq!((cursor.revision, cursor.after.id), (revision, after.id));
            prop_assert_eq!(cursor.after.create_time, create_time);

            let mut letters: Vec<_> = token.chars().collect();
            let at = at.index(letters.len());
            let is_same = letters[at] == other;
            letters[at] = other;
            let changed: String = letters.iter().collect();
            prop_assert_eq!(read(&changed, &binding).is_some(), is_same);
            let cut: String = token.chars().take(at).collect();
            prop_assert!(read(&cut, &binding).is_none());
            for foreign in [
                Binding::platform("ListContacts", &[&argument, "true"]),
                Binding::platform("ListContacts", &[&format!("{argument}false")]),
                Binding::platform("ListTenants", &[&argument, "false"]),
            ] {
                prop_assert!(read(&token, &foreign).is_none());
            }
        }

        #[test]
        fn any_other_text_is_no_token(text in any::<String>(), bytes: Vec<u8>) {
            let binding = Binding::platform("ListContacts", &[]);

            for text in [text, URL_SAFE_NO_PAD.encode(bytes)] {
                let mut violations = Violations::default();
                let cursor = Cursor::<Position>::decode(&text, &binding, &mut violations);
                prop_assert!(cursor.is_none());
                prop_assert_eq!(violations.is_empty(), text.is_empty());
            }
        }
    }
}
