//! The suite's log, as far as it could be written: every field of every event
//! and span is looked at, whatever becomes of it.

use std::fmt::{Debug, Write as _};
use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::watch::told;

/// Looks at whatever the suite of this test program tells of itself, down to
/// what an operator sees with `CRM_LOG=debug`. What carries bytes without
/// knowing them tells much, and is left out; the programs that tests start are
/// looked at in full.
pub(crate) fn watch() {
    let carriers = ["h2", "hyper", "hyper_util", "tower"].map(|of| (of, LevelFilter::INFO));
    let targets = Targets::new().with_default(LevelFilter::DEBUG).with_targets(carriers);
    let subscriber = tracing_subscriber::registry().with(Watch.with_filter(targets));
    // A second suite in one program has the same.
    let _started = subscriber.try_init();
}

/// The events of the suite whose target is `security`.
static SECURITY: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What the suite of this test program logged with the target `security`.
pub fn security_events() -> Vec<String> {
    SECURITY.lock().unwrap().clone()
}

struct Watch;

impl<S: Subscriber> Layer<S> for Watch {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        let mut text = Text::default();
        attributes.record(&mut text);
        told(&text.0);
    }

    fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        values.record(&mut text);
        told(&text.0);
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        told(&text.0);
        if event.metadata().target() == "security" {
            SECURITY.lock().unwrap().push(text.0);
        }
    }
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _written = write!(self.0, " {field}={value:?}");
    }
}
