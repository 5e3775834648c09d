//! What can go wrong with changes.

use crm_error::{ApiError, Violations};
use crm_tenancy::{SessionError, StoreError};

/// Why changes could not be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("the revision to begin after is yet to come; the newest is {0}")]
    FutureRevision(i64),
    #[error("a resource of kind {0} is not known")]
    UnknownKind(i16),
    #[error("there was no session")]
    Session(#[from] SessionError),
    #[error("a statement failed")]
    Store(#[from] StoreError),
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::FutureRevision(newest) => {
                let mut violations = Violations::default();
                let text = format!("A revision of this tenant; the newest is {newest}.");
                violations.add("after_revision", "FUTURE_REVISION", text);
                Self::invalid(violations)
            }
            ChangeError::UnknownKind(_) => Self::internal(error),
            ChangeError::Session(error) => error.into(),
            ChangeError::Store(error) => error.into(),
        }
    }
}
