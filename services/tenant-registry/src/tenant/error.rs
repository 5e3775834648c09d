//! What can go wrong with a tenant.

use crm_error::{ApiError, ErrorReason};
use crm_tenancy::{SessionError, StoreError};

use crate::provisioning::ProvisionError;

/// Why a tenant could not be created or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TenantError {
    #[error("there is no such tenant")]
    NotFound,
    #[error("the slug belongs to another tenant")]
    SlugTaken,
    #[error("the request_id was used for a different request")]
    RequestIdReused,
    #[error("a stored answer cannot be read")]
    Corrupt(#[source] prost::DecodeError),
    #[error("the tenant's database could not be made")]
    Provision(#[from] ProvisionError),
    #[error("the registry's database failed")]
    Store(#[from] StoreError),
    #[error("the work did not end")]
    Task(#[from] SessionError),
}

impl From<TenantError> for ApiError {
    fn from(error: TenantError) -> Self {
        match error {
            TenantError::NotFound => Self::not_found("tenant", ""),
            TenantError::SlugTaken => {
                Self::new(ErrorReason::SlugTaken, "the slug belongs to another tenant")
            }
            TenantError::RequestIdReused => Self::new(
                ErrorReason::RequestIdReused,
                "the request_id was used for a different request",
            ),
            TenantError::Corrupt(_) => Self::internal(error),
            TenantError::Provision(error) => error.into(),
            TenantError::Store(error) => error.into(),
            TenantError::Task(error) => error.into(),
        }
    }
}
