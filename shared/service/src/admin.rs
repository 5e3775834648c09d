//! The admin listener of a process: metrics, and probes for whoever runs it.
//! It is never public: nobody has to say who asks.

use std::convert::Infallible;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use prost::bytes::Bytes;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::service_fn;

use crate::admission::Admission;
use crate::metrics::recorder;
use crate::scrapes::Scrapes;
use crate::server::{self, Role};

/// How often measured times are put into their buckets. Between, they are kept
/// one by one.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// How far a process is.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// Every part of the process, and whether it serves: the process is ready
    /// when all do.
    pub parts: Vec<(&'static str, bool)>,
    /// What it waits for before they do, if anything.
    pub waits_for: Option<&'static str>,
}

/// Serves `/metrics` (Prometheus), `/livez` and `/readyz` until `shutdown`.
///
/// # Errors
///
/// When the socket fails, or the process has another recorder of metrics.
pub async fn serve(
    listener: TcpListener,
    readiness: impl Fn() -> Readiness + Clone + Send + Sync + 'static,
    admission: Admission,
    shutdown: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let recorder = recorder()?;
    let scrapes = Scrapes::new(recorder);
    let service = service_fn(move |request: Request<Body>| {
        let answer = match request.uri().path() {
            "/metrics" | "/livez" | "/readyz" if request.method() != Method::GET => refuse(),
            "/metrics" => match scrapes.text() {
                Some(text) => answer(StatusCode::OK, "text/plain; version=0.0.4", text),
                None => too_many(),
            },
            "/livez" => answer(StatusCode::OK, "text/plain", "ok\n".to_owned()),
            "/readyz" => ready(readiness()),
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
        served = server::serve(listener, service, Role::Admin, admission, shutdown) => Ok(served?),
        () = upkeep => Ok(()),
    }
}

fn ready(Readiness { parts, waits_for }: Readiness) -> Response<Body> {
    let not_serving: Vec<_> =
        parts.into_iter().filter(|(_, serves)| !serves).map(|(part, _)| part).collect();
    let is_ready = not_serving.is_empty();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = serde_json::json!({ "ready": is_ready, "not_serving": not_serving });
    if let Some(waits_for) = waits_for {
        body["waits_for"] = waits_for.into();
    }
    answer(status, "application/json", format!("{body}\n"))
}

fn refuse() -> Response<Body> {
    let text = "only GET\n".to_owned();
    let mut answer = answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", text);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    answer
}

fn too_many() -> Response<Body> {
    let text = "too many read the metrics\n".to_owned();
    let mut answer = answer(StatusCode::SERVICE_UNAVAILABLE, "text/plain", text);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn answer<B>(status: StatusCode, kind: &'static str, body: B) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut answer = Response::new(Body::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use crm_auth::{Audience, Verifier};
    use crm_clock::Clock;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::health::Health;
    use crate::stack::StackBuilder;

    fn part(name: &'static str) -> Health {
        let verifier = Verifier::new(Audience::Public, Clock::default());
        StackBuilder::default().build(name, verifier, Clock::default()).unwrap().1
    }

    async fn ask(address: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_process_is_ready_when_all_its_parts_serve() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (one, other) = (part("one"), part("other"));
        let shutdown = CancellationToken::new();
        let healths = [one.clone(), other.clone()];
        let readiness = move || Readiness {
            parts: healths.iter().map(Health::state).collect(),
            waits_for: None,
        };
        let serving =
            tokio::spawn(serve(listener, readiness, Admission::default(), shutdown.clone()));

        one.set(true);
        let answer = ask(address, "GET /readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains(r#"{"not_serving":["other"],"ready":false}"#), "{answer}");
        assert!(ask(address, "GET /livez").await.starts_with("HTTP/1.1 200 "));

        other.set(true);
        let answer = ask(address, "GET /readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        one.set(false);
        assert!(ask(address, "GET /readyz").await.starts_with("HTTP/1.1 503 "));

        shutdown.cancel();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn only_what_there_is_can_be_read() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let _serving = tokio::spawn(serve(
            listener,
            || Readiness { parts: Vec::new(), waits_for: None },
            Admission::default(),
            shutdown.clone(),
        ));

        for (line, status) in [
            ("GET /metrics", "200 OK"),
            ("POST /metrics", "405 Method Not Allowed"),
            ("DELETE /readyz", "405 Method Not Allowed"),
            ("GET /", "404 Not Found"),
            ("POST /crm.contacts.v1.ContactService/GetContact", "404 Not Found"),
        ] {
            let answer = ask(address, line).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        }

        shutdown.cancel();
    }
}
