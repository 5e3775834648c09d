//! One hostile value at a time.

use futures_util::StreamExt as _;
use futures_util::stream;

use super::Tally;
use super::catalogue::Catalogue;
use super::hostile::{self, Hostile, Verdict};
use super::judge::{self, Outcome};
use super::places::{Place, places};
use super::round_trip::check_round_trip;
use super::subject::{Subject, subjects};

/// Methods that are tried at the same time.
const AT_ONCE: usize = 8;

#[tokio::test]
async fn every_hostile_value_of_every_field_is_refused_by_name_or_kept_to_the_bit() {
    let subjects = subjects().await;
    let catalogue = Catalogue::read(&subjects[0].world.tenant.tenant.database).await;
    let tally = Tally::new();

    let fields: Vec<_> = stream::iter(&subjects)
        .map(|subject| try_all(subject, &catalogue, &tally))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;

    println!(
        "{} methods, {} fields, {} words of the catalogue",
        subjects.len(),
        fields.iter().sum::<usize>(),
        catalogue.len()
    );
    tally.finish("hostile values");
}

/// Every value of every field of one method, one after the other: what was
/// written is what is read.
async fn try_all(subject: &Subject, catalogue: &Catalogue, tally: &Tally) -> usize {
    let places = places(&subject.method.input());
    for place in &places {
        for value in hostile::values(place, &hostile::value_at(&subject.example, place)) {
            if is_left_out(subject, place, &value) {
                continue;
            }
            match try_one(subject, place, &value, catalogue).await {
                Ok(outcome) => tally.count(&outcome),
                Err(fault) => {
                    let (method, path) = (subject.name(), place.path());
                    tally.fault(format!("{method}, {path}, {}: {fault}", value.name));
                }
            }
        }
    }
    places.len()
}

/// What would be done for real, or go to other machines.
fn is_left_out(subject: &Subject, place: &Place, value: &Hostile) -> bool {
    let is_flag = place.path() == "validate_only";
    is_flag && (subject.is_real() || value.name == "missing")
}

async fn try_one(
    subject: &Subject,
    place: &Place,
    value: &Hostile,
    catalogue: &Catalogue,
) -> Result<Outcome, String> {
    let request = subject.request(place, &value.bytes);
    let answer = subject.send(&request).await?;
    let outcome = judge::outcome(&answer, catalogue)?;
    let is_ignored = value.verdict == Verdict::Refused && !subject.looks_at(place);
    let verdict = if is_ignored { Verdict::Open } else { value.verdict };
    judge::compare(&outcome, verdict, &place.path())?;
    if answer.is_ok() {
        check_round_trip(subject, place, &request, &answer).await?;
    }
    Ok(outcome)
}
