//! What can go wrong with a conversation.

use crm_error::ApiError;
use crm_tenancy::{SessionError, StoreError};
use uuid::Uuid;

/// Why conversations could not be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConversationError {
    #[error("there is no contact {0}")]
    ContactNotFound(Uuid),
    #[error("there was no session")]
    Session(#[from] SessionError),
    #[error("a statement failed")]
    Store(#[from] StoreError),
}

impl From<ConversationError> for ApiError {
    fn from(error: ConversationError) -> Self {
        match error {
            ConversationError::ContactNotFound(id) => {
                Self::not_found("contact", format!("contacts/{id}"))
            }
            ConversationError::Session(error) => error.into(),
            ConversationError::Store(error) => error.into(),
        }
    }
}
