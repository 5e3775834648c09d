//! The log.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Pretty,
    /// One JSON object a line, for programs.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, Args)]
pub struct Telemetry {
    /// What to log: a level, or levels by target, such as `info,sqlx=debug`
    #[arg(
        long = "log",
        env = "CRM_LOG",
        value_name = "FILTER",
        default_value = "info",
        global = true
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
}

impl Telemetry {
    /// Starts the log, on standard error.
    ///
    /// # Errors
    ///
    /// When the filter cannot be read.
    pub fn start(&self) -> Result<(), ParseError> {
        let filter = EnvFilter::builder().parse(&self.filter)?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        // A second start, in a test, keeps the first log.
        let _started = match self.format {
            Format::Pretty => log.compact().try_init(),
            Format::Json => log.json().flatten_event(true).try_init(),
        };
        Ok(())
    }
}
