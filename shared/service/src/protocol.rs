//! What is no gRPC call, or has too much metadata: it is answered in plain HTTP
//! (gRPC over HTTP/2, requests), whatever is in it.
//!
//! A call without `te: trailers` is served: it is there to find proxies that
//! lose trailers, and the caller sees that for itself.

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tonic::body::Body;

use crate::limits::HEADER_LIST_BYTES;

/// What a header costs beside its name and its value (RFC 9113, 6.5.2).
const HEADER_OVERHEAD: usize = 32;

/// The refusal of a request that is no call.
pub(crate) fn refuse(request: &Request<Body>) -> Option<Response<Body>> {
    let headers = request.headers();
    let status = if request.method() != Method::POST {
        StatusCode::METHOD_NOT_ALLOWED
    } else if !is_grpc(headers) {
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    } else if is_too_large(headers) {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    } else {
        return None;
    };
    let mut refusal = Response::new(Body::empty());
    *refusal.status_mut() = status;
    if status == StatusCode::METHOD_NOT_ALLOWED {
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    Some(refusal)
}

/// Messages are protobuf here; a type that says otherwise is not guessed at.
/// gRPC-web has become gRPC before it comes here.
fn is_grpc(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    ["application/grpc", "application/grpc+proto"]
        .iter()
        .any(|known| essence.eq_ignore_ascii_case(known))
}

/// HTTP/2 bounds this itself; HTTP/1.1, at the edge, does not.
fn is_too_large(headers: &HeaderMap) -> bool {
    head_bytes(headers) > HEADER_LIST_BYTES as usize
}

/// What a call's metadata takes.
pub(crate) fn head_bytes(headers: &HeaderMap) -> usize {
    let bytes = |name: &str, value: &HeaderValue| name.len() + value.len() + HEADER_OVERHEAD;
    headers.iter().map(|(name, value)| bytes(name.as_str(), value)).sum()
}
