//! Requests that may be repeated (AIP-155), and what they were answered.

mod store;

use chrono::{DateTime, Utc};
use crm_error::{ApiError, ErrorReason};
use crm_service::repeat::RequestKey;
use crm_tenancy::StoreError;
use prost::Message;
use sqlx::PgConnection;

pub(crate) use store::Subject;

/// Why a request has no answer that was kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("the request_id was used for a different request")]
    IdReused,
    #[error("a stored answer cannot be read")]
    Corrupt(#[source] prost::DecodeError),
    #[error("a statement failed")]
    Store(#[from] StoreError),
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::IdReused => Self::new(
                ErrorReason::RequestIdReused,
                "the request_id was used for a different request",
            ),
            RequestError::Corrupt(_) => Self::internal(error),
            RequestError::Store(error) => error.into(),
        }
    }
}

/// A request, which may be repeated if it has an id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) caller: &'a str,
    pub(crate) method: &'static str,
    pub(crate) key: &'a RequestKey,
}

/// What is known of a request that was made before: what it is for, and the
/// answer, once there is one.
#[derive(Debug)]
pub(crate) struct Known<S> {
    pub(crate) subject: S,
    pub(crate) response: Option<Vec<u8>>,
}

impl Request<'_> {
    /// Answers what is known of the request, if it was made before. Requests
    /// with the same id wait for each other here, until the transaction ends.
    pub(crate) async fn claim<S: Subject>(
        &self,
        tx: &mut PgConnection,
        now: DateTime<Utc>,
    ) -> Result<Option<Known<S>>, RequestError> {
        let Some(request_id) = self.key.id else { return Ok(None) };
        match store::claim(tx, self, request_id, now).await? {
            Some((hash, ..)) if hash != self.key.hash => Err(RequestError::IdReused),
            known => Ok(known.map(|(_, subject, response)| Known { subject, response })),
        }
    }

    /// Keeps the request, and the answer to it where there is one already.
    pub(crate) async fn keep<S: Subject>(
        &self,
        tx: &mut PgConnection,
        subject: &S,
        response: Option<&[u8]>,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let Some(request_id) = self.key.id else { return Ok(()) };
        store::insert(tx, self, request_id, subject, response, now).await
    }

    /// Keeps the answer to a request that was kept without. Answers the first
    /// that was, which is this one unless another call was quicker.
    pub(crate) async fn keep_response<S: Subject>(
        &self,
        connection: &mut PgConnection,
        response: &[u8],
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(request_id) = self.key.id else { return Ok(None) };
        store::keep_response::<S>(connection, self, request_id, response).await
    }
}

/// An answer, as it was kept.
pub(crate) fn decode<M: Message + Default>(response: &[u8]) -> Result<M, RequestError> {
    M::decode(response).map_err(RequestError::Corrupt)
}
