//! The one thread of a process for work that reads many rows, below the
//! priority of all other: decoding a large page takes as long as a hundred
//! calls, and nobody else waits for it.
//!
//! Sessions are opened elsewhere: their sockets are not this thread's.

use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How much nicer the thread is than others: a tenth of their time where all
/// want the same core.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// The thread, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Pages {
    runtime: Handle,
    _stop: Option<DropGuard>,
}

impl Pages {
    /// Starts the thread. Without one the work is done among all other.
    pub(crate) fn start() -> Self {
        Self::spawn().unwrap_or_else(|error| {
            tracing::warn!(%error, "there is no thread for large pages");
            Self { runtime: Handle::current(), _stop: None }
        })
    }

    fn spawn() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        thread::Builder::new().name("crm-pages".to_owned()).spawn(move || {
            // On Linux this is the thread's alone; elsewhere it would be the
            // process's.
            #[cfg(target_os = "linux")]
            if let Err(error) = rustix::process::nice(NICE) {
                tracing::warn!(%error, "large pages have the priority of all other work");
            }
            runtime.block_on(stopped);
        })?;
        Ok(Self { runtime: handle, _stop: Some(stop.drop_guard()) })
    }

    /// Does work in the thread.
    pub(crate) fn spawn_work<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runtime.spawn(work)
    }
}
