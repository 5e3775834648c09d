//! The methods of clusters: decode, call, encode.

use crm_auth::PlatformContext;
use crm_error::{ApiError, Violations};
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::cluster::{State, TlsMode};
use crm_proto::registry::v1::cluster_service_server::ClusterService;
use crm_proto::registry::v1::finding::Kind;
use crm_service::mask::masked;
use crm_service::open::{open, settle};
use crm_service::page::{self, Binding, Cursor, Page};
use crm_service::repeat::RequestKey;
use crm_service::{etag, timestamp};
use tonic::{Request, Response, Status};

use crate::cluster::model::{DEFAULT_CAPACITY, DEFAULT_SPARES, Field, Settings, is_id};
use crate::cluster::{ClusterPatch, Clusters, NewCluster, Seen, Target};
use crate::consistency::{Consistency, Finding, FindingKind};

/// The most findings in one answer.
const MAX_FINDINGS: usize = 1000;
/// PostgreSQL's own port.
const DEFAULT_PORT: u16 = 5432;
/// The fields that an update can name.
const FIELDS: [(&str, Field); 4] = [
    ("display_name", Field::DisplayName),
    ("tenant_capacity", Field::TenantCapacity),
    ("spare_target", Field::SpareTarget),
    ("state", Field::State),
];

/// `crm.registry.v1.ClusterService`.
#[derive(Debug)]
pub(crate) struct ClusterApi {
    pub(crate) clusters: Clusters,
    pub(crate) consistency: Consistency,
}

#[tonic::async_trait]
impl ClusterService for ClusterApi {
    async fn create_cluster(
        &self,
        request: Request<pb::CreateClusterRequest>,
    ) -> Result<Response<pb::Cluster>, Status> {
        let (ctx, message, mut violations) = open::<PlatformContext, _>(request)?;
        // A password that people chose must not be found by its hash.
        let anonymous = pb::CreateClusterRequest {
            request_id: String::new(),
            password: String::new(),
            ..message.clone()
        };
        let key = RequestKey::new(&message.request_id, &anonymous);
        let validate_only = message.validate_only;
        let new = new_cluster(message);
        new.check(&mut violations);
        let new = settle(Some(new), violations)?;
        let cluster = if validate_only {
            self.clusters.preview(new).await.map_err(ApiError::from)?.into()
        } else {
            let caller = ctx.subject().to_owned();
            self.clusters.create(new, caller, key).await.map_err(ApiError::from)?
        };
        Ok(Response::new(cluster))
    }

    async fn get_cluster(
        &self,
        request: Request<pb::GetClusterRequest>,
    ) -> Result<Response<pb::Cluster>, Status> {
        let (_, message, mut violations) = open::<PlatformContext, _>(request)?;
        let id = cluster_id(&message.name, "name", &mut violations);
        let id = settle(id, violations)?;
        let cluster = self.clusters.get(id).await.map_err(ApiError::from)?;
        Ok(Response::new(cluster.into()))
    }

    async fn list_clusters(
        &self,
        request: Request<pb::ListClustersRequest>,
    ) -> Result<Response<pb::ListClustersResponse>, Status> {
        let (_, message, mut violations) = open::<PlatformContext, _>(request)?;
        let binding = Binding::platform("ListClusters", &[]);
        let cursor = Cursor::decode(&message.page_token, &binding, &mut violations);
        settle(Some(()), violations)?;
        let page = self.clusters.list(page::size(message.page_size), cursor).await;
        let page: Page<Seen> = page.map_err(ApiError::from)?;
        let next_page_token = page.next_token(&binding, |seen| seen.cluster.id.clone());
        let clusters = page.items.into_iter().map(pb::Cluster::from).collect();
        Ok(Response::new(pb::ListClustersResponse { clusters, next_page_token }))
    }

    async fn update_cluster(
        &self,
        request: Request<pb::UpdateClusterRequest>,
    ) -> Result<Response<pb::Cluster>, Status> {
        let (ctx, message, violations) = open::<PlatformContext, _>(request)?;
        let anonymous = pb::UpdateClusterRequest { request_id: String::new(), ..message.clone() };
        let key = RequestKey::new(&message.request_id, &anonymous);
        let validate_only = message.validate_only;
        let (target, patch) = update(message, violations)?;
        let cluster = if validate_only {
            self.clusters.preview_update(target, patch).await.map_err(ApiError::from)?.into()
        } else {
            let caller = ctx.subject().to_owned();
            self.clusters.update(target, patch, caller, key).await.map_err(ApiError::from)?
        };
        Ok(Response::new(cluster))
    }

    async fn check_clusters(
        &self,
        request: Request<pb::CheckClustersRequest>,
    ) -> Result<Response<pb::CheckClustersResponse>, Status> {
        let (_, _, violations) = open::<PlatformContext, _>(request)?;
        settle(Some(()), violations)?;
        let findings = self.consistency.report().await.map_err(ApiError::from)?;
        let finding_count = i32::try_from(findings.len()).unwrap_or(i32::MAX);
        let findings = findings.into_iter().take(MAX_FINDINGS).map(pb::Finding::from).collect();
        Ok(Response::new(pb::CheckClustersResponse { findings, finding_count }))
    }
}

fn new_cluster(message: pb::CreateClusterRequest) -> NewCluster {
    let cluster = message.cluster.unwrap_or_default();
    let settings = settings(&cluster);
    let port = u16::try_from(cluster.port).unwrap_or_default();
    NewCluster {
        id: message.cluster_id,
        port: if port == 0 { DEFAULT_PORT } else { port },
        tls_mode: match cluster.tls_mode() {
            TlsMode::Unspecified => TlsMode::VerifyFull,
            mode @ (TlsMode::Disabled | TlsMode::VerifyFull) => mode,
        },
        host: cluster.host,
        password: message.password.into(),
        settings,
    }
}

/// What an operator chose, or the defaults.
fn settings(cluster: &pb::Cluster) -> Settings {
    Settings {
        display_name: cluster.display_name.clone(),
        tenant_capacity: cluster.tenant_capacity.unwrap_or(DEFAULT_CAPACITY),
        spare_target: cluster.spare_target.unwrap_or(DEFAULT_SPARES),
        state: match cluster.state() {
            State::Unspecified => State::Active,
            state @ (State::Active | State::Draining) => state,
        },
    }
}

/// What an update asks for. Only the fields that it names are looked at.
fn update(
    request: pb::UpdateClusterRequest,
    mut violations: Violations,
) -> Result<(Target, ClusterPatch), ApiError> {
    let cluster = request.cluster.unwrap_or_default();
    let id = cluster_id(&cluster.name, "cluster.name", &mut violations);
    if cluster.name.is_empty() {
        violations.add("cluster.name", "REQUIRED", "It is required.");
    }
    let fields: Vec<_> = match &request.update_mask {
        Some(mask) => masked(&FIELDS, &mask.paths, &mut violations),
        None => FIELDS.into_iter().filter(|(_, field)| is_populated(&cluster, *field)).collect(),
    };
    if fields.is_empty() && !violations.has("update_mask") {
        violations.add("update_mask", "NOTHING_TO_UPDATE", "At least one field.");
    }
    violations.retain(|path| match path.strip_prefix("cluster.") {
        Some("name" | "etag") | None => true,
        Some(path) => fields.iter().any(|(name, _)| *name == path),
    });
    let settings = settings(&cluster);
    let id = settle(id, violations)?;
    let fields = fields.into_iter().map(|(_, field)| field).collect();
    let target = Target { id, revision: etag::parse(&cluster.etag) };
    Ok((target, ClusterPatch { fields, settings }))
}

fn is_populated(cluster: &pb::Cluster, field: Field) -> bool {
    match field {
        Field::DisplayName => !cluster.display_name.is_empty(),
        Field::TenantCapacity => cluster.tenant_capacity.is_some(),
        Field::SpareTarget => cluster.spare_target.is_some(),
        Field::State => cluster.state != State::Unspecified as i32,
    }
}

/// The id in `clusters/{cluster}`. An empty name is left to the field's own
/// rules.
fn cluster_id(name: &str, field: &str, violations: &mut Violations) -> Option<String> {
    let id = name.strip_prefix("clusters/").filter(|id| is_id(id));
    if id.is_none() && !name.is_empty() {
        violations.add(field, "RESOURCE_NAME", "`clusters/` and a cluster's id.");
    }
    id.map(str::to_owned)
}

/// The number in `crm_template_<n>`.
fn template_number(name: &str) -> Option<i32> {
    name.strip_prefix("crm_template_")?.parse().ok()
}

impl From<Seen> for pb::Cluster {
    fn from(Seen { cluster, figures }: Seen) -> Self {
        let reachable = figures.is_some();
        let figures = figures.unwrap_or_default();
        let settings = cluster.settings;
        let target = settings.spare_target;
        // A preview has nothing to be compared with.
        let etag = (cluster.revision > 0).then(|| etag::format(cluster.revision));
        Self {
            name: format!("clusters/{}", cluster.id),
            display_name: settings.display_name,
            host: cluster.host,
            port: cluster.port,
            tls_mode: cluster.tls_mode.into(),
            tenant_capacity: Some(settings.tenant_capacity),
            spare_target: Some(target),
            state: settings.state.into(),
            reachable,
            tenant_count: count(cluster.tenant_count),
            spare_count: count(cluster.spare_count),
            spare_level: match target {
                0 => 1.0,
                target => f64::from(count(cluster.spare_count)) / f64::from(target),
            },
            session_count: count(figures.session_count),
            size_bytes: figures.size_bytes,
            postgresql_version: figures.version,
            template: cluster.template.as_deref().and_then(template_number).unwrap_or_default(),
            create_time: Some(timestamp(cluster.create_time)),
            update_time: Some(timestamp(cluster.update_time)),
            etag: etag.unwrap_or_default(),
        }
    }
}

fn count(number: i64) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

impl From<Finding> for pb::Finding {
    fn from(finding: Finding) -> Self {
        Self {
            kind: Kind::from(finding.kind).into(),
            cluster: format!("clusters/{}", finding.cluster),
            subject: finding.subject,
            detail: finding.detail,
        }
    }
}

impl From<FindingKind> for Kind {
    fn from(kind: FindingKind) -> Self {
        match kind {
            FindingKind::ClusterUnreachable => Self::ClusterUnreachable,
            FindingKind::DatabaseMissing => Self::DatabaseMissing,
            FindingKind::DatabaseOrphan => Self::DatabaseOrphan,
            FindingKind::DatabaseInvalid => Self::DatabaseInvalid,
            FindingKind::DatabaseOpen => Self::DatabaseOpen,
            FindingKind::DatabaseClosed => Self::DatabaseClosed,
            FindingKind::DatabaseRights => Self::DatabaseRights,
            FindingKind::DatabaseWithoutTenant => Self::DatabaseWithoutTenant,
            FindingKind::TenantWithoutDatabase => Self::TenantWithoutDatabase,
            FindingKind::LoginMissing => Self::LoginMissing,
            FindingKind::LoginOrphan => Self::LoginOrphan,
            FindingKind::LoginOpen => Self::LoginOpen,
            FindingKind::LoginShut => Self::LoginShut,
            FindingKind::LoginRights => Self::LoginRights,
            FindingKind::SecretWithoutLogin => Self::SecretWithoutLogin,
            FindingKind::RowsOfNoTenant => Self::RowsOfNoTenant,
            FindingKind::MakingLeft => Self::MakingLeft,
            FindingKind::StateLeft => Self::StateLeft,
            FindingKind::MigrationLeft => Self::MigrationLeft,
            FindingKind::SpareFailed => Self::SpareFailed,
            FindingKind::ClusterOutdated => Self::ClusterOutdated,
            FindingKind::TenantForgotten => Self::TenantForgotten,
            FindingKind::ClaimMissing => Self::ClaimMissing,
            FindingKind::ClaimDifferent => Self::ClaimDifferent,
            FindingKind::StateDifferent => Self::StateDifferent,
            FindingKind::TenantRemoved => Self::TenantRemoved,
            FindingKind::DatabaseUnmarked => Self::DatabaseUnmarked,
            FindingKind::SpareSpoiled => Self::SpareSpoiled,
            FindingKind::PurgeLeft => Self::PurgeLeft,
            FindingKind::LoginSettings => Self::LoginSettings,
            FindingKind::LoginPassword => Self::LoginPassword,
        }
    }
}
