//! PostgreSQL clusters: where tenants' databases live.

mod admin;
mod error;
pub(crate) mod model;
mod probe;
pub(crate) mod store;

use std::time::Duration;

use crm_clock::Clock;
use crm_proto::registry::v1 as pb;
use crm_service::page::{Cursor, Page};
use crm_service::repeat::RequestKey;
use crm_tenancy::StoreError;
use futures_util::future::join_all;
use moka::future::Cache;
use prost::Message as _;
use secrecy::ExposeSecret as _;
use sqlx::{PgConnection, Postgres, Transaction};

pub(crate) use admin::{ClusterAdmin, quoted};
pub(crate) use error::ClusterError;
pub(crate) use model::{Cluster, ClusterPatch, Figures, NewCluster, Target};

use crate::activity;
use crate::claim::Claims;
use crate::database::{self, Database, owned};
use crate::provisioning::Provisioner;
use crate::requests::{self, Request, RequestError};
use crate::schema::Schemas;

/// How long the figures of a cluster are good.
const FIGURES_LIFETIME: Duration = Duration::from_secs(3);
/// How many clusters' figures are kept.
const KEPT_FIGURES: u64 = 1000;

/// Checks that the server of a cluster has what the registry needs.
///
/// # Errors
///
/// What it lacks.
pub(crate) async fn check(admin: &ClusterAdmin) -> Result<(), ClusterError> {
    probe::check(admin).await.map(drop)
}

/// A cluster, and its figures where it answers.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) cluster: Cluster,
    pub(crate) figures: Option<Figures>,
}

/// The use cases of clusters.
#[derive(Clone, Debug)]
pub(crate) struct Clusters {
    database: Database,
    schemas: Schemas,
    provisioner: Provisioner,
    claims: Claims,
    /// Counting sessions and bytes is not for every call.
    figures: Cache<String, Option<Figures>>,
    clock: Clock,
}

impl Clusters {
    pub(crate) fn new(
        database: Database,
        schemas: Schemas,
        provisioner: Provisioner,
        claims: Claims,
        clock: Clock,
    ) -> Self {
        let figures =
            Cache::builder().max_capacity(KEPT_FIGURES).time_to_live(FIGURES_LIFETIME).build();
        Self { database, schemas, provisioner, claims, figures, clock }
    }

    /// Adds a cluster, and answers when tenants can be made in it. A repeated
    /// request takes up where the first was cut off.
    pub(crate) async fn create(
        &self,
        new: NewCluster,
        caller: String,
        key: RequestKey,
    ) -> Result<pb::Cluster, ClusterError> {
        let this = self.clone();
        owned(async move {
            let id = new.id.clone();
            let request = Request { caller: &caller, method: "CreateCluster", key: &key };
            if let Some(response) = this.add(new, &request).await? {
                return Ok(requests::decode(&response)?);
            }
            this.schemas.catch_up_cluster(&id).await.map_err(Box::new)?;
            this.claims.look_at(&id).await;
            this.provisioner.refill_soon();
            let cluster = pb::Cluster::from(this.seen(&id).await?);
            let mut connection =
                this.database.registry.acquire().await.map_err(StoreError::from)?;
            let encoded = cluster.encode_to_vec();
            match request.keep_response::<String>(&mut connection, &encoded).await? {
                Some(first) => Ok(requests::decode(&first)?),
                None => Ok(cluster),
            }
        })
        .await
    }

    /// Writes a new cluster down, once its server was checked. Answers what a
    /// repeated request was answered before, if it was.
    async fn add(
        &self,
        new: NewCluster,
        request: &Request<'_>,
    ) -> Result<Option<Vec<u8>>, ClusterError> {
        let now = self.clock.now();
        let mut tx = self.database.registry.begin().await.map_err(StoreError::from)?;
        if let Some(known) = request.claim::<String>(&mut tx, now).await? {
            // The password is no part of the request's hash.
            let password = self.database.password(&mut tx, &known.subject).await?;
            if password.expose_secret() != new.password.expose_secret() {
                return Err(RequestError::IdReused.into());
            }
            return Ok(known.response);
        }
        let system_identifier = self.check(&mut tx, &new).await?.system_identifier;
        let secret = self.database.seal_password(&new.id, &new.password)?;
        if !store::insert(&mut tx, &new, &secret, system_identifier, now).await? {
            return Err(ClusterError::Exists);
        }
        request.keep(&mut tx, &new.id, None, now).await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(None)
    }

    /// What adding this cluster would give, without adding it.
    pub(crate) async fn preview(&self, new: NewCluster) -> Result<Seen, ClusterError> {
        let this = self.clone();
        owned(async move {
            let mut tx = this.database.registry.begin().await.map_err(StoreError::from)?;
            let figures = this.check(&mut tx, &new).await?.figures;
            Ok(Seen { cluster: new.preview(this.clock.now()), figures: Some(figures) })
        })
        .await
    }

    /// Checks that a cluster is new, and that its server can be one.
    async fn check(
        &self,
        connection: &mut PgConnection,
        new: &NewCluster,
    ) -> Result<probe::Probe, ClusterError> {
        if store::get(connection, &new.id).await?.is_some() {
            return Err(ClusterError::Exists);
        }
        let found = probe::check(&database::admin(&new.address(), &new.password)).await?;
        if store::is_known_server(connection, found.system_identifier).await? {
            return Err(ClusterError::Exists);
        }
        let needed = activity::connections_needed(connection, self.clock.now()).await?;
        if found.connections < needed {
            let missing = format!("max_connections must allow {needed} beside the superusers'");
            return Err(ClusterError::NotReady(vec![missing]));
        }
        Ok(found)
    }

    /// A cluster and its figures.
    pub(crate) async fn get(&self, id: String) -> Result<Seen, ClusterError> {
        let this = self.clone();
        owned(async move { this.seen(&id).await }).await
    }

    /// One page of all clusters.
    pub(crate) async fn list(
        &self,
        page_size: i64,
        cursor: Option<Cursor<String>>,
    ) -> Result<Page<Seen>, ClusterError> {
        let this = self.clone();
        owned(async move {
            let after = cursor.map(|cursor| cursor.after).unwrap_or_default();
            let mut connection =
                this.database.registry.acquire().await.map_err(StoreError::from)?;
            let mut clusters = store::list(&mut connection, &after, page_size + 1).await?;
            drop(connection);
            let size = usize::try_from(page_size).unwrap_or_default();
            let more = clusters.len() > size;
            clusters.truncate(size);
            let items = join_all(clusters.into_iter().map(|cluster| async {
                let figures = this.figures(&cluster.id).await;
                Seen { cluster, figures }
            }));
            Ok(Page { items: items.await, revision: 0, more })
        })
        .await
    }

    /// Changes what an operator may choose.
    pub(crate) async fn update(
        &self,
        target: Target,
        patch: ClusterPatch,
        caller: String,
        key: RequestKey,
    ) -> Result<pb::Cluster, ClusterError> {
        let this = self.clone();
        owned(async move {
            let request = Request { caller: &caller, method: "UpdateCluster", key: &key };
            // Asked before the row is locked, since the cluster may be slow.
            let figures = this.figures(&target.id).await;
            let mut tx = this.database.registry.begin().await.map_err(StoreError::from)?;
            if let Some(known) = request.claim::<String>(&mut tx, this.clock.now()).await? {
                return Ok(requests::decode(&known.response.unwrap_or_default())?);
            }
            let changed = this.changed(&mut tx, &target, &patch).await?;
            store::update(&mut tx, &changed).await?;
            let cluster = pb::Cluster::from(Seen { cluster: changed, figures });
            let response = cluster.encode_to_vec();
            let now = this.clock.now();
            request.keep(&mut tx, &target.id, Some(&response), now).await?;
            tx.commit().await.map_err(StoreError::from)?;
            this.provisioner.refill_soon();
            Ok(cluster)
        })
        .await
    }

    /// What an update would give, without changing anything.
    pub(crate) async fn preview_update(
        &self,
        target: Target,
        patch: ClusterPatch,
    ) -> Result<Seen, ClusterError> {
        let this = self.clone();
        owned(async move {
            let figures = this.figures(&target.id).await;
            let mut tx = this.database.registry.begin().await.map_err(StoreError::from)?;
            let cluster = this.changed(&mut tx, &target, &patch).await?;
            Ok(Seen { cluster, figures })
        })
        .await
    }

    /// The cluster with the change applied; its row is locked until the end of
    /// the transaction.
    async fn changed(
        &self,
        tx: &mut Transaction<'static, Postgres>,
        target: &Target,
        patch: &ClusterPatch,
    ) -> Result<Cluster, ClusterError> {
        store::lock(tx, &target.id).await?;
        let cluster = store::get(tx, &target.id).await?;
        let mut cluster = cluster.ok_or(ClusterError::NotFound)?;
        if target.revision.is_some_and(|revision| revision != cluster.revision) {
            return Err(ClusterError::Changed);
        }
        cluster.apply(patch, self.clock.now());
        Ok(cluster)
    }

    async fn seen(&self, id: &str) -> Result<Seen, ClusterError> {
        let mut connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let cluster = store::get(&mut connection, id).await?.ok_or(ClusterError::NotFound)?;
        drop(connection);
        let figures = self.figures(id).await;
        Ok(Seen { cluster, figures })
    }

    /// The figures of a cluster, some seconds old at most. `None`: it does not
    /// answer, or there is none.
    async fn figures(&self, id: &str) -> Option<Figures> {
        let Ok(admin) = self.database.cluster(id).await else { return None };
        self.figures.get_with_by_ref(id, async { probe::figures(&admin).await }).await
    }
}
