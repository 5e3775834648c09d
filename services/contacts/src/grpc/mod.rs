//! The gRPC methods of contacts: decode, call, encode.

mod convert;

use crm_auth::TenantContext;
use crm_error::ApiError;
use crm_proto::contacts::v1 as pb;
use crm_proto::contacts::v1::contact_service_server::ContactService;
use crm_service::names;
use crm_service::open::{open, settle};
use crm_service::page::{Binding, Cursor};
use crm_service::repeat::RequestKey;
use tonic::{Request, Response, Status};

use crate::contact::{Change, Contacts, Target, Write};

/// `crm.contacts.v1.ContactService`.
#[derive(Debug)]
pub(crate) struct ContactApi {
    pub(crate) contacts: Contacts,
}

#[tonic::async_trait]
impl ContactService for ContactApi {
    async fn create_contact(
        &self,
        request: Request<pb::CreateContactRequest>,
    ) -> Result<Response<pb::Contact>, Status> {
        let (ctx, message, mut violations) = open::<TenantContext, _>(request)?;
        let anonymous = pb::CreateContactRequest { request_id: String::new(), ..message.clone() };
        let write = write("CreateContact", &message.request_id, &anonymous);
        let new = message.contact.map(|contact| convert::new_contact(contact, &mut violations));
        let new = settle(new, violations)?;
        if message.validate_only {
            let contact = self.contacts.preview(&ctx, new).await.map_err(ApiError::from)?;
            return Ok(Response::new(convert::preview(contact)));
        }
        let recorded = self.contacts.create(&ctx, new, write).await.map_err(ApiError::from)?;
        Ok(Response::new(convert::from_recorded(&recorded).map_err(ApiError::from)?))
    }

    async fn get_contact(
        &self,
        request: Request<pb::GetContactRequest>,
    ) -> Result<Response<pb::Contact>, Status> {
        let (ctx, message, mut violations) = open::<TenantContext, _>(request)?;
        let id = names::parse_field("contacts", &message.name, "name", &mut violations);
        let id = settle(id, violations)?;
        let contact = self.contacts.get(&ctx, id).await.map_err(ApiError::from)?;
        Ok(Response::new(contact.into()))
    }

    async fn list_contacts(
        &self,
        request: Request<pb::ListContactsRequest>,
    ) -> Result<Response<pb::ListContactsResponse>, Status> {
        let (ctx, message, mut violations) = open::<TenantContext, _>(request)?;
        let deleted = message.show_deleted.to_string();
        let binding = Binding::new(ctx.tenant(), "ListContacts", &[&message.filter, &deleted]);
        let cursor = Cursor::decode(&message.page_token, &binding, &mut violations);
        let filter = convert::filter(&message, &mut violations);
        settle(Some(()), violations)?;
        let show = move |page| convert::page(page, &binding);
        let shown = self.contacts.list(&ctx, filter, cursor, show).await;
        Ok(Response::new(shown.map_err(ApiError::from)?))
    }

    async fn update_contact(
        &self,
        request: Request<pb::UpdateContactRequest>,
    ) -> Result<Response<pb::Contact>, Status> {
        let (ctx, message, violations) = open::<TenantContext, _>(request)?;
        let anonymous = pb::UpdateContactRequest { request_id: String::new(), ..message.clone() };
        let write = write("UpdateContact", &message.request_id, &anonymous);
        let validate_only = message.validate_only;
        let (target, patch) = convert::update(message, violations)?;
        self.change(&ctx, target, Change::Update(Box::new(patch)), write, validate_only).await
    }

    async fn delete_contact(
        &self,
        request: Request<pb::DeleteContactRequest>,
    ) -> Result<Response<pb::Contact>, Status> {
        let (ctx, message, violations) = open::<TenantContext, _>(request)?;
        let anonymous = pb::DeleteContactRequest { request_id: String::new(), ..message.clone() };
        let write = write("DeleteContact", &message.request_id, &anonymous);
        let target = convert::target(&message.name, &message.etag, violations)?;
        self.change(&ctx, target, Change::Delete, write, message.validate_only).await
    }

    async fn undelete_contact(
        &self,
        request: Request<pb::UndeleteContactRequest>,
    ) -> Result<Response<pb::Contact>, Status> {
        let (ctx, message, violations) = open::<TenantContext, _>(request)?;
        let anonymous = pb::UndeleteContactRequest { request_id: String::new(), ..message.clone() };
        let write = write("UndeleteContact", &message.request_id, &anonymous);
        let target = convert::target(&message.name, &message.etag, violations)?;
        self.change(&ctx, target, Change::Undelete, write, message.validate_only).await
    }
}

impl ContactApi {
    /// What update, delete and undelete have in common.
    async fn change(
        &self,
        ctx: &TenantContext,
        target: Target,
        change: Change,
        write: Write,
        validate_only: bool,
    ) -> Result<Response<pb::Contact>, Status> {
        if validate_only {
            let contact = self.contacts.preview_change(ctx, target, change).await;
            return Ok(Response::new(contact.map_err(ApiError::from)?.into()));
        }
        let recorded = self.contacts.change(ctx, target, change, write).await;
        let recorded = recorded.map_err(ApiError::from)?;
        Ok(Response::new(convert::from_recorded(&recorded).map_err(ApiError::from)?))
    }
}

fn write(method: &'static str, request_id: &str, anonymous: &impl prost::Message) -> Write {
    Write { method, key: RequestKey::new(request_id, anonymous) }
}
