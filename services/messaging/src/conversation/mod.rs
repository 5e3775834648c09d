//! Conversations: their use cases.

mod error;
mod model;
mod recorded;
mod store;

use crm_auth::TenantContext;
use crm_clock::Clock;
use crm_service::page::{Cursor, Page, Position};
use crm_service::repeat::RequestKey;
use crm_tenancy::TenantSessions;
use futures_util::FutureExt as _;
use uuid::Uuid;

pub(crate) use error::ConversationError;
pub(crate) use model::{
    Conversation, ConversationFilter, ConversationPatch, NewConversation, State, Target,
};
pub(crate) use recorded::recorded_conversation;
pub(crate) use store::get;

use crate::write::{Recorded, Write};

/// The use cases of conversations.
#[derive(Clone, Debug)]
pub(crate) struct Conversations {
    sessions: TenantSessions,
    clock: Clock,
}

impl Conversations {
    pub(crate) fn new(sessions: TenantSessions, clock: Clock) -> Self {
        Self { sessions, clock }
    }

    /// Creates a conversation with a contact of the caller's tenant.
    pub(crate) async fn create(
        &self,
        ctx: &TenantContext,
        new: NewConversation,
        key: RequestKey,
    ) -> Result<Recorded, ConversationError> {
        let conversation = Conversation::create(new, self.clock.new_id(), self.clock.now());
        let write = Write { method: "CreateConversation", actor: ctx.subject().to_owned(), key };
        self.sessions
            .run(ctx, move |session| {
                async move { store::insert(session, conversation, write).await }.boxed()
            })
            .await
    }

    /// What creating this conversation would give, without creating it.
    pub(crate) async fn preview(
        &self,
        ctx: &TenantContext,
        new: NewConversation,
    ) -> Result<Conversation, ConversationError> {
        let conversation = Conversation::create(new, self.clock.new_id(), self.clock.now());
        self.sessions
            .run(ctx, move |session| {
                async move {
                    store::check_contact(session.connection(), conversation.contact_id).await?;
                    Ok(conversation)
                }
                .boxed()
            })
            .await
    }

    /// A conversation of the caller's tenant, with as many of its latest
    /// messages.
    pub(crate) async fn get(
        &self,
        ctx: &TenantContext,
        id: Uuid,
        messages: i64,
    ) -> Result<Conversation, ConversationError> {
        let filter = ConversationFilter {
            id: Some(id),
            show_deleted: true,
            page_size: 1,
            messages,
            ..ConversationFilter::default()
        };
        let only = self.list(ctx, filter, None, |page| page.items.into_iter().next()).await?;
        only.ok_or(ConversationError::NotFound(id))
    }

    /// One page of the conversations of the caller's tenant, as it is to be
    /// shown.
    pub(crate) async fn list<T: Send + 'static>(
        &self,
        ctx: &TenantContext,
        filter: ConversationFilter,
        cursor: Option<Cursor<Position>>,
        show: impl FnOnce(Page<Conversation>) -> T + Send + 'static,
    ) -> Result<T, ConversationError> {
        let rows = filter.page_size * filter.messages.max(1);
        self.sessions
            .list(ctx, rows, move |session| {
                async move { store::list(session, &filter, cursor).await.map(show) }.boxed()
            })
            .await
    }

    /// Changes a conversation of the caller's tenant, and answers what it
    /// became.
    pub(crate) async fn update(
        &self,
        ctx: &TenantContext,
        target: Target,
        patch: ConversationPatch,
        key: RequestKey,
    ) -> Result<Recorded, ConversationError> {
        let write = Write { method: "UpdateConversation", actor: ctx.subject().to_owned(), key };
        let now = self.clock.now();
        self.sessions
            .run(ctx, move |session| {
                async move { store::update(session, target, patch, now, write).await }.boxed()
            })
            .await
    }

    /// What an update would give, without changing anything.
    pub(crate) async fn preview_update(
        &self,
        ctx: &TenantContext,
        target: Target,
        patch: ConversationPatch,
    ) -> Result<Conversation, ConversationError> {
        let now = self.clock.now();
        self.sessions
            .run(ctx, move |session| {
                async move {
                    let read = store::get(session.connection(), target.id).await?;
                    let mut conversation = read.ok_or(ConversationError::NotFound(target.id))?;
                    conversation.apply(&target, patch, now)?;
                    Ok(conversation)
                }
                .boxed()
            })
            .await
    }
}
