//! What can go wrong with a cluster.

use crm_error::{ApiError, ErrorReason};
use crm_tenancy::{SessionError, StoreError};

use crate::schema::SchemaError;
use crate::seal::SealError;

/// Why a cluster could not be added, read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("there is no such cluster")]
    NotFound,
    #[error("there is a cluster of this id, or with this server")]
    Exists,
    #[error("the server lacks what a cluster needs: {}", .0.join("; "))]
    NotReady(Vec<String>),
    #[error("the cluster changed meanwhile")]
    Changed,
    #[error("the request_id was used for a different request")]
    RequestIdReused,
    #[error("a stored answer cannot be read")]
    Corrupt(#[source] prost::DecodeError),
    #[error("a password could not be sealed or opened")]
    Seal(#[from] SealError),
    #[error("the cluster's template could not be made")]
    Template(#[from] Box<SchemaError>),
    #[error("the registry's database failed")]
    Store(#[from] StoreError),
    #[error("the work did not end")]
    Task(#[from] SessionError),
}

impl From<ClusterError> for ApiError {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::NotFound => Self::not_found("cluster", ""),
            ClusterError::Exists => Self::new(
                ErrorReason::ClusterExists,
                "there is a cluster of this id, or with this server",
            ),
            ClusterError::NotReady(missing) => {
                Self::new(ErrorReason::ClusterNotReady, missing.join("; "))
            }
            ClusterError::Changed => Self::new(
                ErrorReason::ConcurrentChange,
                "the cluster changed meanwhile; read it again",
            ),
            ClusterError::RequestIdReused => Self::new(
                ErrorReason::RequestIdReused,
                "the request_id was used for a different request",
            ),
            ClusterError::Corrupt(_) | ClusterError::Seal(_) => Self::internal(error),
            ClusterError::Template(error) => (*error).into(),
            ClusterError::Store(error) => error.into(),
            ClusterError::Task(error) => error.into(),
        }
    }
}
