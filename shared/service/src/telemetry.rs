//! What a process tells of itself while it runs: its log and its traces. Its
//! metrics are asked for, at the admin listener.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::transport::Endpoint;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{ParseError, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::trace::Traces;

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Pretty,
    /// One JSON object a line, for programs.
    Json,
}

/// What is told, and how.
#[derive(Clone, Debug, Args)]
pub struct Telemetry {
    /// What to log: a level, or levels by target, such as `info,sqlx=debug`
    #[arg(
        long = "log",
        env = "CRM_LOG",
        value_name = "FILTER",
        default_value = "info",
        global = true,
        value_parser = filter
    )]
    pub filter: String,
    /// How the log looks
    #[arg(
        long = "log-format",
        env = "CRM_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "pretty",
        global = true
    )]
    pub format: Format,
    /// Where a collector takes traces by OTLP over gRPC; other OTEL_ variables are heeded, too
    #[arg(
        long = "otlp-endpoint",
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        value_name = "URL",
        global = true,
        value_parser = collector
    )]
    pub otlp_endpoint: Option<String>,
}

fn filter(text: &str) -> Result<String, ParseError> {
    EnvFilter::builder().parse(text).map(|_| text.to_owned())
}

/// None at all is as good as no option.
fn collector(text: &str) -> Result<String, tonic::transport::Error> {
    if !text.is_empty() {
        Endpoint::from_shared(text.to_owned())?;
    }
    Ok(text.to_owned())
}

/// The telemetry cannot be started as it is configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TelemetryError {
    #[error("CRM_LOG (--log) cannot be read: {0}")]
    Filter(#[source] ParseError),
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT (--otlp-endpoint) cannot be used: {0}")]
    Endpoint(#[source] opentelemetry_otlp::ExporterBuildError),
}

impl Telemetry {
    /// Starts the log, on standard error, and the traces, if they are wanted.
    /// Call it within the runtime.
    ///
    /// # Errors
    ///
    /// When the filter or the endpoint cannot be read.
    pub(crate) fn start(&self) -> Result<Option<Traces>, TelemetryError> {
        let filter = EnvFilter::builder().parse(&self.filter).map_err(TelemetryError::Filter)?;
        let endpoint = self.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty());
        let traces = endpoint.map(Traces::start).transpose().map_err(TelemetryError::Endpoint)?;
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        let log = tracing_subscriber::fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        let log = match self.format {
            Format::Pretty => log.compact().boxed(),
            // The list of spans has the current one, too.
            Format::Json => log.json().flatten_event(true).with_current_span(false).boxed(),
        };
        let spans = traces.as_ref().map(|traces| {
            tracing_opentelemetry::layer()
                .with_tracer(traces.tracer())
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false)
                .with_filter(filter_fn(is_traced))
        });
        // A filter of the whole is cheaper than one of a layer, which each span
        // asks each time it is entered.
        let log = if spans.is_some() {
            log.with_filter(filter).boxed()
        } else {
            log.and_then(filter).boxed()
        };
        let subscriber = tracing_subscriber::registry().with(log).with(spans);
        // A second start, in a test, keeps the first log.
        let _started = subscriber.try_init();
        Ok(traces)
    }
}

/// Only this project's own spans are traced, and no events: what is in them is
/// known.
fn is_traced(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && *metadata.level() <= Level::INFO && metadata.target().starts_with("crm_")
}
