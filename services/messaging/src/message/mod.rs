//! Messages: sending and listing them.

mod error;
mod model;
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
pub(crate) use model::{Message, NewMessage, Recorded, SenderType, sender_type};

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
        let message = self.preview(ctx, new)?;
        let actor = ctx.subject().to_owned();
        self.sessions
            .run(ctx, move |session| {
                async move { store::insert(session, message, &actor, &key).await }.boxed()
            })
            .await
    }

    /// What sending this message would give, without sending it.
    pub(crate) fn preview(
        &self,
        ctx: &TenantContext,
        new: NewMessage,
    ) -> Result<Message, MessageError> {
        if new.sender_type == SenderType::System {
            ctx.demand(Permission::SystemMessagesSend)?;
        }
        Ok(Message::create(new, ctx.subject(), self.clock.new_id(), self.clock.now()))
    }

    /// One page of the messages of a conversation of the caller's tenant.
    pub(crate) async fn list(
        &self,
        ctx: &TenantContext,
        conversation_id: Uuid,
        page_size: i64,
        cursor: Option<Cursor<i64>>,
    ) -> Result<Page<Message>, MessageError> {
        self.sessions
            .run(ctx, move |session| {
                async move { store::list(session, conversation_id, page_size, cursor).await }
                    .boxed()
            })
            .await
    }
}
