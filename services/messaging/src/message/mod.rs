//! Messages: their use cases.

mod error;
mod model;
mod recorded;
mod store;

use crm_auth::TenantContext;
use crm_clock::Clock;
use crm_proto::options::v1::Permission;
use crm_service::page::{Cursor, Page};
use crm_service::repeat::RequestKey;
use crm_tenancy::TenantSessions;
use futures_util::FutureExt as _;
use uuid::Uuid;

pub(crate) use error::MessageError;
pub(crate) use model::{Message, NewMessage, SenderType, sender_type};
pub(crate) use recorded::recorded_message;

use crate::write::{Recorded, Write};

/// The use cases of messages.
#[derive(Clone, Debug)]
pub(crate) struct Messages {
    sessions: TenantSessions,
    clock: Clock,
}

impl Messages {
    pub(crate) fn new(sessions: TenantSessions, clock: Clock) -> Self {
        Self { sessions, clock }
    }

    /// Adds a message to a conversation of the caller's tenant.
    pub(crate) async fn create(
        &self,
        ctx: &TenantContext,
        new: NewMessage,
        key: RequestKey,
    ) -> Result<Recorded, MessageError> {
        let message = self.message(ctx, new)?;
        let write = Write { method: "CreateMessage", actor: ctx.subject().to_owned(), key };
        self.sessions
            .run(ctx, move |session| {
                async move { store::insert(session, message, write).await }.boxed()
            })
            .await
    }

    /// What sending this message would give, without sending it.
    pub(crate) async fn preview(
        &self,
        ctx: &TenantContext,
        new: NewMessage,
    ) -> Result<Message, MessageError> {
        let message = self.message(ctx, new)?;
        self.sessions
            .run(ctx, move |session| async move { store::preview(session, message).await }.boxed())
            .await
    }

    /// A new message of the caller.
    fn message(&self, ctx: &TenantContext, new: NewMessage) -> Result<Message, MessageError> {
        if new.sender_type == SenderType::System {
            ctx.demand(Permission::SystemMessagesSend)?;
        }
        Ok(Message::create(new, ctx.subject(), self.clock.new_id(), self.clock.now()))
    }

    /// A message of a conversation of the caller's tenant.
    pub(crate) async fn get(
        &self,
        ctx: &TenantContext,
        conversation_id: Uuid,
        id: Uuid,
    ) -> Result<Message, MessageError> {
        self.sessions
            .run(ctx, move |session| {
                async move { store::get(session, conversation_id, id).await }.boxed()
            })
            .await
    }

    /// One page of the messages of a conversation of the caller's tenant, as it
    /// is to be shown.
    pub(crate) async fn list<T: Send + 'static>(
        &self,
        ctx: &TenantContext,
        conversation_id: Uuid,
        page_size: i64,
        cursor: Option<Cursor<i64>>,
        show: impl FnOnce(Page<Message>) -> T + Send + 'static,
    ) -> Result<T, MessageError> {
        self.sessions
            .list(ctx, page_size, move |session| {
                async move {
                    store::list(session, conversation_id, page_size, cursor).await.map(show)
                }
                .boxed()
            })
            .await
    }
}
