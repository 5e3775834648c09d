//! Measures the suite beside PostgreSQL's own pgbench, in the same run and in
//! turns, and prints one table. It asserts nothing about time.

mod client;
mod cpu;
mod flood;
mod measure;
mod pgbench;
mod readings;
mod report;
mod suite;

use std::error::Error;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::measure::Bench;
use crate::pgbench::Pgbench;
use crate::report::Row;
use crate::suite::Suite;

type Failure = Box<dyn Error + Send + Sync>;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    GetContact,
    CreateContact,
    CreateTenant,
    ColdTenant,
    ManyTenants,
    NoisyNeighbour,
}

/// Measures the suite beside PostgreSQL's own pgbench, and prints one table
#[derive(Debug, Parser)]
#[command(name = "crm-bench", version)]
struct Options {
    /// The program to measure, built in release
    #[arg(long, value_name = "PROGRAM", default_value = "target/release/crm")]
    crm: PathBuf,
    /// What is measured
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "get-contact,create-contact,create-tenant,cold-tenant,many-tenants,\
                         noisy-neighbour"
    )]
    subjects: Vec<Subject>,
    /// How often each side is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long one measurement of a rate takes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How many calls are under way at a time
    #[arg(long, value_delimiter = ',', default_value = "8,32",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    in_flight: Vec<u32>,
    /// Over how many HTTP/2 connections calls are spread
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    channels: u32,
    /// How many contacts the tenant has whose contacts are read
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(i32).range(1..))]
    contacts: i32,
    /// How many tenants are made, and then called for the first time
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=200))]
    tenants: u32,
    /// Over how many tenants calls are spread
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=2000))]
    many_tenants: u32,
    /// How many sessions each data service may have
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=60))]
    session_budget: u32,
    /// What the program logs, into a file
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    /// Only asks for large pages there
    #[arg(long, hide = true, value_name = "ADDRESS")]
    flood: Option<SocketAddr>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(run(options)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("crm-bench: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Starts the program, measures it, and stops it however that ends. What was
/// measured until then is printed.
async fn run(options: Options) -> Result<(), Failure> {
    if let Some(address) = options.flood {
        return flood::run(address).await;
    }
    let pgbench = Pgbench::find().await?;
    let suite = Suite::spawn(&options.crm, &options.log, options.session_budget)?;
    let bench = Bench { options, pgbench, suite };
    let mut rows = Vec::new();
    let outcome = tokio::select! {
        outcome = Box::pin(measure_all(&bench, &mut rows)) => outcome,
        interrupted = interrupted() => Err(interrupted),
    };
    bench.suite.stop().await?;
    write!(io::stdout().lock(), "{}", report::table(&rows))?;
    outcome
}

async fn measure_all(bench: &Bench, rows: &mut Vec<Row>) -> Result<(), Failure> {
    say("starting the program");
    bench.suite.wait_until_serving().await?;
    for subject in &bench.options.subjects {
        // No side pays for what was written before.
        bench.suite.checkpoint().await?;
        rows.extend(match subject {
            Subject::GetContact => readings::get_contact::read(bench).await?,
            Subject::CreateContact => readings::create_contact::read(bench).await?,
            Subject::CreateTenant => readings::create_tenant::read(bench).await?,
            Subject::ColdTenant => readings::cold_tenant::read(bench).await?,
            Subject::ManyTenants => readings::many_tenants::read(bench).await?,
            Subject::NoisyNeighbour => readings::noisy_neighbour::read(bench).await?,
        });
    }
    Ok(())
}

/// Waits for a signal that asks this program to stop.
async fn interrupted() -> Failure {
    let signals = signal(SignalKind::interrupt()).and_then(|interrupt| {
        let terminate = signal(SignalKind::terminate())?;
        Ok((interrupt, terminate))
    });
    let (mut interrupt, mut terminate) = match signals {
        Ok(signals) => signals,
        Err(error) => return error.into(),
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    "interrupted".into()
}

/// Progress goes to people; the table alone goes to standard output.
fn say(text: &str) {
    // Where standard error is closed there is nobody to tell.
    let _told = writeln!(io::stderr().lock(), "{text}");
}
