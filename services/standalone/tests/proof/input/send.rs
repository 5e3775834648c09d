//! Calls with any bytes as their body, and their whole answer.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use prost::bytes::{Buf as _, Bytes};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::wire;
use crate::methods::Method;

/// Longer than any deadline that the suite keeps.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came back.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: Status,
    /// The first message, where there is one.
    pub(super) message: Bytes,
    /// How large the status is on its way.
    pub(super) status_bytes: usize,
}

/// A connection to the listener of a method.
pub(super) fn connect(method: &Method) -> Channel {
    Endpoint::from_shared(format!("http://{}", method.address())).unwrap().connect_lazy()
}

/// Sends a message in a frame of its own.
pub(super) async fn send(
    channel: &Channel,
    method: &Method,
    caller: &MetadataMap,
    message: &[u8],
) -> Result<Answer, String> {
    let body = wire::frame(0, message.len(), message);
    send_body(channel, method, caller, &HeaderMap::new(), body).await
}

/// Sends any bytes as the body, with more headers.
pub(super) async fn send_body(
    channel: &Channel,
    method: &Method,
    caller: &MetadataMap,
    headers: &HeaderMap,
    body: Vec<u8>,
) -> Result<Answer, String> {
    let start = Instant::now();
    loop {
        let body = body.clone();
        let answer =
            tokio::time::timeout(PATIENCE, exchange(channel, method, caller, headers, body));
        let answer = answer.await.map_err(|_| "it hangs".to_owned())?;
        let answer = answer.map_err(|error| format!("no answer: {error}"))?;
        if !answer.says_to_wait() || start.elapsed() > PATIENCE {
            return Ok(answer);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn exchange(
    channel: &Channel,
    method: &Method,
    caller: &MetadataMap,
    headers: &HeaderMap,
    body: Vec<u8>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let mut channel = channel.clone();
    poll_fn(|cx| GrpcService::<Body>::poll_ready(&mut channel, cx)).await?;
    let mut request = Request::post(method.path()).body(Body::new(Full::new(Bytes::from(body))))?;
    *request.headers_mut() = caller.clone().into_headers();
    request.headers_mut().insert(CONTENT_TYPE, "application/grpc".parse()?);
    request.headers_mut().insert(TE, "trailers".parse()?);
    request.headers_mut().insert("grpc-timeout", "30S".parse()?);
    request.headers_mut().extend(headers.clone());
    let response = GrpcService::<Body>::call(&mut channel, request).await?;
    if !response.status().is_success() {
        return Err(format!("HTTP {}", response.status()).into());
    }
    let (parts, mut body) = response.into_parts();
    if let Some(answer) = answer(&parts.headers) {
        return Ok(answer);
    }
    let mut message = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(mut data) => message.extend(data.copy_to_bytes(data.remaining())),
            Err(frame) => {
                let trailers = frame.into_trailers().map_err(|_| "a frame of no kind")?;
                let answer = answer(&trailers).ok_or("trailers without a status")?;
                return Ok(Answer { message: unframed(&message), ..answer });
            }
        }
        // A stream that goes on has answered with its first message.
        if method.descriptor.is_server_streaming() && message.len() >= 5 {
            #[expect(clippy::disallowed_methods, reason = "what a client makes of an answer")]
            let status = Status::ok("");
            return Ok(Answer { status, message: unframed(&message), status_bytes: 0 });
        }
    }
    Err("an answer without a status".into())
}

fn unframed(framed: &[u8]) -> Bytes {
    Bytes::copy_from_slice(framed.get(5..).unwrap_or_default())
}

fn answer(headers: &HeaderMap) -> Option<Answer> {
    let status = Status::from_header_map(headers)?;
    let of_status = headers.iter().filter(|(name, _)| name.as_str().starts_with("grpc-"));
    let status_bytes = of_status.map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    Some(Answer { status, message: Bytes::new(), status_bytes })
}

impl Answer {
    /// Whether others of this test program, at the same address, were sending as
    /// much at that moment as an address may.
    fn says_to_wait(&self) -> bool {
        let info = self.status.get_details_error_info();
        info.is_some_and(|info| info.metadata.get("limit").is_some_and(|of| of == "body_bytes"))
    }

    pub(super) fn is_ok(&self) -> bool {
        self.status.code() == Code::Ok
    }
}
