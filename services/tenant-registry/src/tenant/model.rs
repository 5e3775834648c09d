//! What a tenant is, and what can be done to it.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use crm_error::Violations;
use crm_proto::registry::v1::tenant::{Kind, State};
use crm_service::text::is_blank;
use uuid::Uuid;

use super::error::TenantError;
use super::slug::is_slug;

/// How long a deleted tenant can be restored.
pub(crate) const GRACE: TimeDelta = TimeDelta::days(30);

/// Input to create a tenant.
#[derive(Clone, Debug)]
pub(crate) struct NewTenant {
    pub(crate) slug: Option<String>,
    pub(crate) display_name: String,
    pub(crate) kind: Kind,
    pub(crate) labels: BTreeMap<String, String>,
}

/// A tenant.
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    /// `None` in a preview.
    pub(crate) id: Option<Uuid>,
    pub(crate) slug: String,
    pub(crate) display_name: String,
    pub(crate) kind: Kind,
    pub(crate) state: State,
    pub(crate) cluster: String,
    pub(crate) database: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) update_time: DateTime<Utc>,
    pub(crate) delete_time: Option<DateTime<Utc>>,
    pub(crate) purge_time: Option<DateTime<Utc>>,
    pub(crate) revision: i64,
    /// The state that undeleting restores.
    pub(crate) restore_state: Option<State>,
}

/// A field that an update can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    DisplayName,
    Kind,
    Labels,
}

/// What an update changes: these fields, to what `new` has. `violations` is
/// what is wrong with the request already.
#[derive(Clone, Debug)]
pub(crate) struct TenantPatch {
    pub(crate) fields: Vec<Field>,
    pub(crate) new: NewTenant,
    pub(crate) violations: Violations,
}

/// What is done to a tenant.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Update(Box<TenantPatch>),
    Delete,
    Undelete,
    Suspend,
    Resume,
}

/// Which tenant a change is for, and the revision that it must have, if any.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) key: TenantKey,
    pub(crate) revision: Option<i64>,
}

/// Which tenants are listed, and how many.
#[derive(Clone, Debug)]
pub(crate) struct TenantFilter {
    pub(crate) state: Option<State>,
    pub(crate) slug: Option<String>,
    pub(crate) show_deleted: bool,
    pub(crate) page_size: i64,
}

/// How a tenant is named in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TenantKey {
    Id(Uuid),
    Slug(String),
}

impl TenantKey {
    /// What follows `tenants/` in a name.
    pub(crate) fn parse(text: &str) -> Self {
        match Uuid::try_parse(text) {
            Ok(id) => Self::Id(id),
            Err(_) => Self::Slug(text.to_owned()),
        }
    }
}

impl NewTenant {
    /// Adds what the rules of a tenant find wrong; fields are those of the
    /// request.
    pub(crate) fn check(&self, violations: &mut Violations) {
        if is_blank(&self.display_name) {
            violations.add("tenant.display_name", "NOT_BLANK", "It must not be blank.");
        }
        if let Some(slug) = &self.slug
            && !is_slug(slug)
        {
            violations.add(
                "tenant.slug",
                "SLUG",
                "3 to 63 of a-z, 0-9 and `-`; the first a letter, the last no `-`, the third and \
                 fourth not `--`; neither a UUID nor a reserved name.",
            );
        }
    }
}

impl Tenant {
    /// What a new tenant would be.
    pub(crate) fn preview(new: NewTenant, slug: String, now: DateTime<Utc>) -> Self {
        Self {
            id: None,
            slug,
            display_name: new.display_name,
            kind: new.kind,
            state: State::Active,
            cluster: String::new(),
            database: String::new(),
            labels: new.labels,
            create_time: now,
            update_time: now,
            delete_time: None,
            purge_time: None,
            revision: 1,
            restore_state: None,
        }
    }

    /// Applies a change.
    ///
    /// # Errors
    ///
    /// When the tenant's state or the rules of a tenant forbid it.
    pub(crate) fn apply(&mut self, change: &Change, now: DateTime<Utc>) -> Result<(), TenantError> {
        let id = self.id.unwrap_or_default();
        match change {
            Change::Update(patch) => {
                if self.delete_time.is_some() {
                    return Err(TenantError::Deleted(id));
                }
                patch.apply(self).map_err(TenantError::Invalid)?;
            }
            // From then on it may be removed at any moment.
            Change::Undelete if self.purge_time.is_some_and(|purge_time| purge_time <= now) => {
                return Err(TenantError::Unrestorable(id));
            }
            Change::Delete | Change::Undelete | Change::Suspend | Change::Resume => {
                self.state = self.state_after(change, id)?;
            }
        }
        match change {
            Change::Delete => {
                self.delete_time = Some(now);
                self.purge_time = Some(now + GRACE);
            }
            Change::Undelete => {
                self.delete_time = None;
                self.purge_time = None;
                self.restore_state = None;
            }
            Change::Update(_) | Change::Suspend | Change::Resume => {}
        }
        self.update_time = self.update_time.max(now);
        Ok(())
    }

    /// The state that a change leads to.
    fn state_after(&mut self, change: &Change, id: Uuid) -> Result<State, TenantError> {
        match (self.state, change) {
            (State::Unspecified | State::Provisioning, _) => Err(TenantError::Inactive(id)),
            (State::Active, Change::Suspend) => Ok(State::Suspended),
            (State::Suspended, Change::Suspend) => Err(TenantError::Suspended(id)),
            (State::Suspended, Change::Resume) => Ok(State::Active),
            (State::Active, Change::Resume) => Err(TenantError::NotSuspended(id)),
            (before @ (State::Active | State::Suspended), Change::Delete) => {
                self.restore_state = Some(before);
                Ok(State::Deleted)
            }
            (State::Active | State::Suspended, Change::Undelete) => {
                Err(TenantError::NotDeleted(id))
            }
            (State::Deleted, Change::Undelete) => Ok(self.restore_state.unwrap_or(State::Active)),
            (
                State::Deleted | State::Purging,
                Change::Delete | Change::Suspend | Change::Resume,
            ) => Err(TenantError::Deleted(id)),
            (State::Purging, Change::Undelete) => Err(TenantError::Unrestorable(id)),
            (state, Change::Update(_)) => Ok(state),
        }
    }
}

impl Change {
    /// The method that makes it.
    pub(crate) fn method(&self) -> &'static str {
        match self {
            Self::Update(_) => "UpdateTenant",
            Self::Delete => "DeleteTenant",
            Self::Undelete => "UndeleteTenant",
            Self::Suspend => "SuspendTenant",
            Self::Resume => "ResumeTenant",
        }
    }

    /// Whether PostgreSQL has to enforce what becomes of the tenant.
    pub(crate) fn moves_the_fence(&self) -> bool {
        match self {
            Self::Update(_) => false,
            Self::Delete | Self::Undelete | Self::Suspend | Self::Resume => true,
        }
    }

    /// Whether it lets the tenant be reached again.
    pub(crate) fn opens(&self) -> bool {
        match self {
            Self::Undelete | Self::Resume => true,
            Self::Update(_) | Self::Delete | Self::Suspend => false,
        }
    }
}

impl TenantPatch {
    /// All that is wrong with the request, whatever tenant it is for.
    pub(crate) fn faults(&self) -> Violations {
        let mut violations = self.violations.clone();
        if self.fields.contains(&Field::DisplayName) && is_blank(&self.new.display_name) {
            violations.add("tenant.display_name", "NOT_BLANK", "It must not be blank.");
        }
        violations
    }

    /// Makes of the tenant what it becomes.
    ///
    /// # Errors
    ///
    /// All that is wrong with the request, and with what the tenant becomes.
    fn apply(&self, tenant: &mut Tenant) -> Result<(), Violations> {
        let mut violations = self.faults();
        for field in &self.fields {
            match field {
                Field::DisplayName => tenant.display_name.clone_from(&self.new.display_name),
                Field::Kind => tenant.kind = self.new.kind,
                Field::Labels => tenant.labels.clone_from(&self.new.labels),
            }
        }
        // Whoever sends back what was read says nothing new.
        if self.new.slug.as_ref().is_some_and(|slug| *slug != tenant.slug) {
            violations.add("tenant.slug", "IMMUTABLE", "A slug never changes.");
        }
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }
}
