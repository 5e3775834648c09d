//! Contacts: their use cases.

mod error;
mod metadata;
mod model;
mod recorded;
mod store;

use chrono::{DateTime, Utc};
use crm_auth::TenantContext;
use crm_clock::Clock;
use crm_service::page::{Cursor, Page, Position};
use crm_tenancy::{TenantSession, TenantSessions};
use futures_util::FutureExt as _;
use uuid::Uuid;

pub(crate) use error::ContactError;
pub(crate) use metadata::read_metadata;
pub(crate) use model::{
    Change, Contact, ContactFilter, ContactPatch, Field, NewContact, Recorded, Target, Write,
    phone_key,
};
pub(crate) use recorded::recorded_contact;

/// How often a change is tried whose contact changes meanwhile.
const ATTEMPTS: u32 = 3;

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
        write: Write,
    ) -> Result<Recorded, ContactError> {
        let contact = self.plan(new);
        let actor = ctx.subject().to_owned();
        self.sessions
            .run(ctx, move |session| {
                async move { store::insert(session, &contact, &actor, &write).await }.boxed()
            })
            .await
    }

    /// What creating this contact would give, without creating it.
    pub(crate) async fn preview(
        &self,
        ctx: &TenantContext,
        new: NewContact,
    ) -> Result<Contact, ContactError> {
        self.sessions.check(ctx).await?;
        Ok(self.plan(new))
    }

    fn plan(&self, new: NewContact) -> Contact {
        Contact::create(new, self.clock.new_id(), self.clock.now())
    }

    /// A contact of the caller's tenant.
    pub(crate) async fn get(&self, ctx: &TenantContext, id: Uuid) -> Result<Contact, ContactError> {
        self.sessions.run(ctx, move |session| read(session, id).boxed()).await
    }

    /// One page of the contacts of the caller's tenant, as it is to be shown.
    pub(crate) async fn list<T: Send + 'static>(
        &self,
        ctx: &TenantContext,
        filter: ContactFilter,
        cursor: Option<Cursor<Position>>,
        show: impl FnOnce(Page<Contact>) -> T + Send + 'static,
    ) -> Result<T, ContactError> {
        self.sessions
            .list(ctx, filter.page_size, move |session| {
                async move { store::list(session, &filter, cursor).await.map(show) }.boxed()
            })
            .await
    }

    /// Changes a contact of the caller's tenant, and answers what it became.
    pub(crate) async fn change(
        &self,
        ctx: &TenantContext,
        target: Target,
        change: Change,
        write: Write,
    ) -> Result<Recorded, ContactError> {
        let actor = ctx.subject().to_owned();
        let now = self.clock.now();
        self.sessions
            .run(ctx, move |session| {
                async move {
                    // The first answer to this request comes before what the
                    // contact has become since.
                    if let Some(recorded) = store::find_write(session, &actor, &write).await? {
                        return Ok(recorded);
                    }
                    let outcome = attempt(session, &target, &change, &actor, &write, now).await;
                    if outcome.is_ok() {
                        return outcome;
                    }
                    // The same request may have come first in the meantime, and
                    // be the reason why this one found what it found.
                    match store::find_write(session, &actor, &write).await? {
                        Some(recorded) => Ok(recorded),
                        None => outcome,
                    }
                }
                .boxed()
            })
            .await
    }

    /// What a change would give, without changing anything.
    pub(crate) async fn preview_change(
        &self,
        ctx: &TenantContext,
        target: Target,
        change: Change,
    ) -> Result<Contact, ContactError> {
        let now = self.clock.now();
        self.sessions
            .run(ctx, move |session| {
                async move { changed(session, &target, &change, now).await }.boxed()
            })
            .await
    }
}

/// Reads, changes and saves a contact. Where nobody asked for a certain state,
/// one that came meanwhile will do.
async fn attempt(
    session: &mut TenantSession,
    target: &Target,
    change: &Change,
    actor: &str,
    write: &Write,
    now: DateTime<Utc>,
) -> Result<Recorded, ContactError> {
    let mut attempts = 1;
    loop {
        let contact = changed(session, target, change, now).await?;
        match store::update(session, &contact, actor, write).await {
            Err(ContactError::Store(error))
                if error.is_conflict() && target.revision.is_none() && attempts < ATTEMPTS =>
            {
                attempts += 1;
            }
            outcome => return outcome,
        }
    }
}

async fn read(session: &mut TenantSession, id: Uuid) -> Result<Contact, ContactError> {
    store::get(session, id).await?.ok_or(ContactError::NotFound(id))
}

/// Reads a contact and applies a change to it.
async fn changed(
    session: &mut TenantSession,
    target: &Target,
    change: &Change,
    now: DateTime<Utc>,
) -> Result<Contact, ContactError> {
    let outcome = applied(store::get(session, target.id).await?, target, change, now);
    let is_of_the_contact = matches!(
        outcome,
        Err(ContactError::NotFound(_) | ContactError::Changed(_) | ContactError::Deleted(_))
    );
    // Who asks for what no contact can become is told that first.
    match change {
        Change::Update(patch) if is_of_the_contact => {
            let faults = patch.faults();
            if faults.is_empty() { outcome } else { Err(ContactError::Invalid(faults)) }
        }
        Change::Update(_) | Change::Delete | Change::Undelete => outcome,
    }
}

/// Applies a change to what was read.
fn applied(
    contact: Option<Contact>,
    target: &Target,
    change: &Change,
    now: DateTime<Utc>,
) -> Result<Contact, ContactError> {
    let mut contact = contact.ok_or(ContactError::NotFound(target.id))?;
    if target.revision.is_some_and(|revision| revision != contact.revision)
        && !cfg!(bug_etag_ignored)
    {
        return Err(ContactError::Changed(target.id));
    }
    contact.apply(change, now)?;
    Ok(contact)
}
