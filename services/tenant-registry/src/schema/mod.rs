//! The schemas of services, and the templates that have them.
//!
//! A template is never changed: a new one is a clone of the last, migrated,
//! closed, and only then made the one that tenants are cloned from.
//!
//! Migrations run over a login that is a member of just that schema's owner,
//! so that whatever a migration says, it stays within its schema.

mod store;

use crm_clock::Clock;
use crm_error::{ApiError, ErrorReason, Violations};
use crm_tenancy::{SessionError, StoreError};
use secrecy::ExposeSecret as _;
use sqlx::postgres::PgAdvisoryLock;
use sqlx::{AssertSqlSafe, PgConnection};

pub(crate) use store::{MigrationRow, add_cluster};

use crate::database::{Database, owned};
use crate::provisioning::{Cluster, Step, quoted};
use crate::seal::{SealError, fingerprint, new_secret, scram_verifier};

/// The registry's own schema in every tenant database.
const PLATFORM: &str = "platform";
const PLATFORM_MIGRATIONS: [(&str, &str); 1] =
    [("the change log", include_str!("../../platform/0001_log.sql"))];

/// Why a schema was not taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchemaError {
    #[error("the service has no schema in tenant databases")]
    UnknownService,
    #[error("the versions are not 1, 2, 3 and so on")]
    Gap,
    #[error("migration {0} was changed after it was registered")]
    Changed(u32),
    #[error("migration {version} of {service} failed")]
    Migration {
        service: String,
        version: i32,
        #[source]
        source: sqlx::Error,
    },
    #[error("a secret could not be made")]
    Seal(#[from] SealError),
    #[error("a statement failed")]
    Store(#[from] StoreError),
    #[error("the work did not end")]
    Task(#[from] SessionError),
}

impl From<SchemaError> for ApiError {
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::UnknownService => Self::not_found("service", ""),
            SchemaError::Gap => {
                let mut violations = Violations::default();
                violations.add("migrations", "VERSIONS", "1, 2, 3 and so on, in this order.");
                Self::invalid(violations)
            }
            SchemaError::Changed(version) => Self::new(
                ErrorReason::MigrationChanged,
                format!("migration {version} was changed after it was registered"),
            ),
            SchemaError::Migration { .. } | SchemaError::Seal(_) => Self::internal(error),
            SchemaError::Store(error) => error.into(),
            SchemaError::Task(error) => error.into(),
        }
    }
}

/// A migration as a service sends it.
#[derive(Clone, Debug)]
pub(crate) struct NewMigration {
    pub(crate) version: u32,
    pub(crate) description: String,
    pub(crate) sql: String,
}

/// The use cases of schemas.
#[derive(Clone, Debug)]
pub(crate) struct Schemas {
    database: Database,
    cluster: Cluster,
    clock: Clock,
}

impl Schemas {
    pub(crate) fn new(database: Database, clock: Clock) -> Self {
        let cluster = Cluster::new(database.cluster.clone());
        Self { database, cluster, clock }
    }

    /// Takes in the registry's own schema.
    pub(crate) async fn register_platform(&self) -> Result<(), SchemaError> {
        let migrations = (1..).zip(PLATFORM_MIGRATIONS).map(|(version, (description, sql))| {
            NewMigration { version, description: description.to_owned(), sql: sql.to_owned() }
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
        let lock = PgAdvisoryLock::new("crm schemas");
        let connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let mut connection = lock.acquire(connection).await.map_err(StoreError::from)?;
        if !store::is_service(&mut connection, service).await? {
            return Err(SchemaError::UnknownService);
        }
        let known = store::migrations(&mut connection, service).await?;
        for (migration, known) in migrations.iter().zip(&known) {
            if fingerprint(&migration.sql) != known.checksum {
                return Err(SchemaError::Changed(migration.version));
            }
        }
        for migration in migrations.iter().skip(known.len()) {
            let checksum = fingerprint(&migration.sql);
            store::insert_migration(
                &mut connection,
                service,
                migration,
                &checksum,
                self.clock.now(),
            )
            .await?;
        }
        self.ensure_template(&mut connection).await?;
        connection.release_now().await.map_err(StoreError::from)?;
        Ok(u32::try_from(migrations.len().max(known.len())).unwrap_or(u32::MAX))
    }

    /// Makes a new template where the current one lacks a migration.
    async fn ensure_template(&self, connection: &mut PgConnection) -> Result<(), SchemaError> {
        for (id, name) in store::unfinished_templates(connection).await? {
            self.cluster.drop(&name).await?;
            store::delete_database(connection, id).await?;
        }
        for cluster in store::clusters_behind(connection).await? {
            let id = self.clock.new_id();
            let name =
                store::plan_template(connection, id, &cluster.cluster, self.clock.now()).await?;
            let base = cluster.template.as_deref().unwrap_or("template0");
            tracing::info!(template = name, base, "making a template");
            self.cluster.clone_closed(&name, base).await?;
            self.cluster.lock(&name).await?;
            self.cluster.allow_connections(&name, true).await?;
            self.migrate(connection, &cluster, &name).await?;
            self.cluster.allow_connections(&name, false).await?;
            store::finish_template(connection, id, &cluster.cluster, Step::Ready).await?;
        }
        Ok(())
    }

    async fn migrate(
        &self,
        connection: &mut PgConnection,
        cluster: &store::ClusterBehind,
        database: &str,
    ) -> Result<(), SchemaError> {
        let mut own = self.database.connect_to(database).await?;
        // Nothing of this project lives in the schema that everyone shares.
        sqlx::raw_sql("DROP SCHEMA IF EXISTS public")
            .execute(&mut own)
            .await
            .map_err(StoreError::from)?;
        // A migration may grant to another service: the roles of all come first.
        let mut passwords = Vec::new();
        for service in store::services(connection).await? {
            let password = new_secret()?;
            self.cluster.ensure_service(&service, &scram_verifier(&password)?).await?;
            passwords.push((service, password));
        }
        for (service, password) in passwords {
            let pending = store::pending(connection, cluster.template_id, &service).await?;
            if pending.is_empty() {
                continue;
            }
            let (owner, login) =
                (format!("crm_{service}_owner"), format!("crm_{service}_migrator"));
            self.cluster.grant("CONNECT", database, &login).await?;
            self.cluster.grant("CREATE", database, &owner).await?;
            let mut session =
                self.database.connect_as(database, &login, password.expose_secret()).await?;
            let applied = apply(&mut session, &service, &owner, &pending).await;
            sqlx::Connection::close(session).await.map_err(StoreError::from)?;
            self.cluster.revoke("CREATE", database, &owner).await?;
            self.cluster.revoke("CONNECT", database, &login).await?;
            applied?;
        }
        sqlx::Connection::close(own).await.map_err(StoreError::from)?;
        Ok(())
    }
}

/// Runs migrations as the owner of their schema, each in a transaction.
async fn apply(
    session: &mut PgConnection,
    service: &str,
    owner: &str,
    pending: &[MigrationRow],
) -> Result<(), SchemaError> {
    let (schema, role) = (quoted(service), quoted(owner));
    let prepare = format!(
        "SET ROLE {role};
         CREATE SCHEMA IF NOT EXISTS {schema};
         ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
         ALTER DEFAULT PRIVILEGES REVOKE USAGE ON TYPES FROM PUBLIC;
         SET lock_timeout = '2s';"
    );
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *session).await.map_err(StoreError::from)?;
    for migration in pending {
        let failed = |source| SchemaError::Migration {
            service: service.to_owned(),
            version: migration.version,
            source,
        };
        let statements = format!("BEGIN;\n{}\n;COMMIT;", migration.sql);
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *session).await.map_err(failed)?;
    }
    Ok(())
}
