//! Nothing that was acknowledged is lost, whatever breaks off.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod refusals;

use tokio::sync::Mutex;

/// These tests use the whole machine: one at a time.
static TURN: Mutex<()> = Mutex::const_new(());
