//! Between messages and the registry's own types.

use chrono::{DateTime, TimeDelta, Utc};
use crm_error::{ApiError, Violations};
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::tenant::{Kind, State};
use crm_proto::registry::v1::tenant_migration::State as MigrationState;
use crm_proto::registry::v1::watch_tenants_response::Event as EventMessage;
use crm_service::mask::masked;
use crm_service::open::settle;
use crm_service::page::{self, Binding, Page, Position};
use crm_service::{etag, filter, names, timestamp};
use secrecy::ExposeSecret as _;

use crate::events::{Event, StatusRow};
use crate::lease::{LeaseRow, Login};
use crate::migration::model::is_service;
use crate::migration::{MigrationFilter, MigrationKey, ServiceMigrations, TenantMigration};
use crate::purge::Certificate;
use crate::schema::NewMigration;
use crate::tenant::slug::is_label;
use crate::tenant::{Field, NewTenant, Target, Tenant, TenantFilter, TenantKey, TenantPatch};

/// After how long a tenant's statement is ended.
const STATEMENT_TIMEOUT_SECONDS: i64 = 30;
/// How long a lease is good without the registry.
const LEASE: TimeDelta = TimeDelta::minutes(15);

impl From<pb::Tenant> for NewTenant {
    fn from(tenant: pb::Tenant) -> Self {
        let kind = match tenant.kind() {
            Kind::Unspecified => Kind::Organization,
            kind @ (Kind::Individual | Kind::Organization | Kind::Department) => kind,
        };
        Self {
            slug: (!tenant.slug.is_empty()).then_some(tenant.slug),
            display_name: tenant.display_name,
            kind,
            labels: tenant.labels,
        }
    }
}

impl From<Tenant> for pb::Tenant {
    fn from(tenant: Tenant) -> Self {
        // A preview has no name, and so nothing to come back to.
        let etag = tenant.id.map(|_| etag::format(tenant.revision));
        Self {
            name: tenant.id.map(|id| format!("tenants/{id}")).unwrap_or_default(),
            slug: tenant.slug,
            display_name: tenant.display_name,
            kind: tenant.kind.into(),
            state: tenant.state.into(),
            cluster: match tenant.cluster.as_str() {
                "" => String::new(),
                cluster => format!("clusters/{cluster}"),
            },
            database: tenant.database,
            labels: tenant.labels,
            create_time: Some(timestamp(tenant.create_time)),
            update_time: Some(timestamp(tenant.update_time)),
            delete_time: tenant.delete_time.map(timestamp),
            purge_time: tenant.purge_time.map(timestamp),
            etag: etag.unwrap_or_default(),
        }
    }
}

impl From<pb::Migration> for NewMigration {
    fn from(migration: pb::Migration) -> Self {
        Self {
            version: migration.version,
            description: migration.description,
            sql: migration.sql,
            oldest_service_version: migration.oldest_service_version,
        }
    }
}

/// `tenants/{uuid}`, or `tenants/{slug}` as its alias (AIP-122).
pub(super) fn tenant_key(
    name: &str,
    field: &str,
    violations: &mut Violations,
) -> Option<TenantKey> {
    if let Some(id) = names::parse("tenants", name) {
        return Some(TenantKey::Id(id));
    }
    let slug = name.strip_prefix("tenants/").filter(|slug| is_label(slug));
    if slug.is_none() && !name.is_empty() {
        violations.add(field, "RESOURCE_NAME", "`tenants/` and a UUID or a slug.");
    }
    slug.map(|slug| TenantKey::Slug(slug.to_owned()))
}

/// Which tenant a change is for.
pub(super) fn tenant_target(
    name: &str,
    etag: &str,
    mut violations: Violations,
) -> Result<Target, ApiError> {
    let key = tenant_key(name, "name", &mut violations);
    let key = settle(key, violations)?;
    Ok(Target { key, revision: etag::parse(etag) })
}

/// What an update asks for. Only the fields that it names are looked at; what
/// is wrong with them is answered together with what the tenant becomes.
pub(super) fn tenant_update(
    request: pb::UpdateTenantRequest,
    mut violations: Violations,
) -> Result<(Target, TenantPatch), ApiError> {
    let tenant = request.tenant.unwrap_or_default();
    let key = tenant_key(&tenant.name, "tenant.name", &mut violations);
    if tenant.name.is_empty() {
        violations.add("tenant.name", "REQUIRED", "It is required.");
    }
    let fields = match &request.update_mask {
        Some(mask) => masked(&TENANT_FIELDS, &mask.paths, &mut violations),
        None => TENANT_FIELDS
            .iter()
            .filter(|(_, field)| is_populated(&tenant, *field))
            .copied()
            .collect(),
    };
    if fields.is_empty() && !violations.has("update_mask") {
        violations.add("update_mask", "NOTHING_TO_UPDATE", "At least one field.");
    }
    violations.retain(|path| match path.strip_prefix("tenant.") {
        Some("name") | None => true,
        Some(path) => {
            let field = path.split('[').next().unwrap_or(path);
            fields.iter().any(|(name, _)| *name == field)
        }
    });
    let target = key.map(|key| Target { key, revision: etag::parse(&tenant.etag) });
    let mut new = NewTenant::from(tenant);
    // A mask that names fields asks for these alone.
    if request.update_mask.is_some_and(|mask| mask.paths != ["*"]) {
        new.slug = None;
    }
    let fields = fields.into_iter().map(|(_, field)| field).collect();
    let patch = TenantPatch { fields, new, violations };
    // No tenant says what would become of it: the patch is checked by itself.
    let target = target.ok_or_else(|| ApiError::invalid(patch.faults()))?;
    Ok((target, patch))
}

/// The fields that an update can name.
const TENANT_FIELDS: [(&str, Field); 3] =
    [("display_name", Field::DisplayName), ("kind", Field::Kind), ("labels", Field::Labels)];

fn is_populated(tenant: &pb::Tenant, field: Field) -> bool {
    match field {
        Field::DisplayName => !tenant.display_name.is_empty(),
        Field::Kind => tenant.kind != Kind::Unspecified as i32,
        Field::Labels => !tenant.labels.is_empty(),
    }
}

/// Which tenants a list asks for.
pub(super) fn tenant_filter(
    request: &pb::ListTenantsRequest,
    violations: &mut Violations,
) -> TenantFilter {
    let mut filter = TenantFilter {
        state: None,
        slug: None,
        show_deleted: request.show_deleted,
        page_size: page::size(request.page_size),
    };
    for equals in filter::parse(&request.filter, &["state", "slug"], violations) {
        if equals.field == "slug" {
            filter.slug = Some(equals.value);
            continue;
        }
        filter.state =
            State::from_str_name(&equals.value).filter(|state| *state != State::Unspecified);
        if filter.state.is_none() {
            let text = "after `state =` the name of a state is expected, such as STATE_ACTIVE.";
            violations.add("filter", "FILTER", text);
        }
    }
    filter
}

pub(super) fn tenant_page(page: Page<Tenant>, binding: &Binding) -> pb::ListTenantsResponse {
    let next_page_token = page.next_token(binding, |tenant| Position {
        create_time: tenant.create_time,
        id: tenant.id.unwrap_or_default(),
    });
    let tenants = page.items.into_iter().map(pb::Tenant::from).collect();
    pb::ListTenantsResponse { tenants, next_page_token }
}

impl From<StatusRow> for pb::TenantStatus {
    fn from(row: StatusRow) -> Self {
        Self {
            tenant: format!("tenants/{}", row.tenant_id),
            state: row.state().into(),
            tenant_generation: row.generation.unsigned_abs(),
            access_version: row.access_version.unsigned_abs(),
        }
    }
}

impl From<Event> for pb::WatchTenantsResponse {
    fn from(event: Event) -> Self {
        let event = match event {
            Event::Snapshot { tenants, complete } => EventMessage::Snapshot(pb::TenantSnapshot {
                tenants: tenants.into_iter().map(pb::TenantStatus::from).collect(),
                complete,
            }),
            Event::Changed(row) => EventMessage::Changed(row.into()),
            Event::Heartbeat => EventMessage::Heartbeat(pb::Heartbeat {}),
        };
        Self { event: Some(event) }
    }
}

pub(super) fn lease(
    row: LeaseRow,
    login: &Login,
    session_cap: u32,
    now: DateTime<Utc>,
) -> pb::AcquireLeaseResponse {
    pb::AcquireLeaseResponse {
        host: row.host,
        port: row.port.unsigned_abs(),
        database: row.database,
        user: login.user.clone(),
        secret: login.secret.expose_secret().to_owned(),
        tls_mode: row.tls_mode.into(),
        session_cap,
        statement_timeout: Some(prost_types::Duration {
            seconds: STATEMENT_TIMEOUT_SECONDS,
            nanos: 0,
        }),
        schema_version: row.schema_version.unsigned_abs(),
        generation: login.generation.unsigned_abs(),
        expire_time: Some(timestamp(now + LEASE)),
        tenant_generation: row.tenant_generation.unsigned_abs(),
        access_version: row.access_version.unsigned_abs(),
        claim_id: row.claim_id.to_string(),
        oldest_service_version: row.oldest_service_version.unsigned_abs(),
    }
}

impl From<TenantMigration> for pb::TenantMigration {
    fn from(migration: TenantMigration) -> Self {
        let MigrationKey { tenant_id, service } = migration.key;
        Self {
            name: format!("tenants/{tenant_id}/migrations/{service}"),
            service,
            current_version: migration.current_version.unsigned_abs(),
            target_version: migration.target_version.unsigned_abs(),
            state: migration.state.into(),
            attempts: migration.attempts.unsigned_abs(),
            last_error: migration.last_error.unwrap_or_default(),
            update_time: Some(timestamp(migration.update_time)),
        }
    }
}

impl From<ServiceMigrations> for pb::ServiceMigrations {
    fn from(wave: ServiceMigrations) -> Self {
        let count = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            service: wave.service,
            target_version: wave.target_version.unsigned_abs(),
            total: count(wave.total),
            current: count(wave.current),
            pending: count(wave.pending),
            running: count(wave.running),
            failed: count(wave.failed),
            stopped: wave.stopped,
        }
    }
}

/// Versions have no gap, and a migration leaves its own version able to work.
pub(super) fn check_migrations(migrations: &[pb::Migration], violations: &mut Violations) {
    for ((index, migration), version) in migrations.iter().enumerate().zip(1..) {
        if migration.version != version {
            let field = format!("migrations[{index}].version");
            violations.add(field, "VERSIONS", "1, 2, 3 and so on, in this order.");
        }
        if migration.oldest_service_version > version {
            let field = format!("migrations[{index}].oldest_service_version");
            violations.add(field, "VERSIONS", "At most the version of the migration.");
        }
    }
}

/// `tenants/{uuid}/migrations/{service}`.
pub(super) fn migration_key(name: &str, violations: &mut Violations) -> Option<MigrationKey> {
    let key = name.split_once("/migrations/").and_then(|(tenant, service)| {
        let tenant_id = names::parse("tenants", tenant)?;
        is_service(service).then(|| MigrationKey { tenant_id, service: service.to_owned() })
    });
    if key.is_none() && !name.is_empty() {
        let text = "`tenants/`, a UUID, `/migrations/` and a service.";
        violations.add("name", "RESOURCE_NAME", text);
    }
    key
}

pub(super) fn migration_filter(
    request: &pb::ListTenantMigrationsRequest,
    violations: &mut Violations,
) -> MigrationFilter {
    let mut wanted =
        MigrationFilter { page_size: page::size(request.page_size), ..MigrationFilter::default() };
    if request.parent != "tenants/-" {
        wanted.tenant = tenant_key(&request.parent, "parent", violations);
    }
    for equals in filter::parse(&request.filter, &["state", "service"], violations) {
        if equals.field == "service" {
            wanted.service = Some(equals.value);
            continue;
        }
        wanted.state = MigrationState::from_str_name(&equals.value)
            .filter(|state| *state != MigrationState::Unspecified);
        if wanted.state.is_none() {
            violations.add("filter", "FILTER", "`state` is one of TenantMigration.State.");
        }
    }
    wanted
}

pub(super) fn migration_page(
    page: Page<TenantMigration>,
    binding: &Binding,
) -> pb::ListTenantMigrationsResponse {
    let next_page_token = page.next_token(binding, |last| last.key.clone());
    pb::ListTenantMigrationsResponse {
        tenant_migrations: page.items.into_iter().map(pb::TenantMigration::from).collect(),
        next_page_token,
    }
}

impl From<Certificate> for pb::DeletionCertificate {
    fn from(certificate: Certificate) -> Self {
        Self {
            tenant: format!("tenants/{}", certificate.tenant_id),
            slug: certificate.slug,
            cluster: format!("clusters/{}", certificate.cluster),
            database: certificate.database,
            login_count: certificate.login_count,
            requester: certificate.requester.unwrap_or_default(),
            delete_time: certificate.delete_time.map(timestamp),
            purge_time: certificate.purge_time.map(timestamp),
            backup_expire_time: certificate.backup_expire_time.map(timestamp),
            slug_free_time: certificate.slug_free_time.map(timestamp),
        }
    }
}
