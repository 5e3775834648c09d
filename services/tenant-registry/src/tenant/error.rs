//! What can go wrong with a tenant.

use crm_error::{ApiError, ErrorReason, Violations};
use crm_tenancy::{SessionError, StoreError};
use uuid::Uuid;

use crate::claim::ClaimError;
use crate::fence::FenceError;
use crate::provisioning::ProvisionError;
use crate::requests::RequestError;

/// Why a tenant could not be created, read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TenantError {
    #[error("there is no such tenant")]
    NotFound,
    #[error("the slug belongs to another tenant")]
    SlugTaken,
    #[error("tenant {0} is still being made")]
    Inactive(Uuid),
    #[error("tenant {0} is suspended")]
    Suspended(Uuid),
    #[error("tenant {0} is not suspended")]
    NotSuspended(Uuid),
    #[error("tenant {0} is deleted")]
    Deleted(Uuid),
    #[error("tenant {0} is not deleted")]
    NotDeleted(Uuid),
    #[error("the purge_time of tenant {0} has passed")]
    Unrestorable(Uuid),
    #[error("tenant {0} changed meanwhile")]
    Changed(Uuid),
    #[error("what the tenant would become is wrong")]
    Invalid(Violations),
    #[error("the tenant's database could not be claimed")]
    Claim(#[from] ClaimError),
    #[error("the tenant's state could not be enforced")]
    Fence(#[from] FenceError),
    #[error("the request could not be answered as one that may be repeated")]
    Request(#[from] RequestError),
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
            TenantError::Inactive(_) => {
                Self::new(ErrorReason::TenantInactive, "the tenant is still being made")
            }
            TenantError::Suspended(_) => {
                Self::new(ErrorReason::TenantSuspended, "the tenant is suspended")
            }
            TenantError::NotSuspended(_) => {
                Self::new(ErrorReason::TenantNotSuspended, "the tenant is not suspended")
            }
            TenantError::Deleted(_) => {
                Self::new(ErrorReason::ResourceDeleted, "the tenant is deleted")
            }
            TenantError::NotDeleted(_) => {
                Self::new(ErrorReason::ResourceNotDeleted, "the tenant is not deleted")
            }
            TenantError::Unrestorable(_) => Self::new(
                ErrorReason::ResourceDeleted,
                "the tenant is deleted, and its purge_time has passed",
            ),
            TenantError::Changed(_) => Self::new(
                ErrorReason::ConcurrentChange,
                "the tenant changed meanwhile; read it again",
            ),
            TenantError::Invalid(violations) => Self::invalid(violations),
            TenantError::Claim(error) => error.into(),
            TenantError::Fence(error) => error.into(),
            TenantError::Request(error) => error.into(),
            TenantError::Provision(error) => error.into(),
            TenantError::Store(error) => error.into(),
            TenantError::Task(error) => error.into(),
        }
    }
}
