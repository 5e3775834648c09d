//! Serving a stack on a socket, until it is told to stop.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower::Service;

use crate::limits;
use crate::stopping::Stopping;

/// How often a server that stops looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a port is waited for that a connection holds: a closed one holds it
/// for a minute (RFC 9293, TIME-WAIT).
const LINGERING_PORT: Duration = Duration::from_secs(70);
/// How long whoever listens there may take to say so.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// How often it is tried again.
const BIND_EVERY: Duration = Duration::from_millis(500);
/// How long it then leaves the connections to the last answers, and to calls
/// that were on their way before their clients heard of the stop.
const LINGER: Duration = Duration::from_millis(200);

/// Takes an address. One where nobody listens, but that an outgoing connection
/// holds or held a moment ago, is waited for: the system gives every port from
/// its ephemeral range to such connections, and frees it a minute after their
/// end.
///
/// # Errors
///
/// Names the address, who asks for it, and the setting that changes it.
pub async fn bind(address: SocketAddr, who: &str, setting: &str) -> io::Result<TcpListener> {
    let until = Instant::now() + LINGERING_PORT;
    let mut is_told = false;
    loop {
        let error = match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => error,
        };
        if error.kind() != io::ErrorKind::AddrInUse
            || Instant::now() >= until
            || someone_listens(address).await
        {
            return Err(io::Error::new(
                error.kind(),
                format!(
                    "{who} cannot listen on {address} ({error}); {setting} changes the address"
                ),
            ));
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!(%address, "waiting for a port that a connection still holds");
        }
        tokio::time::sleep(BIND_EVERY).await;
    }
}

/// Whether someone takes connections there, or is too busy to take more.
async fn someone_listens(address: SocketAddr) -> bool {
    let connected = timeout(ANSWERS_WITHIN, TcpStream::connect(address)).await;
    connected.is_err() || connected.is_ok_and(|connected| connected.is_ok())
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
    http1: bool,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    serve_on(Server::builder().accept_http1(http1), listener, service, shutdown).await
}

/// As [`serve`], with a server of its own settings, TLS among them.
pub(crate) async fn serve_on<S>(
    server: Server,
    listener: TcpListener,
    service: S,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    let calls = Arc::new(());
    let stopping = Stopping::new(shutdown.clone());
    let over = stopping.over.clone();
    let service = InFlight { calls: calls.clone(), stopping, inner: service };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = server
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .http2_max_header_list_size(limits::HEADER_LIST_BYTES)
        .http2_keepalive_interval(Some(limits::KEEPALIVE))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE))
        .max_connection_age(limits::CONNECTION_AGE)
        .max_connection_age_grace(limits::CONNECTION_GRACE)
        .serve_with_incoming_shutdown(service, incoming, shutdown.clone().cancelled_owned());
    let drained = async {
        shutdown.cancelled().await;
        let asked = Instant::now();
        let mut last_seen = asked;
        while last_seen.elapsed() < LINGER {
            if Arc::weak_count(&calls) > 0 {
                last_seen = Instant::now();
            }
            if asked.elapsed() >= limits::DRAIN {
                tracing::warn!("calls in flight were cut off: they did not finish in time");
                over.cancel();
                return tokio::time::sleep(LINGER).await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        served = serving => served,
        () = drained => Ok(()),
    }
}

/// A service that tells each call of the server's end, and counts by that the
/// calls it has not answered to the end.
#[derive(Clone, Debug)]
struct InFlight<S> {
    calls: Arc<()>,
    stopping: Stopping,
    inner: S,
}

impl<S> Service<Request<Body>> for InFlight<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.extensions_mut().insert(self.stopping.of_call(&self.calls));
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpSocket;

    use super::*;

    #[tokio::test]
    async fn a_port_that_a_connection_holds_is_waited_for() -> io::Result<()> {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let client = TcpSocket::new_v4()?;
        client.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        client.set_zero_linger()?;
        let client = client.connect(server.local_addr()?).await?;
        let address = client.local_addr()?;
        assert!(TcpListener::bind(address).await.is_err(), "the connection does not hold the port");

        let bound = tokio::spawn(bind(address, "the test", "nothing"));
        tokio::time::sleep(BIND_EVERY / 2).await;
        drop(client);

        assert_eq!(bound.await??.local_addr()?, address);
        Ok(())
    }

    #[tokio::test]
    async fn a_port_where_someone_listens_is_refused_at_once() -> io::Result<()> {
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = other.local_addr()?;

        let refused = bind(address, "the test", "--port").await.map_err(|error| error.to_string());

        assert!(refused.is_err_and(|words| words.contains("--port changes the address")));
        Ok(())
    }

    #[tokio::test]
    async fn a_port_where_someone_listens_and_takes_nobody_is_refused_at_once() -> io::Result<()> {
        let other = TcpSocket::new_v4()?;
        other.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let other = other.listen(1)?;
        let address = other.local_addr()?;
        let mut waiting = Vec::new();
        while let Ok(connected) = timeout(ANSWERS_WITHIN, TcpStream::connect(address)).await {
            waiting.push(connected?);
        }

        let asked = Instant::now();
        let refused = bind(address, "the test", "--port").await.map_err(|error| error.to_string());

        assert!(refused.is_err_and(|words| words.contains("--port changes the address")));
        assert!(asked.elapsed() < LINGERING_PORT / 2);
        Ok(())
    }
}
