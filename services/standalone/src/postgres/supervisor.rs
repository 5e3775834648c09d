//! Keeps a private server running: whatever ends it, it is started again.

use std::convert::Infallible;
use std::time::Duration;

use crm_error::chain;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{PostgresError, PrivatePostgres};

/// When a server that ended is started again: after this, then after twice the time, and so on.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// The longest pause between two attempts: so long it may take until a disk with room is noticed.
const AGAIN_AT_LAST: Duration = Duration::from_secs(3);
/// A server that ran for so long is well; one that ends sooner has what ended the one before.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// A server that is started again whenever it ends.
#[derive(Debug)]
pub struct Supervisor {
    /// The server, or the one that ended last.
    server: PrivatePostgres,
    is_up: watch::Sender<bool>,
}

impl Supervisor {
    /// Takes over a server that is ready.
    pub fn new(server: PrivatePostgres) -> Self {
        Self { server, is_up: watch::Sender::new(true) }
    }

    /// Whether it takes connections, as far as is known.
    pub fn is_up(&self) -> watch::Receiver<bool> {
        self.is_up.subscribe()
    }

    /// Starts it again whenever it ends, for as long as this is awaited. It may be dropped at any
    /// moment; [`stop`](Self::stop) then stops what there is.
    pub async fn keep(&mut self) -> Infallible {
        let mut pause = AGAIN_AFTER;
        loop {
            let up_since = Instant::now();
            let cause = chain(&self.server.exited().await);
            self.is_up.send_replace(false);
            tracing::error!(cause, "PostgreSQL ended, and is started again");
            if up_since.elapsed() >= WELL_AFTER {
                pause = AGAIN_AFTER;
            }
            loop {
                sleep(pause).await;
                pause = AGAIN_AT_LAST.min(pause * 2);
                match self.start_again().await {
                    Ok(()) => break,
                    Err(error) => {
                        let cause = chain(&error);
                        tracing::warn!(cause, "PostgreSQL does not start, and is tried again");
                    }
                }
            }
            self.is_up.send_replace(true);
        }
    }

    async fn start_again(&mut self) -> Result<(), PostgresError> {
        // In its place before it is ready, so that a stop finds it.
        self.server = self.server.launch_again().await?;
        let ready = self.server.ready().await;
        if ready.is_err() {
            self.server.end().await?;
        }
        ready
    }

    /// Stops the server, whatever it is about.
    ///
    /// # Errors
    ///
    /// As [`PrivatePostgres::stop`].
    pub async fn stop(self) -> Result<(), PostgresError> {
        self.server.stop().await
    }
}
