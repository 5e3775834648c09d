//! Nothing that was acknowledged is lost, whatever breaks off.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![expect(clippy::print_stdout, reason = "a test may say what it measured")]

mod calls;
mod crash;
mod read_back;
mod refusals;
mod sessions;
mod storm;
mod wire;

use tokio::sync::Mutex;

/// These tests use the whole machine: one at a time.
static TURN: Mutex<()> = Mutex::const_new(());
