//! The gRPC methods of messaging: decode, call, encode.

mod convert;

use crm_auth::TenantContext;
use crm_error::ApiError;
use crm_proto::changes::v1 as changes_pb;
use crm_proto::changes::v1::change_service_server::ChangeService;
use crm_proto::messaging::v1 as pb;
use crm_proto::messaging::v1::conversation_service_server::ConversationService;
use crm_proto::messaging::v1::message_service_server::MessageService;
use crm_service::names;
use crm_service::open::{open, settle};
use crm_service::page::{self, Binding, Cursor};
use crm_service::repeat::RequestKey;
use tonic::{Request, Response, Status};

use crate::change::Changes;
use crate::conversation::Conversations;
use crate::message::Messages;

/// `crm.changes.v1.ChangeService`.
#[derive(Debug)]
pub(crate) struct ChangeApi {
    pub(crate) changes: Changes,
}

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
impl ChangeService for ChangeApi {
    async fn list_changes(
        &self,
        request: Request<changes_pb::ListChangesRequest>,
    ) -> Result<Response<changes_pb::ListChangesResponse>, Status> {
        let (ctx, message, mut violations) = open::<TenantContext, _>(request)?;
        let filter = convert::change_filter(&message, &mut violations);
        settle(Some(()), violations)?;
        let shown = self.changes.list(&ctx, filter, convert::change_page).await;
        Ok(Response::new(shown.map_err(ApiError::from)?))
    }
}

#[tonic::async_trait]
impl ConversationService for ConversationApi {
    async fn create_conversation(
        &self,
        request: Request<pb::CreateConversationRequest>,
    ) -> Result<Response<pb::Conversation>, Status> {
        let (ctx, message, violations) = open::<TenantContext, _>(request)?;
        let anonymous =
            pb::CreateConversationRequest { request_id: String::new(), ..message.clone() };
        let key = RequestKey::new(&message.request_id, &anonymous);
        let validate_only = message.validate_only;
        let new = convert::new_conversation(message, violations)?;
        if validate_only {
            let preview = self.conversations.preview(&ctx, new).await.map_err(ApiError::from)?;
            return Ok(Response::new(convert::preview_conversation(preview)));
        }
        let recorded = self.conversations.create(&ctx, new, key).await.map_err(ApiError::from)?;
        let answer = convert::conversation_from_recorded(&recorded);
        Ok(Response::new(answer.map_err(ApiError::from)?))
    }

    async fn get_conversation(
        &self,
        request: Request<pb::GetConversationRequest>,
    ) -> Result<Response<pb::Conversation>, Status> {
        let (ctx, message, mut violations) = open::<TenantContext, _>(request)?;
        let id = names::parse_field("conversations", &message.name, "name", &mut violations);
        let id = settle(id, violations)?;
        let messages = convert::messages_shown(message.view(), message.message_page_size);
        let conversation = self.conversations.get(&ctx, id, messages).await;
        Ok(Response::new(conversation.map_err(ApiError::from)?.into()))
    }

    async fn list_conversations(
        &self,
        request: Request<pb::ListConversationsRequest>,
    ) -> Result<Response<pb::ListConversationsResponse>, Status> {
        let (ctx, message, mut violations) = open::<TenantContext, _>(request)?;
        let arguments = [
            message.contact.as_str(),
            &message.view.to_string(),
            &message.message_page_size.to_string(),
            &message.filter,
            &message.show_deleted.to_string(),
        ];
        let binding = Binding::new(ctx.tenant(), "ListConversations", &arguments);
        let cursor = Cursor::decode(&message.page_token, &binding, &mut violations);
        let filter = convert::filter(&message, &mut violations);
        settle(Some(()), violations)?;
        let show = move |page| convert::conversation_page(page, &binding);
        let shown = self.conversations.list(&ctx, filter, cursor, show).await;
        Ok(Response::new(shown.map_err(ApiError::from)?))
    }

    async fn update_conversation(
        &self,
        request: Request<pb::UpdateConversationRequest>,
    ) -> Result<Response<pb::Conversation>, Status> {
        let (ctx, message, violations) = open::<TenantContext, _>(request)?;
        let anonymous =
            pb::UpdateConversationRequest { request_id: String::new(), ..message.clone() };
        let key = RequestKey::new(&message.request_id, &anonymous);
        let validate_only = message.validate_only;
        let (target, patch) = convert::conversation_update(message, violations)?;
        if validate_only {
            let preview = self.conversations.preview_update(&ctx, target, patch).await;
            return Ok(Response::new(preview.map_err(ApiError::from)?.into()));
        }
        let recorded = self.conversations.update(&ctx, target, patch, key).await;
        let recorded = recorded.map_err(ApiError::from)?;
        let answer = convert::conversation_from_recorded(&recorded);
        Ok(Response::new(answer.map_err(ApiError::from)?))
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
            let message = self.messages.preview(&ctx, new).await.map_err(ApiError::from)?;
            return Ok(Response::new(convert::preview(message)));
        }
        let recorded = self.messages.create(&ctx, new, key).await.map_err(ApiError::from)?;
        Ok(Response::new(convert::message_from_recorded(&recorded).map_err(ApiError::from)?))
    }

    async fn get_message(
        &self,
        request: Request<pb::GetMessageRequest>,
    ) -> Result<Response<pb::Message>, Status> {
        let (ctx, message, mut violations) = open::<TenantContext, _>(request)?;
        let ids = convert::message_ids(&message.name, &mut violations);
        let (conversation_id, id) = settle(ids, violations)?;
        let message = self.messages.get(&ctx, conversation_id, id).await;
        Ok(Response::new(message.map_err(ApiError::from)?.into()))
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
        let show = move |page| convert::message_page(page, &binding);
        let shown = self.messages.list(&ctx, id, size, cursor, show).await;
        Ok(Response::new(shown.map_err(ApiError::from)?))
    }
}
