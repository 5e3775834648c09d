//! What is compared, and what comes of it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use uuid::Uuid;

use crate::lease::FoundLogin;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// In which cluster.
    pub cluster: String,
    /// The database, the role, or the tenant (`tenants/{uuid}`).
    pub subject: String,
    /// What was found, for an operator.
    pub detail: String,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// A cluster does not answer: what is there was not looked at.
    ClusterUnreachable,
    /// A database that the registry made is not there.
    DatabaseMissing,
    /// A database that the registry does not know.
    DatabaseOrphan,
    /// A database that was only half removed: nobody can connect to it.
    DatabaseInvalid,
    /// A database takes connections, and should not.
    DatabaseOpen,
    /// A database takes no connections, and should.
    DatabaseClosed,
    /// Someone may do in a database what only others may.
    DatabaseRights,
    /// A database of a tenant that there is not.
    DatabaseWithoutTenant,
    /// A tenant whose database is not a tenant's, or not finished.
    TenantWithoutDatabase,
    /// A login that the registry made is not there.
    LoginMissing,
    /// A tenant's login that the registry does not know.
    LoginOrphan,
    /// A login is open, and its tenant is suspended or deleted.
    LoginOpen,
    /// A login is shut, and its tenant is not.
    LoginShut,
    /// A login may not connect to its database, or is not just a member of its
    /// service's group.
    LoginRights,
    /// The registry keeps the secret of a login that was never made.
    SecretWithoutLogin,
    /// Requests or figures of a tenant that there is not.
    RowsOfNoTenant,
    /// A database whose making was left, and nobody takes it up.
    MakingLeft,
    /// A tenant's state that is not enforced, and nobody enforces it.
    StateLeft,
    /// A migration that was left, and nobody takes it up.
    MigrationLeft,
    /// A spare whose migration failed: it will never be a tenant's.
    SpareFailed,
    /// A cluster was set up for an older registry.
    ClusterOutdated,
    /// The cluster gave a database to a tenant that the registry does not know.
    TenantForgotten,
    /// The cluster does not know to whom it gave the database of a tenant.
    ClaimMissing,
    /// The cluster gave the database of a tenant to another claim.
    ClaimDifferent,
    /// The cluster enforces a state that the registry never wanted.
    StateDifferent,
    /// The cluster removed the database of a tenant for good.
    TenantRemoved,
    /// A database does not carry its claim.
    DatabaseUnmarked,
    /// A spare that belongs to a tenant that was never made.
    SpareSpoiled,
    /// A tenant that is to be removed for good, and is not.
    PurgeLeft,
    /// A login has settings of its own.
    LoginSettings,
    /// A login's password is not the one that the registry gave it.
    LoginPassword,
}

/// What a database is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Template,
    Spare,
    /// A spare that is given to nobody.
    Spoiled,
    Tenant,
}

/// What a tenant should be, as its state says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// In the making.
    Provisioning,
    /// Its logins are open.
    Open,
    /// Its logins are shut.
    Fenced,
    /// It is being removed.
    Purging,
}

/// A database that the registry made, or plans to make.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) id: Uuid,
    pub(super) name: String,
    pub(super) purpose: Purpose,
    pub(super) step: crate::provisioning::Step,
    /// Since when it is in the making.
    pub(super) since: DateTime<Utc>,
    pub(super) tenant: Option<KnownTenant>,
    /// Whether a migration is begun, since when, in the wave.
    pub(super) migrating_since: Option<DateTime<Utc>>,
    /// Whether a migration has failed.
    pub(super) has_failed: bool,
    pub(super) logins: Vec<KnownLogin>,
}

/// A tenant, as the registry knows it.
#[derive(Debug)]
pub(super) struct KnownTenant {
    pub(super) standing: Standing,
    /// Whether PostgreSQL is known to enforce it.
    pub(super) is_settled: bool,
    pub(super) changed: DateTime<Utc>,
    /// The claim that its database carries; `None`: not yet.
    pub(super) claim_id: Option<Uuid>,
}

/// A login, as the registry knows it.
#[derive(Debug)]
pub(super) struct KnownLogin {
    pub(super) service: String,
    pub(super) name: String,
    pub(super) is_ready: bool,
    /// `None`: it does not open.
    pub(super) password: Option<SecretString>,
}

/// A database that is there.
#[derive(Debug)]
pub(super) struct FoundDatabase {
    pub(super) name: String,
    pub(super) owner: String,
    pub(super) is_open: bool,
    pub(super) is_invalid: bool,
    /// The claim that it carries.
    pub(super) claim: Option<String>,
    /// Who may do what there, its owner left out.
    pub(super) rights: Vec<Right>,
}

/// A right in a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Right {
    pub(super) grantee: String,
    pub(super) privilege: String,
}

/// A tenant's login that is there.
#[derive(Debug)]
pub(super) struct FoundRole {
    pub(super) name: String,
    pub(super) is_open: bool,
    /// Whether it has a right of its own in the whole cluster.
    pub(super) is_mighty: bool,
    pub(super) groups: Vec<String>,
    /// Who is a member of it.
    pub(super) members: Vec<String>,
}

/// All that is in a cluster.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) databases: Vec<FoundDatabase>,
    pub(super) roles: Vec<FoundRole>,
    /// What a login may change of itself, by the login.
    pub(super) logins: HashMap<String, FoundLogin>,
}
