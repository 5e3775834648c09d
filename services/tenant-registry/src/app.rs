//! The registry, wired: each paragraph is a part, in the order of need.

use std::error::Error;
use std::sync::Arc;

use crm_auth::{Audience, Verifier};
use crm_clock::Clock;
use crm_proto::identity::v1::auth_service_server::AuthServiceServer;
use crm_proto::registry::v1::cluster_service_server::ClusterServiceServer;
use crm_proto::registry::v1::lease_service_server::LeaseServiceServer;
use crm_proto::registry::v1::migration_service_server::MigrationServiceServer;
use crm_proto::registry::v1::tenant_service_server::TenantServiceServer;
use crm_service::{Health, MAX_MESSAGE_BYTES, Stack, StackBuilder};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

use crate::activity::Activities;
use crate::claim::{Claims, Restored, Settled};
use crate::cluster::{self, Clusters};
use crate::config::Config;
use crate::consistency::Consistency;
use crate::database::Database;
use crate::events::Events;
use crate::fence::Fences;
use crate::grpc::{AuthApi, ClusterApi, LeaseApi, MigrationApi, TenantApi, certificate_fits};
use crate::identity::Identity;
use crate::lease::Logins;
use crate::migration::{Migrations, Wave};
use crate::provisioning::Provisioner;
use crate::purge::Purges;
use crate::schema::{Migrators, Schemas};
use crate::tenant::{self, TenantKey, Tenants};

type Failure = Box<dyn Error + Send + Sync>;

/// A schema set is larger than an ordinary request.
const MAX_SCHEMA_BYTES: usize = 16 * 1024 * 1024;

/// The registry, ready to be served on two listeners.
#[derive(Debug)]
pub struct App {
    /// Tenants, clusters and tokens, for everyone.
    pub public: Stack,
    /// Whether `public` can do its work.
    pub public_health: Health,
    /// Leases, schemas and tokens, for the services of this suite.
    pub internal: Stack,
    /// Whether `internal` can do its work.
    pub internal_health: Health,
    /// Ends the streams of `internal` at once, and all work beside the calls.
    pub drain: CancellationToken,
}

impl App {
    /// Wires the registry.
    ///
    /// # Errors
    ///
    /// When the cluster does not answer or is not set up, or a key does not
    /// open.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, Failure> {
        // The registry's database, and the cluster that tenants live in.
        let drain = CancellationToken::new();
        let database = Database::open(&config).await?;
        cluster::store::add_first(&database.registry, &config, clock.now()).await?;
        cluster::check(&database.cluster(&config.cluster.id).await?).await?;
        until(&drain, database.clone().ask_clusters());

        // To whom the clusters gave their databases: before any is given out.
        let claims = Claims::new(database.clone(), clock.clone());
        claims.look().await?;
        until(&drain, claims.clone().keep());

        // The template of tenant databases, with the platform's own schema;
        // and the wave that raises what is there already.
        let migrators = Migrators::new(database.registry.clone(), config.master_key.clone());
        let due = Arc::new(Notify::new());
        let schemas = Schemas::new(database.clone(), migrators.clone(), due.clone(), clock.clone());
        schemas.register_platform().await?;
        until(&drain, schemas.clone().catch_up());
        let wave = Wave::new(database.clone(), migrators, due.clone(), clock.clone());
        until(&drain, wave.run());
        let migrations = Migrations::new(database.clone(), due, clock.clone());

        // Who signs, and who may exchange a secret for a token.
        let identity =
            Identity::start(database.clone(), &config.master_key, &config.accounts, clock.clone());
        let identity = identity.await?;

        // Tenants: their logins, their databases, themselves, their clusters.
        let logins =
            Logins::new(database.clone(), claims.clone(), config.master_key.clone(), clock.clone());
        let provisioner =
            Provisioner::new(database.clone(), logins.clone(), claims.clone(), clock.clone());
        until(&drain, provisioner.clone().resume());
        until(&drain, provisioner.clone().refill());
        let fences = Fences::new(database.clone(), claims.clone());
        until(&drain, fences.clone().keep());
        let purges = Purges::new(database.clone(), fences.clone(), config.purge, clock.clone());
        until(&drain, purges.clone().keep());
        let tenants = Tenants::new(
            database.clone(),
            provisioner.clone(),
            claims.clone(),
            fences,
            clock.clone(),
        );
        let activities = Activities::new(database.clone(), clock.clone());
        let clusters =
            Clusters::new(database.clone(), schemas.clone(), provisioner, claims, clock.clone());
        let consistency =
            Consistency::new(database.clone(), config.master_key.clone(), clock.clone());

        // What becomes of tenants, for the services that watch.
        let events = Events::start(database, clock.clone(), drain.clone());

        // Two listeners.
        let verifier = |audience| verifier(audience, &identity, &clock);
        let auth = AuthApi { identity: identity.clone() };
        let (public, public_health) = public(
            TenantApi { tenants, purges, activities: activities.clone() },
            ClusterApi { clusters, consistency },
            MigrationApi { migrations },
            auth.clone(),
        )
        .build("tenant-registry", verifier(Audience::Public)?, clock.clone())?;
        let session_cap = config.session_cap;
        let leases =
            LeaseApi { logins, schemas, activities, events, session_cap, clock: clock.clone() };
        let (internal, internal_health) = internal(leases, auth).build(
            "tenant-registry-internal",
            verifier(Audience::Internal)?,
            clock,
        )?;
        Ok(Self { public, public_health, internal, internal_health, drain })
    }
}

/// Work of this process beside its calls. What it leaves undone at the end is
/// taken up by others, as after a crash.
fn until(drain: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(drain.clone().run_until_cancelled_owned(work));
}

fn verifier(
    audience: Audience,
    identity: &Identity,
    clock: &Clock,
) -> Result<Verifier, crm_auth::KeyError> {
    let verifier = Verifier::new(audience, clock.clone());
    verifier.set_keys(&identity.jwks())?;
    Ok(verifier)
}

/// What everyone may call.
fn public(
    tenants: TenantApi,
    clusters: ClusterApi,
    migrations: MigrationApi,
    auth: AuthApi,
) -> StackBuilder {
    StackBuilder::default()
        .service(TenantServiceServer::new(tenants).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .service(ClusterServiceServer::new(clusters).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .service(
            MigrationServiceServer::new(migrations).max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .service(AuthServiceServer::new(auth).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// What the services of this suite may call, beside it.
fn internal(leases: LeaseApi, auth: AuthApi) -> StackBuilder {
    let leases = LeaseServiceServer::new(leases).max_decoding_message_size(MAX_SCHEMA_BYTES);
    StackBuilder::default()
        .accepting(MAX_SCHEMA_BYTES)
        // What becomes of tenants is told in their own terms.
        .describing(["crm.registry.v1.Tenant"])
        .service(InterceptedService::new(leases, certificate_fits))
        // Here services also get their tokens: what they send for them is as
        // secret as what they get.
        .service(AuthServiceServer::new(auth).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// The registry's identity alone, for whoever has its configuration: it issues
/// tokens without a server.
///
/// # Errors
///
/// When the registry's database does not answer, or a key does not open.
pub async fn identity(config: &Config, clock: Clock) -> Result<Identity, Failure> {
    let database = Database::connect(config);
    Ok(Identity::load(database, &config.master_key, clock).await?)
}

/// The comparison of the registry with its clusters alone, for whoever has its
/// configuration. It connects when it is asked.
pub fn consistency(config: &Config, clock: Clock) -> Consistency {
    Consistency::new(Database::connect(config), config.master_key.clone(), clock)
}

/// What would settle the differences between the registry and a cluster, by what
/// of the two was restored; with `apply`, it is done. Nothing is ever dropped.
///
/// # Errors
///
/// When there is no such cluster, or one of the two does not answer.
pub(crate) async fn reconcile(
    config: &Config,
    clock: Clock,
    cluster: &str,
    restored: Restored,
    apply: bool,
) -> Result<Vec<Settled>, Failure> {
    let database = Database::connect(config);
    if !cluster::store::ids(&database.registry).await?.iter().any(|id| id == cluster) {
        return Err(format!("there is no cluster `{cluster}`").into());
    }
    Ok(Claims::new(database, clock).reconcile(cluster, restored, apply).await?)
}

/// Makes a database that was restored its tenant's again: it gets a new claim,
/// and is shut to all but the tenant's logins.
///
/// # Errors
///
/// When there is no such tenant or database, or the cluster gave it to another.
pub(crate) async fn reclaim(config: &Config, clock: Clock, tenant: &str) -> Result<(), Failure> {
    let database = Database::connect(config);
    let key = TenantKey::parse(tenant);
    let id = tenant::id(&database, &key).await?.ok_or("there is no such tenant")?;
    Ok(Claims::new(database, clock).reclaim(id).await?)
}
