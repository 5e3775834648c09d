//! One cluster against what the registry knows of it.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};

use super::model::{
    Finding, FindingKind, Found, FoundDatabase, FoundRole, Known, KnownLogin, Purpose, Right,
    Standing,
};
use crate::lease::FoundLogin;
use crate::provisioning::Step;

/// The databases that are there for everyone.
const SHARED: [&str; 3] = ["postgres", "template1", "crm_registry"];

/// How long a tenant that is to be purged may wait for its turn.
const PURGES_WITHIN: TimeDelta = TimeDelta::hours(1);

/// What is compared with what.
#[derive(Debug)]
pub(super) struct Comparison<'a> {
    pub(super) cluster: &'a str,
    pub(super) known: &'a [Known],
    pub(super) found: &'a Found,
    /// What began before this, and that nobody is at, was left.
    pub(super) before: DateTime<Utc>,
    /// The databases that someone is at.
    pub(super) busy: &'a HashSet<uuid::Uuid>,
}

/// What to note where something is wrong.
struct Notes<'a> {
    cluster: &'a str,
    findings: Vec<Finding>,
}

impl Notes<'_> {
    fn add(&mut self, kind: FindingKind, subject: &str, detail: impl Into<String>) {
        self.findings.push(Finding {
            kind,
            cluster: self.cluster.to_owned(),
            subject: subject.to_owned(),
            detail: detail.into(),
        });
    }
}

impl Comparison<'_> {
    /// Everything that is not as it should be.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut notes = Notes { cluster: self.cluster, findings: Vec::new() };
        let databases: HashMap<_, _> =
            self.found.databases.iter().map(|found| (found.name.as_str(), found)).collect();
        let roles: HashMap<_, _> =
            self.found.roles.iter().map(|found| (found.name.as_str(), found)).collect();
        for known in self.known {
            self.tenant(known, &mut notes);
            if self.is_purging(known, &mut notes) {
                continue;
            }
            self.left(known, &mut notes);
            let found = databases.get(known.name.as_str()).copied();
            if self.is_removed_now(known, found) {
                continue;
            }
            database(known, found, &mut notes);
            for login in &known.logins {
                let role = roles.get(login.name.as_str()).copied();
                self::login(known, login, role, found, &mut notes);
                let changed = self.found.logins.get(&login.name);
                self::changed(login, changed, &mut notes);
            }
        }
        self.orphans(&mut notes);
        notes.findings
    }

    /// Whether a tenant and its database belong together.
    fn tenant(&self, known: &Known, notes: &mut Notes<'_>) {
        let tenant = format!("tenants/{}", known.id);
        match &known.tenant {
            None if known.purpose == Purpose::Tenant => {
                let detail = "the registry knows no such tenant";
                notes.add(FindingKind::DatabaseWithoutTenant, &known.name, detail);
            }
            None => {}
            Some(_) if known.purpose != Purpose::Tenant => {
                let detail = format!("its database is a {:?}", known.purpose);
                notes.add(FindingKind::TenantWithoutDatabase, &tenant, detail);
            }
            Some(of) if (of.standing == Standing::Provisioning) == (known.step == Step::Ready) => {
                let detail =
                    format!("it is {:?}, its database {}", of.standing, known.step.as_str());
                notes.add(FindingKind::TenantWithoutDatabase, &tenant, detail);
            }
            Some(_) => {}
        }
    }

    /// Whether a tenant is being removed: of what is there, any part may be gone.
    fn is_purging(&self, known: &Known, notes: &mut Notes<'_>) -> bool {
        let tenant = known.tenant.as_ref();
        let Some(tenant) = tenant.filter(|tenant| tenant.standing == Standing::Purging) else {
            return false;
        };
        if tenant.changed < self.before - PURGES_WITHIN && !self.busy.contains(&known.id) {
            let detail = format!("it is to be purged since {}", tenant.changed);
            notes.add(FindingKind::PurgeLeft, &format!("tenants/{}", known.id), detail);
        }
        true
    }

    /// Whether someone removes a spare or a template at this moment.
    fn is_removed_now(&self, known: &Known, found: Option<&FoundDatabase>) -> bool {
        known.purpose != Purpose::Tenant
            && known.step == Step::Ready
            && self.busy.contains(&known.id)
            && found.is_none_or(|found| found.is_invalid)
    }

    /// Work that is old, and that nobody is at.
    fn left(&self, known: &Known, notes: &mut Notes<'_>) {
        let name = &known.name;
        if known.purpose == Purpose::Spare && known.has_failed {
            let detail = "a migration failed in it; it can be removed";
            notes.add(FindingKind::SpareFailed, name, detail);
        }
        if known.purpose == Purpose::Spoiled {
            let detail = "it was claimed for a tenant that was never made";
            notes.add(FindingKind::SpareSpoiled, name, detail);
        }
        if self.busy.contains(&known.id) {
            return;
        }
        if known.step != Step::Ready && known.since < self.before {
            let detail = format!("it is {} since {}", known.step.as_str(), known.since);
            notes.add(FindingKind::MakingLeft, name, detail);
        }
        let unsettled = known.tenant.as_ref().filter(|tenant| !tenant.is_settled);
        if let Some(tenant) = unsettled.filter(|tenant| tenant.changed < self.before) {
            let detail = format!("it should be {:?} since {}", tenant.standing, tenant.changed);
            notes.add(FindingKind::StateLeft, &format!("tenants/{}", known.id), detail);
        }
        if let Some(since) = known.migrating_since.filter(|since| *since < self.before) {
            let detail = format!("a migration is begun since {since}");
            notes.add(FindingKind::MigrationLeft, name, detail);
        }
    }

    /// What is there, and the registry knows nothing of.
    fn orphans(&self, notes: &mut Notes<'_>) {
        let databases: HashSet<_> = self.known.iter().map(|known| known.name.as_str()).collect();
        for found in &self.found.databases {
            if SHARED.contains(&found.name.as_str()) {
                rights(&found.name, &found.rights, |right| right.grantee != "PUBLIC", notes);
            } else if !databases.contains(found.name.as_str()) {
                let detail = format!("it belongs to {}", found.owner);
                notes.add(FindingKind::DatabaseOrphan, &found.name, detail);
            }
        }
        let logins = self.known.iter().flat_map(|known| &known.logins);
        let logins: HashSet<_> = logins.map(|login| login.name.as_str()).collect();
        // A login is made, and then written down: while its database is, too.
        let unfinished = self.known.iter().filter(|known| !is_granted(known.step));
        let unfinished: HashSet<_> =
            unfinished.map(|known| known.id.as_simple().to_string()).collect();
        for role in &self.found.roles {
            let hex = role.name.get(2..34).unwrap_or_default();
            if !logins.contains(role.name.as_str()) && !unfinished.contains(hex) {
                let detail = if role.is_open { "it is open" } else { "it is shut" };
                notes.add(FindingKind::LoginOrphan, &role.name, detail);
            }
        }
    }
}

/// Whether the logins are known to be there.
fn is_granted(step: Step) -> bool {
    matches!(step, Step::Granted | Step::Ready)
}

/// A database against what the registry knows of it. The step that is written
/// down was done, and the next may have been.
fn database(known: &Known, found: Option<&FoundDatabase>, notes: &mut Notes<'_>) {
    let Some(found) = found else {
        if known.step != Step::Planned {
            let detail = format!("it should be {}", known.step.as_str());
            notes.add(FindingKind::DatabaseMissing, &known.name, detail);
        }
        return;
    };
    if found.is_invalid {
        let detail = "its removal was cut off; it can only be removed";
        notes.add(FindingKind::DatabaseInvalid, &known.name, detail);
    }
    let claim = known.tenant.as_ref().and_then(|tenant| tenant.claim_id);
    if claim.is_some_and(|claim| found.claim.as_deref() != Some(claim.to_string().as_str())) {
        let detail = "it does not carry its tenant's claim: `tenant-registry reclaim` gives it one";
        notes.add(FindingKind::DatabaseUnmarked, &known.name, detail);
    }
    let should_be_open = match (known.purpose, known.step) {
        // Open while it is migrated.
        (Purpose::Template, Step::Ready) => Some(false),
        (Purpose::Template, _) => None,
        (Purpose::Spare | Purpose::Spoiled | Purpose::Tenant, Step::Ready) => Some(true),
        (Purpose::Spare | Purpose::Spoiled | Purpose::Tenant, Step::Granted) => None,
        (Purpose::Spare | Purpose::Spoiled | Purpose::Tenant, _) => Some(false),
    };
    match should_be_open {
        Some(true) if !found.is_open => {
            notes.add(FindingKind::DatabaseClosed, &known.name, "it takes no connections");
        }
        Some(false) if found.is_open => {
            let detail = format!("it takes connections, and is {}", known.step.as_str());
            notes.add(FindingKind::DatabaseOpen, &known.name, detail);
        }
        Some(_) | None => {}
    }
    if matches!(known.step, Step::Planned | Step::Created) {
        // A clone has the rights of PUBLIC until they are taken, and is closed.
        return;
    }
    let own = format!("t_{}_", known.id.as_simple());
    let is_migrating = known.migrating_since.is_some();
    let is_right = |right: &Right| {
        let migrates = right.grantee.starts_with("crm_")
            && (right.grantee.ends_with("_migrator") && right.privilege == "CONNECT"
                || right.grantee.ends_with("_owner") && right.privilege == "CREATE");
        (right.grantee.starts_with(&own) && right.privilege == "CONNECT")
            || (is_migrating && migrates)
    };
    rights(&known.name, &found.rights, is_right, notes);
}

fn rights(
    database: &str,
    rights: &[Right],
    is_right: impl Fn(&Right) -> bool,
    notes: &mut Notes<'_>,
) {
    for right in rights.iter().filter(|right| !is_right(right)) {
        let detail = format!("{} has {}", right.grantee, right.privilege);
        notes.add(FindingKind::DatabaseRights, database, detail);
    }
}

/// A login against what the registry knows of it.
fn login(
    known: &Known,
    login: &KnownLogin,
    role: Option<&FoundRole>,
    database: Option<&FoundDatabase>,
    notes: &mut Notes<'_>,
) {
    let Some(role) = role else {
        let (kind, detail) = if login.is_ready {
            (FindingKind::LoginMissing, "the registry made it")
        } else {
            (FindingKind::SecretWithoutLogin, "the registry keeps its secret")
        };
        notes.add(kind, &login.name, detail);
        return;
    };
    let should_be_open = match &known.tenant {
        // On its way from one to the other.
        Some(tenant) if !tenant.is_settled => None,
        Some(tenant) => Some(tenant.standing != Standing::Fenced),
        None => Some(true),
    };
    let since = known.tenant.as_ref().map_or(known.since, |tenant| tenant.changed);
    match should_be_open {
        Some(true) if !role.is_open => {
            let detail = format!("its tenant is to be reached since {since}");
            notes.add(FindingKind::LoginShut, &login.name, detail);
        }
        Some(false) if role.is_open => {
            let detail = format!("its tenant is suspended or deleted since {since}");
            notes.add(FindingKind::LoginOpen, &login.name, detail);
        }
        Some(_) | None => {}
    }
    let may_connect = database.is_none_or(|database| {
        database
            .rights
            .iter()
            .any(|right| right.grantee == login.name && right.privilege == "CONNECT")
    });
    let group = format!("crm_{}", login.service);
    let mut wrong = Vec::new();
    if !may_connect {
        wrong.push(format!("it may not connect to {}", known.name));
    }
    if role.groups != [group] {
        wrong.push(format!("it is a member of {:?}", role.groups));
    }
    if !role.members.is_empty() {
        wrong.push(format!("its members are {:?}", role.members));
    }
    if role.is_mighty {
        wrong.push("it may do more than a login".to_owned());
    }
    if !wrong.is_empty() {
        notes.add(FindingKind::LoginRights, &login.name, wrong.join("; "));
    }
}

/// What a login may have changed of itself. One that is to be made anew has no
/// password that counts.
fn changed(login: &KnownLogin, found: Option<&FoundLogin>, notes: &mut Notes<'_>) {
    let Some(found) = found else { return };
    if !found.settings.is_empty() {
        let detail = format!("its sessions begin with {}", found.settings.join(", "));
        notes.add(FindingKind::LoginSettings, &login.name, detail);
    }
    let is_known = login.password.as_ref().is_some_and(|password| found.has_password(password));
    if login.is_ready && !is_known {
        let detail = "it is not the one that the registry gave it";
        notes.add(FindingKind::LoginPassword, &login.name, detail);
    }
}
