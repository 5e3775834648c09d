//! What can go wrong with a cluster.

use crm_error::{ApiError, ErrorReason};
use crm_tenancy::{SessionError, StoreError};

use crate::requests::RequestError;
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
    #[error("the request could not be answered as one that may be repeated")]
    Request(#[from] RequestError),
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
            ClusterError::Request(error) => error.into(),
            ClusterError::Seal(_) => Self::internal(error),
            ClusterError::Template(error) => (*error).into(),
            ClusterError::Store(error) => error.into(),
            ClusterError::Task(error) => error.into(),
        }
    }
}
