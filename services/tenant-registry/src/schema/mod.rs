//! The schemas of services, and the templates that have them.
//!
//! A template is never changed: a new one is a clone of the last, migrated,
//! closed, and only then made the one that tenants are cloned from. Databases
//! that are there already are raised by a wave (`crate::migration`).

mod error;
mod migrator;
mod store;

use std::sync::Arc;
use std::time::Duration;

use crm_clock::Clock;
use crm_tenancy::StoreError;
use sqlx::postgres::PgAdvisoryLock;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;

pub(crate) use error::SchemaError;
pub(crate) use migrator::{Migrator, Migrators, Raised, raise};
pub(crate) use store::{migrations, services};

use crate::cluster::ClusterAdmin;
use crate::database::{Database, owned};
use crate::seal::fingerprint;

/// How often clusters are looked for that lack a template, when nobody says
/// that there are any.
const CATCH_UP_EVERY: Duration = Duration::from_secs(5);
/// How long making one template may take. Whoever makes it holds up all others
/// who register or make one, and a cluster may hang in the middle. What is left
/// is removed with the next attempt.
const MAKE_WITHIN: Duration = Duration::from_secs(60);
/// How long a cluster may take to answer before others are held up for it.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The registry's own schema in every tenant database.
const PLATFORM: &str = "platform";
const PLATFORM_MIGRATIONS: &[(&str, &str)] = &[
    ("the change log", include_str!("../../platform/0001_log.sql")),
    ("the change feed", include_str!("../../platform/0002_feed.sql")),
    ("the writer of a revision", include_str!("../../platform/0003_writer.sql")),
    #[cfg(bug_change_left_out)]
    (
        "a seeded bug",
        "CREATE RULE left_out AS ON INSERT TO platform.changes WHERE new.ordinal > 0 DO INSTEAD NOTHING",
    ),
];

/// What whoever takes in migrations or makes templates holds, in the registry's
/// database.
pub(crate) fn lock() -> PgAdvisoryLock {
    PgAdvisoryLock::new("crm schemas")
}

/// A migration as a service sends it.
#[derive(Clone, Debug)]
pub(crate) struct NewMigration {
    pub(crate) version: u32,
    pub(crate) description: String,
    pub(crate) sql: String,
    pub(crate) oldest_service_version: u32,
}

/// The use cases of schemas.
#[derive(Clone, Debug)]
pub(crate) struct Schemas {
    database: Database,
    migrators: Migrators,
    /// Taken before [`lock`], and before a connection: those who wait for it
    /// leave the connections to who has it, and needs several.
    turn: Arc<Mutex<()>>,
    /// Told when there is a new version.
    registered: Arc<Notify>,
    /// Told when clusters may lack a template.
    behind: Arc<Notify>,
    clock: Clock,
}

impl Schemas {
    pub(crate) fn new(
        database: Database,
        migrators: Migrators,
        registered: Arc<Notify>,
        clock: Clock,
    ) -> Self {
        Self {
            database,
            migrators,
            turn: Arc::default(),
            registered,
            behind: Arc::default(),
            clock,
        }
    }

    /// Takes in the registry's own schema.
    pub(crate) async fn register_platform(&self) -> Result<(), SchemaError> {
        let migrations =
            (1..).zip(PLATFORM_MIGRATIONS).map(|(version, &(description, sql))| NewMigration {
                version,
                description: description.to_owned(),
                sql: sql.to_owned(),
                oldest_service_version: 0,
            });
        self.register(PLATFORM.to_owned(), migrations.collect()).await?;
        Ok(())
    }

    /// Takes in a service's migrations and brings the template up to them.
    /// Answers the newest version, which is newer than the caller's where a
    /// newer replica was here before.
    pub(crate) async fn register(
        &self,
        service: String,
        migrations: Vec<NewMigration>,
    ) -> Result<u32, SchemaError> {
        let this = self.clone();
        owned(async move { this.register_owned(&service, &migrations).await }).await
    }

    async fn register_owned(
        &self,
        service: &str,
        migrations: &[NewMigration],
    ) -> Result<u32, SchemaError> {
        if !(1..).zip(migrations).all(|(version, migration)| migration.version == version) {
            return Err(SchemaError::Gap);
        }
        // One at a time, in all replicas; the lock goes with its connection.
        let _turn = self.turn.lock().await;
        let lock = lock();
        let connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let mut connection = lock.acquire(connection).await.map_err(StoreError::from)?;
        if !store::is_service(&mut connection, service).await? {
            return Err(SchemaError::UnknownService);
        }
        let known = store::migrations(&mut connection, service).await?;
        for (migration, known) in migrations.iter().zip(&known) {
            if fingerprint(&migration.sql) != known.checksum
                || i64::from(migration.oldest_service_version)
                    != i64::from(known.oldest_service_version)
            {
                return Err(SchemaError::Changed(migration.version));
            }
        }
        // A set is known only once a template has it: one that does not run
        // leaves nothing behind.
        let mut tx = connection.begin().await.map_err(StoreError::from)?;
        for migration in migrations.iter().skip(known.len()) {
            let checksum = fingerprint(&migration.sql);
            store::insert_migration(&mut tx, service, migration, &checksum, self.clock.now())
                .await?;
        }
        self.try_in_first(&mut tx).await?;
        tx.commit().await.map_err(StoreError::from)?;
        self.registered.notify_one();
        self.behind.notify_one();
        connection.release_now().await.map_err(StoreError::from)?;
        Ok(u32::try_from(migrations.len().max(known.len())).unwrap_or(u32::MAX))
    }

    /// Tries migrations in the first cluster, by making its template where that
    /// lacks one. The others get theirs from [`Schemas::catch_up`], each in a
    /// transaction of its own: what fails there undoes nothing here.
    async fn try_in_first(&self, tx: &mut PgConnection) -> Result<(), SchemaError> {
        let behind = store::clusters_behind(tx).await?;
        if let Some(first) = behind.into_iter().find(|behind| behind.is_first) {
            let admin = self.database.cluster(&first.cluster).await?;
            self.make_in_time(tx, &first, &admin).await?;
        }
        Ok(())
    }

    /// Makes the template of a cluster that lacks one, or a migration.
    pub(crate) async fn catch_up_cluster(&self, cluster: &str) -> Result<(), SchemaError> {
        let _turn = self.turn.lock().await;
        let lock = lock();
        let connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let mut connection = lock.acquire(connection).await.map_err(StoreError::from)?;
        let mut tx = connection.begin().await.map_err(StoreError::from)?;
        let behind = store::clusters_behind(&mut tx).await?;
        if let Some(behind) = behind.into_iter().find(|behind| behind.cluster == cluster) {
            let admin = self.database.cluster(cluster).await?;
            self.make_in_time(&mut tx, &behind, &admin).await?;
        }
        tx.commit().await.map_err(StoreError::from)?;
        connection.release_now().await.map_err(StoreError::from)?;
        Ok(())
    }

    /// Gives clusters but the first their templates when a schema was
    /// registered, and later those that did not answer then, for as long as
    /// this process runs.
    pub(crate) async fn catch_up(self) {
        loop {
            tokio::select! {
                () = self.behind.notified() => {}
                () = tokio::time::sleep(CATCH_UP_EVERY) => {}
            }
            if let Err(error) = self.catch_up_all().await {
                let cause = crm_error::chain(&error);
                tracing::warn!(cause, "cannot look for clusters without a template");
            }
        }
    }

    async fn catch_up_all(&self) -> Result<(), SchemaError> {
        let registry = &self.database.registry;
        let mut connection = registry.acquire().await.map_err(StoreError::from)?;
        let behind = store::clusters_behind(&mut connection).await?;
        drop(connection);
        for store::ClusterBehind { cluster, .. } in behind {
            if let Err(error) = self.catch_up_if_there(&cluster).await {
                let cause = crm_error::chain(&error);
                tracing::warn!(cluster, cause, "a cluster is without its template");
            }
        }
        Ok(())
    }

    async fn catch_up_if_there(&self, cluster: &str) -> Result<(), SchemaError> {
        // Asked before the lock is taken, which others wait for.
        let admin = self.database.cluster(cluster).await?;
        timeout(ANSWER_WITHIN, admin.ping()).await.map_err(|_| SchemaError::TooSlow)??;
        self.catch_up_cluster(cluster).await
    }

    async fn make_in_time(
        &self,
        tx: &mut PgConnection,
        behind: &store::ClusterBehind,
        admin: &ClusterAdmin,
    ) -> Result<(), SchemaError> {
        let made = timeout(MAKE_WITHIN, self.make_template(tx, behind, admin)).await;
        made.unwrap_or(Err(SchemaError::TooSlow))
    }

    /// Makes a new template. What is in the making is written down outside
    /// `tx`, to be found after a crash.
    async fn make_template(
        &self,
        tx: &mut PgConnection,
        behind: &store::ClusterBehind,
        admin: &ClusterAdmin,
    ) -> Result<(), SchemaError> {
        let registry = &self.database.registry;
        let cluster = &behind.cluster;
        // Where nothing answers, nothing is begun.
        admin.ping().await?;
        for (id, name) in store::unfinished_templates(registry, cluster).await? {
            // A session of its migrator may not have ended yet, and the registry
            // cannot end it. The next template removes this one, too.
            match admin.drop(&name).await {
                Ok(()) => store::delete_database(registry, id).await?,
                Err(error) => {
                    let cause = crm_error::chain(&error);
                    tracing::warn!(cluster, template = name, cause, "it is removed later");
                }
            }
        }
        let id = self.clock.new_id();
        let name = store::plan_template(registry, id, cluster, self.clock.now()).await?;
        let base = behind.template.as_deref().unwrap_or("template0");
        tracing::info!(cluster, template = name, base, "making a template");
        admin.clone_closed(&name, base).await?;
        admin.lock(&name).await?;
        admin.allow_connections(&name, true).await?;
        self.migrate(tx, behind, admin, &name).await?;
        admin.allow_connections(&name, false).await?;
        store::finish_template(tx, id, cluster).await?;
        Ok(())
    }

    async fn migrate(
        &self,
        tx: &mut PgConnection,
        cluster: &store::ClusterBehind,
        admin: &ClusterAdmin,
        database: &str,
    ) -> Result<(), SchemaError> {
        let mut own = admin.connect_to(database).await?;
        if cluster.template_id.is_none() {
            // Nothing of this project lives in the schema that everyone shares.
            store::drop_public_schema(&mut own).await?;
        }
        // A migration may grant to another service: the roles of all come first.
        let services = store::services(tx).await?;
        let migrators = self.migrators.ensure(admin, &services).await?;
        for (service, migrator) in &migrators {
            let known = store::version(tx, cluster.template_id, service).await?;
            let set = store::migrations(tx, service).await?;
            if set.iter().any(|migration| migration.version > known) {
                let raised = raise(admin, migrator, database, known, &set).await;
                raised.failure.map_or(Ok(()), Err)?;
            }
        }
        let stray = store::stray_schemas(&mut own, &services).await?;
        sqlx::Connection::close(own).await.map_err(StoreError::from)?;
        if stray.is_empty() { Ok(()) } else { Err(SchemaError::Stray(stray.join(", "))) }
    }
}
