//! Conversations: listing them.

mod error;
pub(crate) mod model;
mod store;

use crm_auth::TenantContext;
use crm_service::page::{Cursor, Page, Position};
use crm_tenancy::TenantSessions;
use futures_util::FutureExt as _;

pub(crate) use error::ConversationError;
pub(crate) use model::{Conversation, ConversationFilter};

/// The use cases of conversations.
#[derive(Clone, Debug)]
pub(crate) struct Conversations {
    sessions: TenantSessions,
}

impl Conversations {
    pub(crate) fn new(sessions: TenantSessions) -> Self {
        Self { sessions }
    }

    /// One page of the conversations of the caller's tenant.
    pub(crate) async fn list(
        &self,
        ctx: &TenantContext,
        filter: ConversationFilter,
        cursor: Option<Cursor<Position>>,
    ) -> Result<Page<Conversation>, ConversationError> {
        self.sessions
            .run(ctx, move |session| {
                async move { store::list(session, &filter, cursor).await }.boxed()
            })
            .await
    }
}
