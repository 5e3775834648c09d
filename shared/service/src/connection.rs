//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::future::Future;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::PollSemaphore;
use tonic::body::Body;
use tonic::transport::server::{Connected as _, TcpConnectInfo, TlsConnectInfo};
use tower::ServiceExt as _;

use crate::admission::{Admission, Slot};
use crate::limits;
use crate::polite;
use crate::server::Role;
use crate::stack::Stack;
use crate::stopping::Stopping;
use crate::tls::ServerTls;
use crate::turns::{Duplex, Turn, Turns};

/// What all connections of a listener have in common.
pub(crate) struct Terms {
    pub(crate) role: Role,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) admission: Admission,
    pub(crate) stack: Stack,
    pub(crate) stopping: Stopping,
    /// Counts calls until their answers have been sent.
    pub(crate) calls: Arc<()>,
    pub(crate) lifetime: Lifetime,
}

/// A connection that has been taken.
pub(crate) struct Connecting {
    stream: TcpStream,
    address: IpAddr,
    slot: Slot,
    terms: Arc<Terms>,
}

impl Connecting {
    pub(crate) fn new(stream: TcpStream, address: IpAddr, slot: Slot, terms: Arc<Terms>) -> Self {
        Self { stream, address, slot, terms }
    }

    /// Serves it to its end. It ends early where it says nothing: after some
    /// seconds, or for another.
    pub(crate) async fn serve(self) {
        let Self { stream, address, slot, terms } = self;
        // An answer is not held back for more.
        let _set = stream.set_nodelay(true);
        let stopping = terms.stopping.of_connection();
        let mut life = Life {
            address,
            slot,
            terms,
            stopping,
            certificate: None,
            has_called: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        };
        let Some((turns, is_http2)) = life.greet(stream).await else { return };
        let life = Arc::new(life);
        let connection = Connection::new(turns, is_http2, life.clone());
        life.serve(connection).await;
    }
}

/// What the calls of one connection have in common.
struct Life {
    address: IpAddr,
    slot: Slot,
    terms: Arc<Terms>,
    stopping: Stopping,
    certificate: Option<TlsConnectInfo<TcpConnectInfo>>,
    has_called: AtomicBool,
    /// The answer to the next call is the last.
    ends: AtomicBool,
}

impl Life {
    /// The handshake, and what the client says first: whether it is HTTP/2.
    /// `None`: it said nothing in time. A proxy connects before it has a call.
    async fn greet(&mut self, stream: TcpStream) -> Option<(Turns, bool)> {
        let patience = if self.terms.admission.is_proxy(self.address) {
            limits::CONNECTION_AGE
        } else {
            self.terms.lifetime.silence
        };
        let stopping = self.terms.stopping.asked.clone();
        let terms = self.terms.clone();
        let greeting = async {
            let mut certificate = None;
            let stream: Box<dyn Duplex> = match &terms.tls {
                Some(tls) => {
                    let accepting = timeout(limits::HANDSHAKE, tls.accept(stream));
                    let stream = accepting.await.ok()?.ok()?;
                    certificate = Some(stream.connect_info());
                    Box::new(stream)
                }
                None => Box::new(stream),
            };
            let greeted = timeout(patience, Turns::greet(stream)).await.ok()?.ok()?;
            Some((greeted, certificate))
        };
        let (greeted, certificate) = tokio::select! {
            greeted = greeting => greeted?,
            () = self.slot.gives_way() => return None,
            () = stopping.cancelled() => return None,
        };
        self.certificate = certificate;
        let (turns, is_http2) = greeted;
        // Where HTTP/1.1 is not spoken, whoever tries is told so in HTTP/2.
        Some((turns, is_http2 || !self.terms.role.speaks_http1()))
    }

    /// Serves until the client ends it, or it is old, or the server stops; then
    /// lets its calls finish.
    async fn serve(&self, mut connection: Connection) {
        let is_http2 = connection.is_http2();
        let stops = || self.terms.stopping.asked.cancelled();
        let is_old = tokio::select! {
            () = &mut connection => return,
            () = self.slot.gives_way() => return,
            () = self.says_nothing(is_http2) => return,
            () = sleep(self.terms.lifetime.age(self.address)) => true,
            () = stops() => false,
        };
        self.ends.store(true, Ordering::Relaxed);
        if is_old {
            // In HTTP/1.1 only an answer can say that it is the last: whoever
            // sends while a connection closes cannot know whether it was heard.
            if is_http2 {
                connection.finish();
            }
            tokio::select! {
                () = &mut connection => return,
                () = sleep(self.terms.lifetime.grace) => {}
                () = stops() => {}
            }
        }
        // What is left for longer are streams, which end with a status.
        self.stopping.asked.cancel();
        connection.finish();
        let _ended = timeout(limits::DRAIN + limits::LINGER, connection).await;
    }

    /// Waits until the first request should have come. In HTTP/2 a client has
    /// said who it is before, and may connect before it has a call.
    async fn says_nothing(&self, is_http2: bool) {
        if !is_http2 && !self.terms.admission.is_proxy(self.address) {
            sleep(self.terms.lifetime.silence).await;
            if !self.has_called.load(Ordering::Relaxed) {
                return;
            }
        }
        std::future::pending().await
    }
}

/// How old connections become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetime {
    /// How long they may say nothing at first.
    pub(crate) silence: Duration,
    pub(crate) age: Duration,
    pub(crate) spread: Duration,
    pub(crate) grace: Duration,
}

impl Default for Lifetime {
    fn default() -> Self {
        Self {
            silence: limits::PREFACE,
            age: limits::CONNECTION_AGE,
            spread: limits::CONNECTION_AGE_SPREAD,
            grace: limits::CONNECTION_GRACE,
        }
    }
}

impl Lifetime {
    /// The age of one of them: not all come again at once.
    fn age(&self, address: IpAddr) -> Duration {
        let chance = RandomState::new().hash_one(address) as f64 / u64::MAX as f64;
        self.age + self.spread.mul_f64(chance)
    }
}

/// The calls of one connection.
#[derive(Clone)]
struct Calls {
    life: Arc<Life>,
    turn: Turn,
}

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let life = self.life.clone();
        if !life.has_called.swap(true, Ordering::Relaxed) {
            life.slot.speaks();
        }
        let terms = &life.terms;
        let origin = terms.admission.origin(life.address, request.headers());
        let is_http2 = request.version() == Version::HTTP_2;
        let mut request = request.map(Body::new);
        let extensions = request.extensions_mut();
        extensions.insert(origin);
        extensions.insert(life.stopping.of_call(&terms.calls));
        if let Some(certificate) = &life.certificate {
            extensions.insert(certificate.clone());
        }
        let stack = terms.stack.clone();
        if is_http2 {
            let turn = self.turn.of_call();
            return async move {
                drop(turn);
                stack.oneshot(request).await
            }
            .boxed();
        }
        let ends = move || life.ends.load(Ordering::Relaxed);
        polite::answer(stack, request, ends).map(Ok).boxed()
    }
}

/// A connection that is served when it is polled.
struct Connection {
    turn: Turn,
    /// The turns that all connections of the peer have.
    of_peer: PollSemaphore,
    protocol: Protocol,
}

enum Protocol {
    Http1(Pin<Box<http1::Connection<TokioIo<Turns>, Calls>>>),
    Http2(Pin<Box<http2::Connection<TokioIo<Turns>, Calls, TokioExecutor>>>),
}

impl Connection {
    fn new(turns: Turns, is_http2: bool, life: Arc<Life>) -> Self {
        let turn = turns.turn();
        let of_peer = PollSemaphore::new(life.slot.turns());
        let is_proxy = life.terms.admission.is_proxy(life.address);
        let idle = if is_proxy { limits::CONNECTION_AGE } else { limits::IDLE };
        let (io, calls) = (TokioIo::new(turns), Calls { life, turn: turn.clone() });
        let protocol = if is_http2 {
            Protocol::Http2(Box::pin(http2().serve_connection(io, calls)))
        } else {
            Protocol::Http1(Box::pin(http1(idle).serve_connection(io, calls)))
        };
        Self { turn, of_peer, protocol }
    }

    fn is_http2(&self) -> bool {
        matches!(self.protocol, Protocol::Http2(_))
    }

    /// Takes no more calls, and ends after the last.
    fn finish(&mut self) {
        match &mut self.protocol {
            Protocol::Http1(connection) => connection.as_mut().graceful_shutdown(),
            Protocol::Http2(connection) => connection.as_mut().graceful_shutdown(),
        }
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Until its turn comes it may write all the same. No turn is kept by who
        // does not read.
        let held = match self.of_peer.poll_acquire(cx) {
            Poll::Ready(held) => held,
            Poll::Pending => None,
        };
        self.turn.begin(held);
        let ended = match &mut self.protocol {
            Protocol::Http1(connection) => connection.as_mut().poll(cx),
            Protocol::Http2(connection) => connection.as_mut().poll(cx),
        };
        self.turn.end();
        ended.map(|ended| {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection broke");
            }
        })
    }
}

fn http1(idle: Duration) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(idle).max_buf_size(limits::HEAD_BYTES);
    builder
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_header_list_size(limits::HEADER_LIST_BYTES)
        .max_pending_accept_reset_streams(limits::PENDING_RESETS)
        .max_local_error_reset_streams(limits::WRONG_STREAMS)
        .keep_alive_interval(limits::KEEPALIVE)
        .keep_alive_timeout(limits::KEEPALIVE);
    builder
}

#[cfg(test)]
mod tests;
