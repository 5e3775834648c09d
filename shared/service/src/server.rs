//! Serving a stack on a socket, until it is told to stop.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::admission::Admission;
use crate::connection::{Connecting, Lifetime, Terms};
use crate::limits;
use crate::stopping::Stopping;
use crate::tls::ServerTls;

/// How often a server that stops looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long none is taken where the system has no room for another connection.
const RECOVER: Duration = Duration::from_millis(100);
/// What is said to a connection that has no room: GOAWAY, ENHANCE_YOUR_CALM,
/// after the settings that come first (RFC 9113, sections 3.4 and 6.8).
const NO_ROOM_HTTP2: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b";
const NO_ROOM_HTTP1: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 0\r\n\r\n";

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// gRPC, for everyone.
    Service,
    /// gRPC, for the services of this suite.
    Internal,
    /// gRPC and gRPC-web, for everyone.
    Edge,
    /// Metrics and probes, for whoever runs the process.
    Admin,
}

impl Role {
    pub(crate) fn is_public(self) -> bool {
        matches!(self, Self::Service | Self::Edge)
    }

    pub(crate) fn speaks_http1(self) -> bool {
        matches!(self, Self::Edge | Self::Admin)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Internal => "internal",
            Self::Edge => "edge",
            Self::Admin => "admin",
        }
    }
}

/// Serves until `shutdown`, then lets calls in flight finish, for 6 seconds at
/// most; whatever has no answer by then gets DEADLINE_EXCEEDED. Streams end at
/// once. Connections without a call are not waited for.
///
/// # Errors
///
/// When the socket fails.
pub async fn serve<S>(
    listener: TcpListener,
    service: S,
    role: Role,
    admission: Admission,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    serve_with(None, listener, service, role, admission, shutdown).await
}

/// As [`serve`], perhaps with TLS.
pub(crate) async fn serve_with<S>(
    tls: Option<ServerTls>,
    listener: TcpListener,
    service: S,
    role: Role,
    admission: Admission,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let calls = Arc::new(());
    let stopping = Stopping::new(shutdown.clone());
    let over = stopping.over.clone();
    let terms = Terms {
        role,
        tls,
        admission,
        stack: BoxCloneSyncService::new(service),
        stopping,
        calls: calls.clone(),
        lifetime: Lifetime::default(),
    };
    tokio::select! {
        served = take_connections(listener, terms, &shutdown) => served,
        () = drained(&calls, &shutdown, &over) => Ok(()),
    }
}

/// Waits until the last call was answered after the shutdown, or the time for
/// that is over.
async fn drained(calls: &Arc<()>, shutdown: &CancellationToken, over: &CancellationToken) {
    shutdown.cancelled().await;
    let asked = Instant::now();
    let mut last_seen = asked;
    // Calls may be on their way whose clients have not heard of the stop yet.
    while last_seen.elapsed() < limits::LINGER {
        if Arc::weak_count(calls) > 0 {
            last_seen = Instant::now();
        }
        if asked.elapsed() >= limits::DRAIN {
            tracing::warn!("calls in flight were cut off: they did not finish in time");
            over.cancel();
            return tokio::time::sleep(limits::LINGER).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Serves every connection in a task of its own, until the shutdown and their
/// ends.
pub(crate) async fn take_connections(
    listener: TcpListener,
    terms: Terms,
    shutdown: &CancellationToken,
) -> io::Result<()> {
    let terms = Arc::new(terms);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match terms.admission.enter(terms.role, peer.ip()) {
                Some(slot) => {
                    let connecting = Connecting::new(stream, peer.ip(), slot, terms.clone());
                    connections.spawn(connecting.serve());
                }
                None => turn_away(&stream, &terms),
            },
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "no connection can be taken");
                tokio::time::sleep(RECOVER).await;
            }
        }
    }
    // Nobody connects to a listener that takes no one.
    drop(listener);
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Says that there is no room, if that can be said at once.
fn turn_away(stream: &TcpStream, terms: &Terms) {
    let words = match (&terms.tls, terms.role.speaks_http1()) {
        (Some(_), _) => return,
        (None, true) => NO_ROOM_HTTP1,
        (None, false) => NO_ROOM_HTTP2,
    };
    // Best effort: the connection ends in any case.
    let _said = stream.try_write(words);
}

/// Whether a connection broke before it was taken.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, TimedOut};
    let kind = error.kind();
    [BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, TimedOut].contains(&kind)
}
