//! The gRPC methods of contacts: decode, call, encode.

pub(crate) mod convert;

use crm_auth::TenantContext;
use crm_error::ApiError;
use crm_proto::contacts::v1 as pb;
use crm_proto::contacts::v1::contact_service_server::ContactService;
use crm_service::names;
use crm_service::open::{open, settle};
use crm_service::repeat::RequestKey;
use tonic::{Request, Response, Status};

use crate::contact::Contacts;

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
        let key = RequestKey::new(&message.request_id, &anonymous);
        let new = message.contact.map(|contact| convert::new_contact(contact, &mut violations));
        let new = settle(new, violations)?;
        if message.validate_only {
            return Ok(Response::new(convert::preview(self.contacts.preview(new))));
        }
        let recorded = self.contacts.create(&ctx, new, key).await.map_err(ApiError::from)?;
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
}
