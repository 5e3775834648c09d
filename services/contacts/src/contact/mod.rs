//! Contacts: creating and reading them.

mod error;
mod model;
mod store;

use crm_auth::TenantContext;
use crm_clock::Clock;
use crm_service::repeat::RequestKey;
use crm_tenancy::TenantSessions;
use futures_util::FutureExt as _;
use uuid::Uuid;

pub(crate) use error::ContactError;
pub(crate) use model::{Contact, NewContact, Recorded};

/// The use cases of contacts.
#[derive(Clone, Debug)]
pub(crate) struct Contacts {
    sessions: TenantSessions,
    clock: Clock,
}

impl Contacts {
    pub(crate) fn new(sessions: TenantSessions, clock: Clock) -> Self {
        Self { sessions, clock }
    }

    /// Creates a contact and its initial conversation for the caller's tenant.
    pub(crate) async fn create(
        &self,
        ctx: &TenantContext,
        new: NewContact,
        key: RequestKey,
    ) -> Result<Recorded, ContactError> {
        let contact = self.preview(new);
        let actor = ctx.subject().to_owned();
        self.sessions
            .run(ctx, move |session| {
                async move { store::insert(session, &contact, &actor, &key).await }.boxed()
            })
            .await
    }

    /// What creating this contact would give, without creating it.
    pub(crate) fn preview(&self, new: NewContact) -> Contact {
        Contact::create(new, self.clock.new_id(), self.clock.now())
    }

    /// A contact of the caller's tenant.
    pub(crate) async fn get(&self, ctx: &TenantContext, id: Uuid) -> Result<Contact, ContactError> {
        let found = self
            .sessions
            .run(ctx, move |session| async move { store::get(session, id).await }.boxed())
            .await?;
        found.ok_or(ContactError::NotFound(id))
    }
}
