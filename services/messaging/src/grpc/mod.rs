//! The gRPC methods of messaging: decode, call, encode.

pub(crate) mod convert;

use crm_auth::TenantContext;
use crm_error::ApiError;
use crm_proto::messaging::v1 as pb;
use crm_proto::messaging::v1::conversation_service_server::ConversationService;
use crm_proto::messaging::v1::message_service_server::MessageService;
use crm_service::names;
use crm_service::open::{open, settle};
use crm_service::page::{self, Binding, Cursor};
use crm_service::repeat::RequestKey;
use tonic::{Request, Response, Status};

use crate::conversation::Conversations;
use crate::message::Messages;

/// `crm.messaging.v1.ConversationService`.
#[derive(Debug)]
pub(crate) struct ConversationApi {
    pub(crate) conversations: Conversations,
}

/// `crm.messaging.v1.MessageService`.
#[derive(Debug)]
pub(crate) struct MessageApi {
    pub(crate) messages: Messages,
}

#[tonic::async_trait]
impl ConversationService for ConversationApi {
    async fn list_conversations(
        &self,
        request: Request<pb::ListConversationsRequest>,
    ) -> Result<Response<pb::ListConversationsResponse>, Status> {
        let (ctx, message, mut violations) = open::<TenantContext, _>(request)?;
        let binding = Binding::new(ctx.tenant(), "ListConversations", &[&message.contact]);
        let cursor = Cursor::decode(&message.page_token, &binding, &mut violations);
        let filter = convert::filter(&message, &mut violations);
        settle(Some(()), violations)?;
        let page = self.conversations.list(&ctx, filter, cursor).await.map_err(ApiError::from)?;
        Ok(Response::new(convert::conversation_page(page, &binding)))
    }
}

#[tonic::async_trait]
impl MessageService for MessageApi {
    async fn create_message(
        &self,
        request: Request<pb::CreateMessageRequest>,
    ) -> Result<Response<pb::Message>, Status> {
        let (ctx, message, mut violations) = open::<TenantContext, _>(request)?;
        let anonymous = pb::CreateMessageRequest { request_id: String::new(), ..message.clone() };
        let key = RequestKey::new(&message.request_id, &anonymous);
        let validate_only = message.validate_only;
        let new = convert::new_message(message, &mut violations);
        let new = settle(new, violations)?;
        if validate_only {
            let message = self.messages.preview(&ctx, new).map_err(ApiError::from)?;
            return Ok(Response::new(convert::preview(message)));
        }
        let recorded = self.messages.create(&ctx, new, key).await.map_err(ApiError::from)?;
        Ok(Response::new(convert::from_recorded(&recorded).map_err(ApiError::from)?))
    }

    async fn list_messages(
        &self,
        request: Request<pb::ListMessagesRequest>,
    ) -> Result<Response<pb::ListMessagesResponse>, Status> {
        let (ctx, message, mut violations) = open::<TenantContext, _>(request)?;
        let binding = Binding::new(ctx.tenant(), "ListMessages", &[&message.parent]);
        let cursor = Cursor::decode(&message.page_token, &binding, &mut violations);
        let id = names::parse_field("conversations", &message.parent, "parent", &mut violations);
        let id = settle(id, violations)?;
        let size = page::size(message.page_size);
        let page = self.messages.list(&ctx, id, size, cursor).await.map_err(ApiError::from)?;
        Ok(Response::new(convert::message_page(page, &binding)))
    }
}
