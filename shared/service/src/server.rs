//! Serving a stack on a socket, until it is told to stop.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use http::{Request, Response};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tower::Service;

use crate::limits;

/// Takes an address.
///
/// # Errors
///
/// Names the address, who asks for it, and the setting that changes it.
pub async fn bind(address: SocketAddr, who: &str, setting: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("{who} cannot listen on {address} ({error}); {setting} changes the address"),
        )
    })
}

/// Serves until `shutdown`, then lets calls in flight finish, for 8 seconds at
/// most.
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
    S::Future: Send,
{
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = Server::builder()
        .accept_http1(http1)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .http2_max_header_list_size(limits::HEADER_LIST_BYTES)
        .http2_keepalive_interval(Some(limits::KEEPALIVE))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE))
        .max_connection_age(limits::CONNECTION_AGE)
        .max_connection_age_grace(limits::CONNECTION_GRACE)
        .serve_with_incoming_shutdown(service, incoming, shutdown.clone().cancelled_owned());
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(limits::DRAIN).await;
    };
    tokio::select! {
        served = serving => served,
        () = deadline => {
            tracing::warn!("calls in flight were cut off: they did not finish in time");
            Ok(())
        }
    }
}
