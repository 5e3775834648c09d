//! What bad input does: it is refused in the caller's terms, or kept to the
//! bit. The cases come from the descriptors: every field of every request gets
//! every hostile value of its kind.

#![expect(
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "counts are shown, and protobuf has more kinds than are used"
)]

mod catalogue;
mod combined;
mod framing;
mod hostile;
mod judge;
mod metadata;
mod places;
mod round_trip;
mod rules;
mod send;
mod subject;
mod texts;
mod values;
mod verdicts;
mod wire;
mod written;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once};

use judge::Outcome;

/// Panics outside of tests, which a server answers with INTERNAL at best.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts what was tried, and keeps what went wrong.
#[derive(Debug, Default)]
struct Tally {
    outcomes: Mutex<BTreeMap<String, usize>>,
    faults: Mutex<Vec<String>>,
}

impl Tally {
    fn new() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                if !panic.location().is_some_and(|at| at.file().contains("tests/")) {
                    PANICS.fetch_add(1, Ordering::Relaxed);
                }
                usual(panic);
            }));
        });
        Self::default()
    }

    fn count(&self, outcome: &Outcome) {
        let name = match outcome {
            Outcome::Ok => "OK".to_owned(),
            Outcome::Malformed => "MALFORMED_REQUEST".to_owned(),
            Outcome::Invalid(_) => "INVALID_FIELDS".to_owned(),
            Outcome::Other(reason) => reason.clone(),
        };
        *self.outcomes.lock().unwrap().entry(name).or_default() += 1;
    }

    fn fault(&self, fault: String) {
        self.faults.lock().unwrap().push(fault);
    }

    /// Prints the counts; there must be no fault.
    fn finish(self, what: &str) {
        let outcomes = self.outcomes.into_inner().unwrap();
        let total: usize = outcomes.values().sum();
        println!("{what}: {total} cases: {outcomes:?}");
        let faults = self.faults.into_inner().unwrap();
        let shown = faults.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
        assert!(faults.is_empty(), "{} of {total} cases:\n{shown}", faults.len());
        assert_eq!(PANICS.load(Ordering::Relaxed), 0, "the suite panicked");
        assert!(total > 0, "nothing was tried");
    }
}
