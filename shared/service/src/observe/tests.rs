use std::convert::Infallible;
use std::future::{pending, ready};

use futures_util::stream::{self, StreamExt as _};
use http_body::{Body as _, Frame};
use tonic::codegen::Bytes;
use tower::{ServiceExt as _, service_fn};

use super::*;
use crate::metrics::recorder;

const METHOD: &str = "crm.test.v1.TestService/Test";

type Part = Result<Frame<Bytes>, Status>;

/// An answer that is one message and then these parts.
struct Parts(stream::BoxStream<'static, Part>);

impl Parts {
    fn new(rest: impl stream::Stream<Item = Part> + Send + 'static) -> Self {
        let message = ready(Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\0"))));
        Self(stream::once(message).chain(rest).boxed())
    }
}

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Part>> {
        self.0.poll_next_unpin(cx)
    }
}

fn request(path: &str) -> Request<Body> {
    Request::builder().uri(path).body(Body::empty()).unwrap()
}

fn observe<S>(service: &'static str, inner: S) -> Observe<S> {
    recorder().unwrap();
    ObserveLayer::new(service, [METHOD].into_iter(), Clock::default()).layer(inner)
}

/// Calls a method that answers like this, and takes in the whole answer.
async fn call(service: &'static str, path: &str, answer: fn() -> Response<Body>) {
    let inner = service_fn(move |_: Request<Body>| ready(Ok::<_, Infallible>(answer())));
    let mut body = observe(service, inner).oneshot(request(path)).await.unwrap().into_body();
    while let Some(Ok(_)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
}

/// The calls of a service that have ended, as `method code count`.
fn ended(service: &str) -> Vec<String> {
    let text = recorder().unwrap().render();
    let prefix = format!("rpc_server_duration_seconds_count{{service=\"{service}\",");
    let found = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    let mut found: Vec<_> = found
        .map(|line| line.replace(['"', '}'], "").replace("method=", "").replace(",code=", " "))
        .collect();
    found.sort();
    found
}

fn in_flight(service: &str) -> String {
    let text = recorder().unwrap().render();
    let prefix = format!("rpc_server_requests_in_flight{{service=\"{service}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap().to_owned()
}

fn trailers(code: Code) -> Part {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(i32::from(code)));
    Ok(Frame::trailers(trailers))
}

#[tokio::test]
async fn a_status_in_headers_counts() {
    let answer = || Status::from(ApiError::not_found("thing", "things/1")).into_http();

    call("headers", &format!("/{METHOD}"), answer).await;

    assert_eq!(ended("headers"), [format!("{METHOD} NOT_FOUND 1")]);
}

#[tokio::test]
async fn a_status_in_trailers_counts() {
    let refused = || {
        let end = stream::iter([trailers(Code::ResourceExhausted)]);
        Response::new(Body::new(Parts::new(end)))
    };
    let good = || Response::new(Body::new(Parts::new(stream::iter([trailers(Code::Ok)]))));

    call("trailers", &format!("/{METHOD}"), refused).await;
    call("trailers", &format!("/{METHOD}"), good).await;
    call("trailers", &format!("/{METHOD}"), good).await;

    let expected = [format!("{METHOD} OK 2"), format!("{METHOD} RESOURCE_EXHAUSTED 1")];
    assert_eq!(ended("trailers"), expected);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_unknown() {
    let answer = || Response::new(Body::new(Parts::new(stream::empty())));

    call("broken", &format!("/{METHOD}"), answer).await;

    assert_eq!(ended("broken"), [format!("{METHOD} UNKNOWN 1")]);
}

#[tokio::test]
async fn a_call_that_is_given_up_is_cancelled() {
    let unanswered = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
    let waiting = observe("cancelled", unanswered).oneshot(request(&format!("/{METHOD}")));
    let mut waiting = Box::pin(waiting);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(in_flight("cancelled"), "1");
    drop(waiting);

    let unended = service_fn(|_: Request<Body>| {
        let answer = Response::new(Body::new(Parts::new(stream::pending())));
        ready(Ok::<_, Infallible>(answer))
    });
    let service = observe("cancelled", unended);
    let mut body = service.oneshot(request(&format!("/{METHOD}"))).await.unwrap().into_body();
    let first = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
    assert!(first.unwrap().unwrap().is_data());
    assert_eq!(in_flight("cancelled"), "1");
    drop(body);

    assert_eq!(ended("cancelled"), [format!("{METHOD} CANCELLED 2")]);
    assert_eq!(in_flight("cancelled"), "0");
}

#[tokio::test]
async fn a_panic_is_internal() {
    let panics = service_fn(|request: Request<Body>| async move {
        assert!(request.uri().path().is_empty(), "a test of panics");
        Ok::<_, Infallible>(Response::new(Body::empty()))
    });

    let answer = observe("panic", panics).oneshot(request(&format!("/{METHOD}"))).await.unwrap();

    let status = Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains(answer.headers()[REQUEST_ID].to_str().unwrap()));
    assert_eq!(ended("panic"), [format!("{METHOD} INTERNAL 1")]);
}

#[tokio::test]
async fn a_panic_of_a_layer_is_internal() {
    let panics = service_fn(|request: Request<Body>| {
        assert!(request.uri().path().is_empty(), "a test of panics");
        ready(Ok::<_, Infallible>(Response::new(Body::empty())))
    });

    let answer = observe("layer", panics).oneshot(request(&format!("/{METHOD}"))).await.unwrap();

    let status = Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(ended("layer"), [format!("{METHOD} INTERNAL 1")]);
}

#[tokio::test]
async fn methods_that_are_not_served_have_one_name() {
    let answer = || {
        let error = ApiError::new(crm_error::ErrorReason::MethodUnknown, "no such method");
        Status::from(error).into_http()
    };

    for path in ["/", "/crm.test.v1.TestService/Other", "/a/b", "/grpc.x/y", "/x"] {
        call("unknown", path, answer).await;
    }

    assert_eq!(ended("unknown"), ["other UNIMPLEMENTED 5"]);
}
