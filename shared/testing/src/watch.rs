//! What no tenant may see of another, and no log of any: looked for in every
//! answer that a test's client gets, and in every event and span of the suite.
//!
//! - A resource has one tenant: the one that was first told its name. Names are
//!   UUIDs, so that every resource of every test is a canary by itself.
//! - A text with `canary-` and a tenant's id may be answered to that tenant
//!   alone, and stands in no log. One that ends in `-registry` is of the
//!   registry, whose operators may read it.
//!
//! What is found ends the test program: a test that looks elsewhere, or a task
//! whose panic nobody sees, would hide it.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use http::HeaderMap;
use uuid::Uuid;

const CANARY: &[u8] = b"canary-";
const REGISTRY: &[u8] = b"-registry";
/// The collections of tenants, as they stand before an id.
const COLLECTIONS: [&[u8]; 3] = [b"contacts/", b"conversations/", b"messages/"];
/// As long as the longest thing that is looked for.
pub(crate) const LONGEST: usize = 64;

static OWNERS: Mutex<Option<HashMap<Uuid, Uuid>>> = Mutex::new(None);
static ANSWERS: AtomicU64 = AtomicU64::new(0);
static NAMES: AtomicU64 = AtomicU64::new(0);
static RECORDS: AtomicU64 = AtomicU64::new(0);

/// What was looked at in this test program so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Answers of calls, refusals included.
    pub answers: u64,
    /// Names of resources in answers to tenants.
    pub names: u64,
    /// Events, spans, and lines of programs' logs.
    pub records: u64,
}

/// Counts what was looked at.
pub fn watched() -> Watched {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Watched { answers: read(&ANSWERS), names: read(&NAMES), records: read(&RECORDS) }
}

/// The text that tells whose it is, wherever it turns up.
pub fn canary(tenant: Uuid) -> String {
    format!("canary-{}", tenant.as_simple())
}

/// As [`canary`], for what the registry keeps of the tenant.
pub fn registry_canary(tenant: Uuid) -> String {
    format!("{}-registry", canary(tenant))
}

/// Who gets an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Someone with the token of a tenant.
    Tenant(Uuid),
    /// An operator, a service, or someone without a token.
    Other,
}

impl Reader {
    /// Who a call is from. Whether the token is good is of no interest: a bad
    /// one gets no answer.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let claims = || {
            let token = headers.get("authorization")?.to_str().ok()?.split('.').nth(1)?;
            let claims = URL_SAFE_NO_PAD.decode(token).ok()?;
            let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
            claims["tid"].as_str()?.parse().ok()
        };
        claims().map_or(Self::Other, Self::Tenant)
    }

    /// Looks at a part of an answer's messages.
    pub(crate) fn read(self, bytes: &[u8]) {
        let found = foreign_canary(self, bytes).or_else(|| {
            let Self::Tenant(tenant) = self else { return None };
            let mut owners = OWNERS.lock().unwrap();
            foreign_name(tenant, bytes, owners.get_or_insert_default())
        });
        if let Some(found) = found {
            stop(&format!("an answer to {self:?} has {found}"));
        }
    }

    /// Looks at the headers or the trailers of an answer: refusals stand there.
    pub(crate) fn read_headers(self, headers: &HeaderMap) {
        for (name, value) in headers {
            let coded = name.as_str().ends_with("-bin");
            let decoded = coded.then(|| STANDARD_NO_PAD.decode(value.as_bytes()).ok()).flatten();
            let bytes = decoded.as_deref().unwrap_or(value.as_bytes());
            if let Some(found) = foreign_canary(self, bytes) {
                stop(&format!("the {name} of an answer to {self:?} has {found}"));
            }
        }
    }
}

/// Counts an answer.
pub(crate) fn answered() {
    ANSWERS.fetch_add(1, Ordering::Relaxed);
}

/// Looks at something that is told of the suite, in which no canary may be.
pub(crate) fn told(text: &str) {
    RECORDS.fetch_add(1, Ordering::Relaxed);
    if let Some((tenant, _)) = canaries(text.as_bytes()).next() {
        stop(&format!("the log has a canary of {tenant}: {text}"));
    }
}

/// Looks at the log of a program: nothing of any tenant may stand there.
pub fn read_log(log: &str) {
    log.lines().for_each(told);
}

/// A canary that this reader may not see.
fn foreign_canary(reader: Reader, bytes: &[u8]) -> Option<String> {
    let (tenant, _) = canaries(bytes).find(|(tenant, is_registry)| match reader {
        Reader::Tenant(own) => own != *tenant || *is_registry,
        Reader::Other => !is_registry,
    })?;
    Some(format!("a canary of {tenant}"))
}

/// The tenants whose canaries are in here, and whether they are the registry's.
fn canaries(bytes: &[u8]) -> impl Iterator<Item = (Uuid, bool)> {
    occurrences(bytes, &[CANARY]).filter_map(|(_, rest)| {
        let (id, rest) = rest.split_at_checked(32)?;
        let id = Uuid::try_parse_ascii(id).ok()?;
        Some((id, rest.starts_with(REGISTRY)))
    })
}

/// A name that was told to another tenant first.
fn foreign_name(tenant: Uuid, bytes: &[u8], owners: &mut HashMap<Uuid, Uuid>) -> Option<String> {
    for (text, rest) in occurrences(bytes, &COLLECTIONS) {
        let id = rest.split_at_checked(36).map(|(id, _)| Uuid::try_parse_ascii(id));
        let Some(Ok(id)) = id else { continue };
        NAMES.fetch_add(1, Ordering::Relaxed);
        let owner = *owners.entry(id).or_insert(tenant);
        if owner != tenant {
            let collection = String::from_utf8_lossy(text);
            return Some(format!("{collection}{id}, which is of {owner}"));
        }
    }
    None
}

/// Where one of these texts stands, and what follows it.
fn occurrences<'b>(
    bytes: &'b [u8],
    texts: &'b [&'static [u8]],
) -> impl Iterator<Item = (&'static [u8], &'b [u8])> {
    // Tests are not optimized, and this is done for every answer: one look at
    // most bytes.
    let starts = bytes.iter().enumerate().filter(|(_, byte)| matches!(byte, b'c' | b'm'));
    starts.filter_map(move |(at, _)| {
        let here = &bytes[at..];
        let text = texts.iter().find(|text| here.starts_with(text))?;
        Some((*text, &here[text.len()..]))
    })
}

fn stop(what: &str) -> ! {
    // Past the capture of the tests' own output, which ends with the program.
    let text = format!("\nisolation is broken: {what}\n");
    let _written = std::io::stderr().write_all(text.as_bytes());
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn sees(reader: Reader, text: &str) -> bool {
        foreign_canary(reader, text.as_bytes()).is_some()
    }

    #[test]
    fn a_canary_is_for_its_tenant_alone_and_the_registrys_for_operators() {
        let text = |canary: String| format!("\u{1}{canary}@example.com");

        assert!(!sees(Reader::Tenant(OWN), &text(canary(OWN))));
        assert!(sees(Reader::Tenant(OWN), &text(canary(OTHER))));
        assert!(sees(Reader::Tenant(OWN), &text(canary(OWN) + &canary(OTHER))));
        assert!(sees(Reader::Tenant(OWN), &text(registry_canary(OWN))));
        assert!(sees(Reader::Other, &text(canary(OWN))));
        assert!(!sees(Reader::Other, &text(registry_canary(OWN))));
        assert!(!sees(Reader::Other, "canary-token"));
    }

    #[test]
    fn a_name_belongs_to_the_tenant_that_was_told_it_first() {
        let mut owners = HashMap::new();
        let name = format!("conversations/{OWN}/messages/{OTHER}");
        let mut read = |tenant, text: &str| foreign_name(tenant, text.as_bytes(), &mut owners);

        assert_eq!(read(OWN, &name), None);
        assert_eq!(read(OWN, &name), None);
        assert!(read(OTHER, &name).is_some());
        assert!(read(OTHER, &format!("contacts/{OWN}")).is_some());
        assert_eq!(read(OTHER, "contacts/x and contacts/"), None);
    }
}
