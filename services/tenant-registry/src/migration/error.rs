//! What can go wrong with showing and retrying migrations.

use crm_error::{ApiError, ErrorReason};
use crm_tenancy::{SessionError, StoreError};

use crate::requests::RequestError;

/// Why a migration could not be shown or retried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MigrationError {
    #[error("there is no such tenant")]
    TenantNotFound,
    #[error("there is no such migration")]
    NotFound,
    #[error("the migration has not failed")]
    NotFailed,
    #[error("the request could not be answered as one that may be repeated")]
    Request(#[from] RequestError),
    #[error("the registry's database failed")]
    Store(#[from] StoreError),
    #[error("the work did not end")]
    Task(#[from] SessionError),
}

impl From<MigrationError> for ApiError {
    fn from(error: MigrationError) -> Self {
        match error {
            MigrationError::TenantNotFound => Self::not_found("tenant", ""),
            MigrationError::NotFound => Self::not_found("migration", ""),
            MigrationError::NotFailed => Self::new(
                ErrorReason::MigrationNotFailed,
                "the migration has not failed; there is nothing to retry",
            ),
            MigrationError::Request(error) => error.into(),
            MigrationError::Store(error) => error.into(),
            MigrationError::Task(error) => error.into(),
        }
    }
}
