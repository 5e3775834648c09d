//! The admin listener of a process: metrics, and probes for whoever runs it.
//! It is never public: nobody has to say who asks.

use std::convert::Infallible;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::service_fn;

use crate::metrics::recorder;
use crate::server;
use crate::stack::Health;

/// How often measured times are put into their buckets. Between, they are kept
/// one by one.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Serves `/metrics` (Prometheus), `/livez` and `/readyz` until `shutdown`. The
/// process is ready when all these parts serve.
///
/// # Errors
///
/// When the socket fails, or the process has another recorder of metrics.
pub async fn serve(
    listener: TcpListener,
    parts: Vec<Health>,
    shutdown: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let recorder = recorder()?;
    let service = service_fn(move |request: Request<Body>| {
        let answer = match request.uri().path() {
            "/metrics" | "/livez" | "/readyz" if request.method() != Method::GET => refuse(),
            "/metrics" => answer(StatusCode::OK, "text/plain; version=0.0.4", recorder.render()),
            "/livez" => answer(StatusCode::OK, "text/plain", "ok\n".to_owned()),
            "/readyz" => ready(&parts),
            _ => answer(StatusCode::NOT_FOUND, "text/plain", "not found\n".to_owned()),
        };
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let upkeep = async {
        loop {
            tokio::time::sleep(UPKEEP_EVERY).await;
            recorder.run_upkeep();
        }
    };
    tokio::select! {
        served = server::serve(listener, service, true, shutdown) => Ok(served?),
        () = upkeep => Ok(()),
    }
}

fn ready(parts: &[Health]) -> Response<Body> {
    let not_serving: Vec<_> =
        parts.iter().filter(|part| !part.is_serving()).map(Health::part).collect();
    let is_ready = not_serving.is_empty();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({ "ready": is_ready, "not_serving": not_serving });
    answer(status, "application/json", format!("{body}\n"))
}

fn refuse() -> Response<Body> {
    let text = "only GET\n".to_owned();
    let mut answer = answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", text);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    answer
}

fn answer(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut answer = Response::new(Body::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
