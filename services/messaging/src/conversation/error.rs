//! What can go wrong with a conversation.

use crm_error::{ApiError, ErrorReason};
use crm_proto::messaging::v1::conversation::State;
use crm_tenancy::{SessionError, StoreError};
use uuid::Uuid;

use super::model::MAX_CONVERSATIONS;

/// Why a conversation could not be created, read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConversationError {
    #[error("there is no conversation {0}")]
    NotFound(Uuid),
    #[error("conversation {0} is deleted")]
    Deleted(Uuid),
    #[error("conversation {0} changed meanwhile")]
    Changed(Uuid),
    #[error("a conversation does not go from {from:?} to {to:?}")]
    Transition { from: State, to: State },
    #[error("there is no contact {0}")]
    ContactNotFound(Uuid),
    #[error("contact {0} is deleted")]
    ContactDeleted(Uuid),
    #[error("contact {0} has as many conversations as it can")]
    ContactFull(Uuid),
    #[error("what is stored of a conversation cannot be read")]
    Corrupt(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("there was no session")]
    Session(#[from] SessionError),
    #[error("a statement failed")]
    Store(#[from] StoreError),
}

impl From<ConversationError> for ApiError {
    fn from(error: ConversationError) -> Self {
        match error {
            ConversationError::NotFound(id) => {
                Self::not_found("conversation", format!("conversations/{id}"))
            }
            ConversationError::Deleted(_) => {
                Self::new(ErrorReason::ResourceDeleted, "the conversation is deleted")
            }
            ConversationError::Changed(_) => Self::new(
                ErrorReason::ConcurrentChange,
                "the conversation changed meanwhile; read it again",
            ),
            ConversationError::Transition { from, to } => Self::new(
                ErrorReason::StateTransitionInvalid,
                "the conversation's state does not lead to this one",
            )
            .with_metadata("from", from.as_str_name())
            .with_metadata("to", to.as_str_name()),
            ConversationError::ContactNotFound(id) => {
                Self::not_found("contact", format!("contacts/{id}"))
            }
            ConversationError::ContactDeleted(_) => {
                Self::new(ErrorReason::ResourceDeleted, "the contact is deleted")
            }
            ConversationError::ContactFull(_) => Self::new(
                ErrorReason::ConversationLimitReached,
                format!("a contact has at most {MAX_CONVERSATIONS} conversations"),
            ),
            ConversationError::Corrupt(_) => Self::internal(error),
            ConversationError::Session(error) => error.into(),
            ConversationError::Store(error) => error.into(),
        }
    }
}
