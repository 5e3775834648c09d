//! The text of the metrics, for whoever reads it, however slowly.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crm_error::ApiError;
use http_body::{Frame, SizeHint};
use metrics::Counter;
use metrics_exporter_prometheus::PrometheusHandle;
use prost::bytes::Bytes;
use tonic::Status;
use tonic::body::Body;

/// How many may read at a time.
const AT_ONCE: usize = 4;
/// How old a text may be, and how long nobody takes a reader's place.
const FRESH: Duration = Duration::from_secs(1);
/// How much is handed over before the reader has taken it.
const PART: usize = 16 * 1024;

/// Those who read, and what they were given last.
#[derive(Debug)]
pub(crate) struct Scrapes {
    recorder: &'static PrometheusHandle,
    state: Mutex<State>,
    refused: Counter,
}

#[derive(Debug, Default)]
struct State {
    last: Option<(Instant, Bytes)>,
    readers: VecDeque<Weak<Reader>>,
}

/// Someone who reads.
#[derive(Debug)]
struct Reader {
    since: Instant,
    /// `None`: another has taken the place.
    rest: Mutex<Option<Bytes>>,
}

impl Scrapes {
    pub(crate) fn new(recorder: &'static PrometheusHandle) -> Arc<Self> {
        let refused = metrics::counter!("crm_admission_refused_total", "limit" => "scrapes");
        Arc::new(Self { recorder, state: Mutex::default(), refused })
    }

    /// The text, which is a second old at most. `None`: too many read it. Who has
    /// read for longer than a second gives way.
    pub(crate) fn text(&self) -> Option<Body> {
        let mut state = lock(&self.state);
        state.readers.retain(|reader| reader.strong_count() > 0);
        if state.readers.len() >= AT_ONCE {
            let oldest = state.readers.front().and_then(Weak::upgrade);
            if let Some(oldest) = oldest {
                if oldest.since.elapsed() < FRESH {
                    self.refused.increment(1);
                    return None;
                }
                lock(&oldest.rest).take();
            }
            state.readers.pop_front();
        }
        let now = Instant::now();
        let text = match &state.last {
            Some((since, text)) if since.elapsed() < FRESH => text.clone(),
            _ => {
                let text = Bytes::from(self.recorder.render());
                state.last.insert((now, text)).1.clone()
            }
        };
        let reader = Arc::new(Reader { since: now, rest: Mutex::new(Some(text)) });
        state.readers.push_back(Arc::downgrade(&reader));
        Some(Body::new(Reading(reader)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a reader has not taken yet.
struct Reading(Arc<Reader>);

impl http_body::Body for Reading {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut rest = lock(&self.0.rest);
        Poll::Ready(match rest.as_mut() {
            None => Some(Err(ApiError::unavailable("it was read too slowly").into())),
            Some(rest) if rest.is_empty() => None,
            Some(rest) => Some(Ok(Frame::data(rest.split_to(PART.min(rest.len()))))),
        })
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0.rest).as_ref().is_some_and(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        let length = lock(&self.0.rest).as_ref().map_or(0, Bytes::len);
        SizeHint::with_exact(length as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::metrics::recorder;

    #[tokio::test]
    async fn who_reads_slowly_gives_way_and_only_then() {
        let scrapes = Scrapes::new(recorder().unwrap());
        let mut slow: Vec<_> = (0..AT_ONCE).map(|_| scrapes.text().unwrap()).collect();
        assert!(scrapes.text().is_none());
        drop(slow.pop());
        let quick = scrapes.text().unwrap();

        quick.collect().await.unwrap();
        slow.push(scrapes.text().unwrap());
        tokio::time::sleep(FRESH).await;
        scrapes.text().unwrap().collect().await.unwrap();

        let first = slow.remove(0).collect().await;
        assert!(first.is_err(), "it has what nobody should wait for");
        for other in slow {
            other.collect().await.unwrap();
        }
    }
}
