//! Requests are there as a whole before anything works for them: whoever sends
//! slowly, or never ends, holds up nobody else.

use std::future::poll_fn;
use std::pin::Pin;

use crm_error::{ApiError, ErrorReason};
use futures_util::FutureExt as _;
use http_body::{Body as _, Frame};
use http_body_util::Full;
use prost::bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use tonic::body::Body;

use super::{Origin, Peer, Share};
use crate::limits;

/// What stands before each message: whether it is compressed, and its length
/// (gRPC over HTTP/2, messages).
const PREFIX: usize = 5;

/// Reads a request of one message of at most `most` bytes to its end.
/// `head_bytes` are what else of it waits.
pub(super) async fn whole(
    mut body: Body,
    most: usize,
    head_bytes: usize,
    origin: &Origin,
) -> Result<Body, Status> {
    let started = Instant::now();
    let mut bytes = BytesMut::new();
    let mut share: Option<Share<Peer>> = None;
    loop {
        let frame = match frame(&mut body).now_or_never() {
            Some(frame) => frame,
            None => {
                if share.is_none() {
                    let room =
                        origin.body(most, limits::WAITING_CALL_BYTES + head_bytes + bytes.len());
                    share = Some(room.map_err(ApiError::from)?);
                }
                let until = started + limits::body_time(bytes.len());
                timeout_at(until, frame(&mut body)).await.map_err(|_| too_slow())?
            }
        };
        let Some(frame) = frame.transpose()? else { break };
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > most + PREFIX {
            return Err(too_large().into());
        }
        if let Some(share) = &mut share {
            share.grow(data.len()).map_err(ApiError::from)?;
        }
        bytes.extend_from_slice(&data);
        if announces_more_than(most, &bytes) {
            // The decoder refuses it, whatever else would come.
            break;
        }
    }
    Ok(Body::new(Full::new(bytes.freeze())))
}

async fn frame(body: &mut Body) -> Option<Result<Frame<Bytes>, Status>> {
    poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

fn announces_more_than(most: usize, bytes: &[u8]) -> bool {
    let length = bytes.get(1..PREFIX).and_then(|length| length.try_into().ok());
    length.is_some_and(|length| u32::from_be_bytes(length) as usize > most)
}

fn too_large() -> ApiError {
    ApiError::new(ErrorReason::RequestTooLarge, "the request is too large")
}

fn too_slow() -> Status {
    let error = ApiError::new(ErrorReason::DeadlineExceeded, "the request did not come in time");
    error.into()
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::{BodyExt as _, StreamBody};
    use tonic::Code;

    use super::*;

    const MOST: usize = 1024 * 1024;

    /// A body that begins like this and never ends.
    fn endless(begin: Vec<u8>) -> Body {
        let begin = stream::iter([Ok::<_, Status>(Frame::data(Bytes::from(begin)))]);
        Body::new(StreamBody::new(futures_util::StreamExt::chain(begin, stream::pending())))
    }

    #[tokio::test]
    async fn a_request_is_handed_on_as_it_came() {
        let message = [&[0, 0, 0, 0, 3][..], b"abc"].concat();
        let parts = message.clone().into_iter().map(|byte| Ok::<_, Status>(Frame::data([byte])));
        let parts = stream::iter(
            parts.map(|part| part.map(|f| f.map_data(|d| Bytes::copy_from_slice(&d)))),
        );

        let read = whole(Body::new(StreamBody::new(parts)), MOST, 0, &Origin::default()).await;

        assert_eq!(read.unwrap().collect().await.unwrap().to_bytes(), message);
    }

    #[tokio::test]
    async fn what_is_too_large_is_not_waited_for() {
        let origin = Origin::default();

        let announced = whole(endless(vec![0, 255, 0, 0, 0]), MOST, 0, &origin).await;
        let longer = whole(endless(vec![0; MOST + PREFIX + 1]), MOST, 0, &origin).await;

        assert_eq!(announced.unwrap().collect().await.unwrap().to_bytes().len(), PREFIX);
        assert_eq!(longer.unwrap_err().code(), Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn what_one_address_begins_and_does_not_end_is_bounded_and_given_back() {
        let origin = Origin::default();
        let begin = || whole(endless(vec![0; 512 * 1024]), MOST, 0, &origin);
        let mut waiting = Vec::new();
        let refused = loop {
            let mut next = Box::pin(begin());
            match (&mut next).now_or_never() {
                None => waiting.push(next),
                Some(refused) => break refused.unwrap_err(),
            }
        };

        assert_eq!(refused.code(), Code::Unavailable);
        let other = Origin { peer: Peer::of([192, 0, 2, 1].into()), ..origin.clone() };
        assert!(whole(endless(vec![0; 5]), MOST, 0, &other).now_or_never().is_none());
        let taken = waiting.len() * 512 * 1024;
        assert!((limits::PARTIAL_BYTES_UNCONTENDED - MOST..limits::PARTIAL_BYTES).contains(&taken));
        drop(waiting);
        assert!(begin().now_or_never().is_none());
    }
}
