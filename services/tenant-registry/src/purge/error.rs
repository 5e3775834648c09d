//! What can go wrong with purging.

use crm_error::{ApiError, ErrorReason};
use crm_tenancy::{SessionError, StoreError};
use uuid::Uuid;

use crate::claim::cluster_refused;

/// Why a tenant could not be purged, or a database not be removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PurgeError {
    #[error("there is no such tenant")]
    NotFound,
    #[error("the tenant is not deleted")]
    NotDeleted,
    #[error("the cluster gave {0} to a tenant")]
    Claimed(Uuid),
    #[error("the cluster does not answer in time")]
    TooSlow,
    #[error("the cluster refused")]
    Cluster(#[source] StoreError),
    #[error("the registry's database failed")]
    Store(#[from] StoreError),
    #[error("the work did not end")]
    Task(#[from] SessionError),
}

impl From<PurgeError> for ApiError {
    fn from(error: PurgeError) -> Self {
        match error {
            PurgeError::NotFound => Self::not_found("tenant", ""),
            PurgeError::NotDeleted => Self::new(
                ErrorReason::ResourceNotDeleted,
                "the tenant is not deleted; DeleteTenant comes first",
            ),
            PurgeError::Claimed(_) => Self::internal(error),
            PurgeError::TooSlow => Self::unavailable(error),
            PurgeError::Cluster(error) => cluster_refused(error),
            PurgeError::Store(error) => error.into(),
            PurgeError::Task(error) => error.into(),
        }
    }
}
