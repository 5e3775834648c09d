//! Several faults in one request: one answer names all of them.

use std::collections::BTreeSet;

use futures_util::StreamExt as _;
use futures_util::stream;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, Value};

use super::Tally;
use super::catalogue::Catalogue;
use super::hostile::{self, Verdict, value_at};
use super::judge::{self, Outcome};
use super::places::{Place, places};
use super::subject::{Subject, subjects_in_one_tenant};
use super::wire;

/// Methods that are tried at the same time.
const AT_ONCE: usize = 8;
/// Larger values say nothing more when they are combined.
const MAX_BYTES: usize = 2000;
/// How many faults an answer names (`crm_error`).
const MAX_NAMED: usize = 25;

/// The fault that only the database knows of, once the request is right.
const NEEDS_STATE: &str = "FUTURE_REVISION";

type Faults = BTreeSet<(String, String)>;

/// A value that is wrong, and what is said of it alone.
struct Fault {
    place: Place,
    bytes: Vec<u8>,
    named: Faults,
}

impl Fault {
    /// Whether a request can have both: neither is a part of the other, nor
    /// mends it, as a phone number does where an email address is missing.
    fn goes_with(&self, other: &Self) -> bool {
        let says_of = |fault: &Self, place: &Place| {
            fault.named.iter().any(|(field, _)| *field == place.path())
        };
        !self.place.overlaps(&other.place)
            && !says_of(self, &other.place)
            && !says_of(other, &self.place)
    }
}

#[tokio::test]
async fn one_answer_names_every_fault_of_a_request() {
    let subjects = subjects_in_one_tenant().await;
    let catalogue = Catalogue::read(&subjects[0].world.tenant.tenant.database).await;
    let tally = Tally::new();

    let counts: Vec<_> = stream::iter(&subjects)
        .map(|subject| combine(subject, &catalogue, &tally))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;

    let faults: usize = counts.iter().sum();
    println!("{faults} faults of {} methods", subjects.len());
    assert!(faults > 100, "faults are not found any more: {faults}");
    tally.finish("combined faults");
}

async fn combine(subject: &Subject, catalogue: &Catalogue, tally: &Tally) -> usize {
    let base = full(subject);
    let faults = faults(subject, &base, catalogue).await;
    let mut attempts: Vec<Vec<&Fault>> = Vec::new();
    for (index, first) in faults.iter().enumerate() {
        let others = faults[index + 1..].iter().filter(|other| first.goes_with(other));
        attempts.extend(others.map(|other| vec![first, other]));
    }
    let mut everything: Vec<&Fault> = Vec::new();
    for fault in &faults {
        if everything.iter().all(|other| other.goes_with(fault)) {
            everything.push(fault);
        }
    }
    attempts.push(everything);
    for attempt in attempts.into_iter().filter(|attempt| attempt.len() > 1) {
        match try_together(subject, &base, &attempt, catalogue).await {
            Ok(outcome) => tally.count(&outcome),
            Err(fault) => tally.fault(format!("{}: {fault}", subject.name())),
        }
    }
    faults.len()
}

/// One value for each thing that can be said of each field.
async fn faults(subject: &Subject, base: &DynamicMessage, catalogue: &Catalogue) -> Vec<Fault> {
    let mut found: Vec<Fault> = Vec::new();
    for place in places(&subject.method.input()) {
        if !subject.looks_at(&place) || place.path() == "validate_only" {
            continue;
        }
        let mut values: Vec<_> = hostile::values(&place, &value_at(base, &place));
        if place.path() == "update_mask" {
            // The fields stay named, so that they are looked at.
            let paths = maskable(subject).into_iter().chain(["nope".to_owned()]);
            let paths: Vec<_> = paths.map(|path| wire::bytes(1, path.as_bytes())).collect();
            values.truncate(1);
            values[0].bytes = wire::bytes(place.field().number(), &paths.concat());
        }
        for value in values {
            if value.verdict == Verdict::Malformed || value.bytes.len() > MAX_BYTES {
                continue;
            }
            let request = subject.encode(base, &[(place.0.as_slice(), &value.bytes)]);
            let Ok(answer) = subject.send(&request).await else { continue };
            let Ok(Outcome::Invalid(named)) = judge::outcome(&answer, catalogue) else { continue };
            let needs_state = named.iter().any(|(_, reason)| reason == NEEDS_STATE);
            if !needs_state && found.iter().all(|fault| fault.named != named) {
                found.push(Fault { place: place.clone(), bytes: value.bytes, named });
            }
        }
    }
    found
}

async fn try_together(
    subject: &Subject,
    base: &DynamicMessage,
    faults: &[&Fault],
    catalogue: &Catalogue,
) -> Result<Outcome, String> {
    let values: Vec<_> =
        faults.iter().map(|fault| (fault.place.0.as_slice(), fault.bytes.as_slice())).collect();
    let answer = subject.send(&subject.encode(base, &values)).await?;
    let outcome = judge::outcome(&answer, catalogue)?;
    let wanted: Faults = faults.iter().flat_map(|fault| fault.named.clone()).collect();
    let Outcome::Invalid(named) = &outcome else {
        return Err(format!("{wanted:?} together are answered {outcome:?}"));
    };
    let missing: Vec<_> = wanted.difference(named).collect();
    if missing.is_empty() || (named.len() >= MAX_NAMED && named.is_subset(&wanted)) {
        return Ok(outcome);
    }
    Err(format!("of {wanted:?} these are not named: {missing:?}"))
}

/// The example, with every field that a caller may choose, and named in the
/// mask of an update.
fn full(subject: &Subject) -> DynamicMessage {
    let mut message = subject.example.clone();
    if !subject.is_update() {
        return message;
    }
    let output = subject.method.descriptor.output();
    let input = subject.method.input();
    let resource = input.fields().find(|field| field.kind().as_message() == Some(&output)).unwrap();
    let mut inner = message.get_field(&resource).as_message().cloned().unwrap();
    let named = maskable(subject);
    for field in output.fields().filter(|field| named.contains(&field.name().to_owned())) {
        inner.set_field(&field, valid(&field));
    }
    message.set_field(&resource, Value::Message(inner));
    subject.mask(&mut message, named);
    message
}

fn maskable(subject: &Subject) -> Vec<String> {
    let places = places(&subject.method.input());
    let fields = places.iter().filter(|place| place.0.len() == 2 && place.is_maskable());
    fields.map(|place| place.field().name().to_owned()).collect()
}

fn valid(field: &FieldDescriptor) -> Value {
    match field.kind() {
        _ if field.is_map() => Value::Map(std::collections::HashMap::new()),
        Kind::String if field.name() == "email" => Value::String("ada@example.com".to_owned()),
        Kind::String if field.name() == "phone" => Value::String("+44 20 7946 0958".to_owned()),
        Kind::String => Value::String("Ada".to_owned()),
        Kind::Enum(_) => Value::EnumNumber(1),
        Kind::Int32 => Value::I32(1),
        _ => Value::default_value_for_field(field),
    }
}
