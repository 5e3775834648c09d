//! What can go wrong with a message.

use crm_error::{ApiError, ErrorReason};
use crm_tenancy::{SessionError, StoreError};
use uuid::Uuid;

/// Why a message could not be sent or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("there is no message {id} in conversation {conversation_id}")]
    NotFound { conversation_id: Uuid, id: Uuid },
    #[error("there is no conversation {0}")]
    ConversationNotFound(Uuid),
    #[error("conversation {0} is deleted")]
    ConversationDeleted(Uuid),
    #[error("conversation {0} is closed")]
    ConversationClosed(Uuid),
    #[error("the caller may not send this")]
    Forbidden(#[from] ApiError),
    #[error("what is stored of a message cannot be read")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("there was no session")]
    Session(#[from] SessionError),
    #[error("a statement failed")]
    Store(#[from] StoreError),
}

impl From<MessageError> for ApiError {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::NotFound { conversation_id, id } => {
                Self::not_found("message", format!("conversations/{conversation_id}/messages/{id}"))
            }
            MessageError::ConversationNotFound(id) => {
                Self::not_found("conversation", format!("conversations/{id}"))
            }
            MessageError::ConversationDeleted(_) => {
                Self::new(ErrorReason::ResourceDeleted, "the conversation is deleted")
            }
            MessageError::ConversationClosed(_) => {
                Self::new(ErrorReason::ConversationClosed, "the conversation is closed")
            }
            MessageError::Forbidden(error) => error,
            MessageError::Corrupt(_) => Self::internal(error),
            MessageError::Session(error) => error.into(),
            MessageError::Store(error) => error.into(),
        }
    }
}
