//! How connections are read: in turns, of which each peer has only so many at a
//! time. Whoever sends much at once waits for itself; its frames do not pile up
//! before anything is done about them.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use prost::bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use crate::limits;

/// What a client of HTTP/2 says first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream of bytes in both directions.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One of the turns that a peer has, as long as a call is not begun that it
/// brought.
pub(crate) type Held = Arc<OwnedSemaphorePermit>;

/// The turn of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turn(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// How much may still be read.
    left: AtomicUsize,
    held: Mutex<Option<Held>>,
}

impl Turn {
    /// Without `held` nothing is read: it is another's turn.
    pub(crate) fn begin(&self, held: Option<OwnedSemaphorePermit>) {
        let bytes = if held.is_some() { limits::TURN_BYTES } else { 0 };
        self.0.left.store(bytes, Ordering::Relaxed);
        *self.held() = held.map(Arc::new);
    }

    /// It is over when the calls that it brought are begun.
    pub(crate) fn end(&self) {
        self.held().take();
    }

    /// What a call holds until it is begun.
    pub(crate) fn of_call(&self) -> Option<Held> {
        self.held().clone()
    }

    fn left(&self) -> usize {
        self.0.left.load(Ordering::Relaxed)
    }

    fn read(&self, bytes: usize) {
        self.0.left.store(self.left() - bytes, Ordering::Relaxed);
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that is read in turns.
pub(crate) struct Turns {
    stream: Box<dyn Duplex>,
    /// What was read before anyone could tell what it is.
    first: Bytes,
    turn: Turn,
}

impl Turns {
    /// Reads until it is plain whether HTTP/2 is spoken.
    pub(crate) async fn greet(mut stream: Box<dyn Duplex>) -> io::Result<(Self, bool)> {
        let mut said = [0; PREFACE.len()];
        let mut length = 0;
        while length < PREFACE.len() && PREFACE.starts_with(&said[..length]) {
            match stream.read(&mut said[length..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => length += more,
            }
        }
        let first = Bytes::copy_from_slice(&said[..length]);
        Ok((Self { stream, first, turn: Turn::default() }, said == *PREFACE))
    }

    pub(crate) fn turn(&self) -> Turn {
        self.turn.clone()
    }
}

impl AsyncRead for Turns {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.first.is_empty() {
            let length = this.first.len().min(buffer.remaining());
            buffer.put_slice(&this.first[..length]);
            this.first.advance(length);
            return Poll::Ready(Ok(()));
        }
        let most = this.turn.left().min(buffer.remaining());
        if most == 0 {
            if this.turn.held().is_some() {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        let mut part = [0; limits::TURN_BYTES];
        let mut part = ReadBuf::new(&mut part[..most]);
        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
        buffer.put_slice(part.filled());
        this.turn.read(part.filled().len());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Turns {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
