use std::net::{Ipv4Addr, SocketAddr};

use crm_auth::{Audience, Verifier};
use crm_clock::Clock;
use h2::client::SendRequest;
use http::header::CONTENT_TYPE;
use prost::bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tower::service_fn;
use tower::util::BoxCloneSyncService;

use super::*;
use crate::server::take_connections;
use crate::stack::StackBuilder;

/// What does not come in these tests.
const NEVER: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(100);
/// A message of nothing.
const EMPTY: &[u8] = &[0; 5];
/// The types of frames that are looked for (RFC 9113, section 6).
const PING: u8 = 6;
const GOAWAY: u8 = 7;

fn lifetime() -> Lifetime {
    Lifetime { silence: NEVER, age: NEVER, spread: Duration::ZERO, grace: NEVER }
}

/// A stack that answers health checks.
fn health() -> Stack {
    let verifier = Verifier::new(Audience::Public, Clock::default());
    let (stack, health) =
        StackBuilder::default().build("part", verifier, Clock::default()).unwrap();
    health.set(true);
    stack
}

/// A server on a free port, as long as the test goes on.
async fn serve(stack: Stack, role: Role, lifetime: Lifetime) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let terms = Terms {
        role,
        tls: None,
        admission: Admission::default(),
        stack,
        stopping: Stopping::new(shutdown.clone()),
        calls: Arc::new(()),
        lifetime,
    };
    tokio::spawn(async move { take_connections(listener, terms, &shutdown).await });
    address
}

/// A client of HTTP/2, and the end of its connection.
async fn connect(
    address: SocketAddr,
) -> (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    (client, tokio::spawn(connection))
}

/// Begins a call of a method of health.
async fn call(
    client: &mut SendRequest<Bytes>,
    method: &str,
) -> Result<h2::client::ResponseFuture, h2::Error> {
    let mut request = Request::post(format!("http://part/grpc.health.v1.Health/{method}"));
    request = request.header(CONTENT_TYPE, "application/grpc");
    *client = client.clone().ready().await?;
    let (answer, mut body) = client.send_request(request.body(()).unwrap(), false)?;
    body.send_data(Bytes::from_static(EMPTY), true)?;
    Ok(answer)
}

/// What an answer ends with.
async fn status(answer: h2::client::ResponseFuture) -> Code {
    let (head, mut body) = answer.await.unwrap().into_parts();
    while let Some(data) = body.data().await {
        data.unwrap();
    }
    let trailers = body.trailers().await.unwrap();
    let status = Status::from_header_map(&head.headers);
    status.or_else(|| Status::from_header_map(&trailers?)).unwrap().code()
}

#[tokio::test]
async fn an_old_connection_says_so_and_its_calls_end_well() {
    let (begun, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, released) = (begun.clone(), release.clone());
    let slow = service_fn(move |_: Request<Body>| {
        let (begins, released) = (begins.clone(), released.clone());
        async move {
            begins.notify_one();
            released.notified().await;
            Ok(Response::new(Body::empty()))
        }
    });
    let old = Lifetime { age: SOON, ..lifetime() };
    let address = serve(BoxCloneSyncService::new(slow), Role::Service, old).await;
    let (mut client, ended) = connect(address).await;

    let answer = call(&mut client, "Check").await.unwrap();
    begun.notified().await;
    // The server takes no more calls, which a client sees by GOAWAY alone.
    while client.clone().ready().await.is_ok() {
        tokio::time::sleep(SOON / 10).await;
    }
    assert!(!ended.is_finished());
    release.notify_one();

    assert!(answer.await.unwrap().status().is_success());
    ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_on_an_old_connection_ends_with_a_status() {
    let old = Lifetime { age: SOON, grace: SOON, ..lifetime() };
    let (mut client, ended) = connect(serve(health(), Role::Service, old).await).await;

    let answer = call(&mut client, "Watch").await.unwrap();

    assert_eq!(status(answer).await, Code::Unavailable);
    ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_old_connection_of_http1_ends_with_an_answer_that_says_so() {
    let old = Lifetime { age: SOON, ..lifetime() };
    let mut stream = TcpStream::connect(serve(health(), Role::Edge, old).await).await.unwrap();
    loop {
        stream.write_all(&get("/")).await.unwrap();
        if read_answer(&mut stream).await.contains("connection: close") {
            break;
        }
    }
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn calls_that_are_given_up_break_no_other_on_their_connection() {
    const GIVEN_UP: u32 = 20_000;
    let mut stream =
        TcpStream::connect(serve(health(), Role::Service, lifetime()).await).await.unwrap();
    let mut storm = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    storm.extend(frame(4, 0, 0, &[]));
    for stream in (1..2 * GIVEN_UP).step_by(2) {
        // A request of three fields that every table has (RFC 7541, appendix A).
        storm.extend(frame(1, 4, stream, &[0x83, 0x86, 0x84]));
        storm.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    storm.extend(frame(PING, 0, 0, b"all done"));

    let (mut read, mut write) = stream.split();
    let (sent, seen) = tokio::join!(write.write_all(&storm), frames_until(&mut read, PING));

    sent.unwrap();
    assert!(!seen.contains(&GOAWAY), "the connection was given up");
}

#[tokio::test]
async fn a_request_that_is_refused_leaves_the_connection_to_the_next() {
    let mut stream =
        TcpStream::connect(serve(health(), Role::Edge, lifetime()).await).await.unwrap();
    let body = vec![b'x'; crate::MAX_MESSAGE_BYTES];
    for round in 0..20 {
        let (mut read, mut write) = stream.split();
        let request = post(body.len() / 20 * (round + 1), "");

        // It sends slowly, and all the same before it reads.
        write.write_all(&request).await.unwrap();
        for part in body[..body.len() / 20 * (round + 1)].chunks(body.len() / 4) {
            write.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }

        let answer = read_answer(&mut read).await;
        assert!(answer.starts_with("HTTP/1.1 415"), "{round}: {answer}");
        assert!(answer.contains("keep-alive: timeout="), "{round}: {answer}");
    }
}

#[tokio::test]
async fn a_connection_that_ends_after_a_refusal_says_so() {
    let address = serve(health(), Role::Edge, lifetime()).await;
    for request in [post(limits::DISCARDED_BYTES * 2, ""), post(1, "expect: 100-continue\r\n")] {
        let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
        write.write_all(&request).await.unwrap();
        // The server may end it at any time.
        tokio::spawn(async move { write.write_all(&vec![0; 3 * limits::DISCARDED_BYTES]).await });

        let answer = read_answer(&mut read).await;

        assert!(answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn what_says_nothing_is_not_waited_for() {
    for role in [Role::Service, Role::Edge, Role::Admin] {
        let address = serve(health(), role, Lifetime { silence: SOON, ..lifetime() }).await;
        for said in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n", b"GET / HTT"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(said).await.unwrap();

            let mut rest = Vec::new();
            let _ended = stream.read_to_end(&mut rest).await;
        }
        // Whoever has called may be as quiet as it likes.
        let (mut client, _) = connect(address).await;
        call(&mut client, "Check").await.unwrap().await.unwrap();
        tokio::time::sleep(2 * SOON).await;
        call(&mut client, "Check").await.unwrap().await.unwrap();
    }
}

#[tokio::test]
async fn whoever_has_its_share_of_connections_is_told_so() {
    let address = serve(health(), Role::Service, lifetime()).await;
    let mut connections = Vec::new();
    for _ in 0..limits::CONNECTIONS_OF_ONE {
        let (mut client, ended) = connect(address).await;
        call(&mut client, "Check").await.unwrap().await.unwrap();
        connections.push((client, ended));
    }
    let mut refused = TcpStream::connect(address).await.unwrap();

    let frames = frames_until(&mut refused, GOAWAY).await;

    assert_eq!(frames.last(), Some(&GOAWAY));
    drop(connections.pop());
    loop {
        let (mut client, _ended) = connect(address).await;
        let Ok(answer) = call(&mut client, "Check").await else { continue };
        if answer.await.is_ok() {
            break;
        }
    }
}

#[tokio::test]
async fn streams_that_anyone_may_open_are_few() {
    let (mut client, _ended) = connect(serve(health(), Role::Service, lifetime()).await).await;
    let mut open = Vec::new();
    for _ in 0..limits::STREAMS_OF_ONE {
        let mut body = call(&mut client, "Watch").await.unwrap().await.unwrap().into_body();
        body.data().await.unwrap().unwrap();
        open.push(body);
    }

    let refused = status(call(&mut client, "Watch").await.unwrap()).await;

    assert_eq!(refused, Code::Unavailable);
    assert_eq!(status(call(&mut client, "Check").await.unwrap()).await, Code::Ok);
    drop(open.pop());
    while let Ok(answer) = call(&mut client, "Watch").await {
        if answer.await.unwrap().into_body().data().await.is_some() {
            break;
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The types of frames that come until one of this type, or the end.
async fn frames_until(stream: &mut (impl tokio::io::AsyncRead + Unpin), kind: u8) -> Vec<u8> {
    let mut kinds = Vec::new();
    let mut head = [0; 9];
    while kinds.last() != Some(&kind) && stream.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize]).await.unwrap();
        kinds.push(head[3]);
    }
    kinds
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: part\r\n\r\n").into_bytes()
}

/// A request of a type that is not taken.
fn post(length: usize, line: &str) -> Vec<u8> {
    let head = "POST / HTTP/1.1\r\nhost: part\r\ncontent-type: text/plain\r\n";
    format!("{head}{line}content-length: {length}\r\n\r\n").into_bytes()
}

/// The head of an answer without a body.
async fn read_answer(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(answer).unwrap()
}
