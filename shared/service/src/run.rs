//! How every process begins and ends.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crm_error::chain;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// The exit code for a configuration that cannot be used (sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// The exit code after a second signal: 128 + SIGTERM.
const EXIT_ABORTED: u8 = 143;
/// Some wrappers send a signal to a process and to its group: what comes this
/// soon after the first is the same signal again.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// Runs a program to its end. Its name stands before the last word of one that
/// failed.
///
/// The program gets a token that is cancelled by the first SIGINT or SIGTERM:
/// it then finishes its calls and returns. A second signal drops the program
/// where it stands.
pub fn run<F>(
    name: &str,
    telemetry: &Telemetry,
    program: impl FnOnce(CancellationToken) -> F,
) -> ExitCode
where
    F: Future<Output = Result<(), Box<dyn Error + Send + Sync>>>,
{
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(name, &error.to_string());
            return ExitCode::FAILURE;
        }
    };
    let in_runtime = runtime.enter();
    let traces = match telemetry.start() {
        Ok(traces) => traces,
        Err(error) => {
            complain(name, &error.to_string());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    drop(in_runtime);
    let outcome = runtime.block_on(async {
        let (shutdown, abort) = (CancellationToken::new(), CancellationToken::new());
        tokio::spawn(watch_signals(
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            shutdown.clone(),
            abort.clone(),
        ));
        tokio::select! {
            ended = program(shutdown) => {
                if let Some(traces) = traces {
                    tokio::task::spawn_blocking(move || traces.flush()).await?;
                }
                ended.map(|()| ExitCode::SUCCESS)
            }
            () = abort.cancelled() => Ok(ExitCode::from(EXIT_ABORTED)),
        }
    });
    // Without waiting: what blocks a thread, such as a name or a file that is
    // looked for, would hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            complain(name, &chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn watch_signals(
    mut interrupt: Signal,
    mut terminate: Signal,
    shutdown: CancellationToken,
    abort: CancellationToken,
) {
    let mut first: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        match first {
            None => {
                tracing::info!("stopping: calls in flight are finished; a second signal aborts");
                shutdown.cancel();
                first = Some(Instant::now());
            }
            Some(first) if first.elapsed() < SAME_SIGNAL => {}
            Some(_) => return abort.cancel(),
        }
    }
}

/// The last word of a program that failed goes to people, whatever the log.
fn complain(name: &str, text: &str) {
    use std::io::Write as _;
    // Where standard error is closed there is nobody to tell.
    let _told = writeln!(std::io::stderr(), "{name}: {text}");
}
