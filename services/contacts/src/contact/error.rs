//! What can go wrong with a contact.

use crm_error::{ApiError, ErrorReason, Violations};
use crm_tenancy::{SessionError, StoreError};
use uuid::Uuid;

/// Why a contact could not be created or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContactError {
    #[error("there is no contact {0}")]
    NotFound(Uuid),
    #[error("contact {0} is deleted")]
    Deleted(Uuid),
    #[error("contact {0} is not deleted")]
    NotDeleted(Uuid),
    #[error("contact {0} changed meanwhile")]
    Changed(Uuid),
    #[error("what the contact would become is wrong")]
    Invalid(Violations),
    #[error("what is stored of a contact cannot be read")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("there was no session")]
    Session(#[from] SessionError),
    #[error("a statement failed")]
    Store(#[from] StoreError),
}

impl From<ContactError> for ApiError {
    fn from(error: ContactError) -> Self {
        match error {
            ContactError::NotFound(id) => Self::not_found("contact", format!("contacts/{id}")),
            ContactError::Deleted(_) => {
                Self::new(ErrorReason::ResourceDeleted, "the contact is deleted")
            }
            ContactError::NotDeleted(_) => {
                Self::new(ErrorReason::ResourceNotDeleted, "the contact is not deleted")
            }
            ContactError::Changed(_) => Self::new(
                ErrorReason::ConcurrentChange,
                "the contact changed meanwhile; read it again",
            ),
            ContactError::Invalid(violations) => Self::invalid(violations),
            ContactError::Corrupt(_) => Self::internal(error),
            ContactError::Session(error) => error.into(),
            ContactError::Store(error) => error.into(),
        }
    }
}
