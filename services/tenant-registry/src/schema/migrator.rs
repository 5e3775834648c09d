//! Who runs migrations, and how: each exactly once.
//!
//! Every schema has a table `schema_migrations`, into which a migration is
//! written in its own transaction. So a database itself says what was applied
//! to it, whatever became of the process that applied it.
//!
//! Migrations run over a login that is a member of just that schema's owner,
//! so that whatever a migration says, it stays within its schema.

use std::time::Duration;

use crm_tenancy::StoreError;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

use super::SchemaError;
use super::store::{self, MigrationRow};
use crate::cluster::{ClusterAdmin, quoted};
use crate::seal::{MasterKey, new_secret, scram_verifier};

/// How long opening a session may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Who runs a service's migrations: a login that is a member of the owner of
/// its schema, and of nothing else.
#[derive(Debug)]
pub(crate) struct Migrator {
    service: String,
    owner: String,
    login: String,
    password: SecretString,
}

/// What came of raising a schema.
#[derive(Debug)]
pub(crate) struct Raised {
    /// The version that the schema has now.
    pub(crate) version: i32,
    /// Why it is not the newest.
    pub(crate) failure: Option<SchemaError>,
}

/// The migrators of services. Every replica comes to the same passwords.
#[derive(Clone, Debug)]
pub(crate) struct Migrators {
    registry: PgPool,
    master_key: MasterKey,
}

impl Migrators {
    pub(crate) fn new(registry: PgPool, master_key: MasterKey) -> Self {
        Self { registry, master_key }
    }

    /// The migrators of services in a cluster, each made where it is missing,
    /// with the other roles of its service.
    pub(crate) async fn ensure(
        &self,
        admin: &ClusterAdmin,
        services: &[String],
    ) -> Result<Vec<(String, Migrator)>, SchemaError> {
        let mut migrators = Vec::new();
        for service in services {
            let password = self.password(service).await?;
            admin.ensure_service(service, &scram_verifier(&password)?).await?;
            let migrator = Migrator {
                service: service.clone(),
                owner: format!("crm_{service}_owner"),
                login: format!("crm_{service}_migrator"),
                password,
            };
            migrators.push((service.clone(), migrator));
        }
        Ok(migrators)
    }

    async fn password(&self, service: &str) -> Result<SecretString, SchemaError> {
        let purpose = format!("migrator {service}");
        let sealed = match store::migrator_secret(&self.registry, service).await? {
            Some(sealed) => sealed,
            None => {
                let secret = new_secret()?;
                let sealed = self.master_key.seal(&purpose, secret.expose_secret().as_bytes())?;
                // Of two at once, one is kept, and both go on with that one.
                store::keep_migrator_secret(&self.registry, service, &sealed).await?
            }
        };
        Ok(self.master_key.open_text(&purpose, &sealed)?)
    }
}

/// Raises a schema to the newest version of its set. `known` is the version it
/// had when nothing was written down in the schema itself yet.
pub(crate) async fn raise(
    admin: &ClusterAdmin,
    migrator: &Migrator,
    database: &str,
    known: i32,
    set: &[MigrationRow],
) -> Raised {
    let mut version = known;
    let outcome = raise_from(admin, migrator, database, &mut version, set).await;
    // The right to connect lasts for just this.
    match admin.revoke("CONNECT", database, &migrator.login).await {
        Ok(()) => Raised { version, failure: outcome.err() },
        Err(error) => Raised { version: known, failure: Some(error.into()) },
    }
}

async fn raise_from(
    admin: &ClusterAdmin,
    migrator: &Migrator,
    database: &str,
    version: &mut i32,
    set: &[MigrationRow],
) -> Result<(), SchemaError> {
    admin.grant("CONNECT", database, &migrator.login).await?;
    let password = migrator.password.expose_secret();
    let connecting = admin.connect_as(database, &migrator.login, password);
    let mut session = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| StoreError::from(sqlx::Error::PoolTimedOut))??;
    let outcome = apply_pending(&mut session, admin, migrator, database, version, set).await;
    // The session is of no more use, however it ends.
    let _closed = session.close().await;
    outcome
}

async fn apply_pending(
    session: &mut PgConnection,
    admin: &ClusterAdmin,
    migrator: &Migrator,
    database: &str,
    version: &mut i32,
    set: &[MigrationRow],
) -> Result<(), SchemaError> {
    for (applied, checksum) in applied(session, migrator).await? {
        let registered = set.iter().find(|migration| migration.version == applied);
        if registered.is_some_and(|migration| migration.checksum != checksum) {
            return Err(SchemaError::Changed(applied.unsigned_abs()));
        }
        *version = applied.max(*version);
    }
    if *version == 0 {
        // The right to make a schema lasts for just this one.
        admin.grant("CREATE", database, &migrator.owner).await?;
        let made = prepare(session, migrator).await;
        admin.revoke("CREATE", database, &migrator.owner).await?;
        made?;
    }
    let known = *version;
    for migration in set.iter().filter(|migration| migration.version > known) {
        let failed = |error: sqlx::Error| SchemaError::Migration {
            service: migrator.service.clone(),
            version: migration.version,
            source: error.into(),
        };
        let script = script(migrator, migration);
        sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *session).await.map_err(failed)?;
        *version = migration.version;
    }
    Ok(())
}

/// The versions that a schema says it has, with their checksums. None: it is
/// from before schemas said so, or there is no schema.
async fn applied(
    session: &mut PgConnection,
    migrator: &Migrator,
) -> Result<Vec<(i32, Vec<u8>)>, StoreError> {
    let table = format!("{}.schema_migrations", quoted(&migrator.service));
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(&table)
        .fetch_one(&mut *session)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    let rows = format!("SELECT version, checksum FROM {table} ORDER BY version");
    Ok(sqlx::query_as(AssertSqlSafe(rows)).fetch_all(session).await?)
}

/// Makes the schema of a service, in which PUBLIC has no rights by default. It
/// may run twice.
async fn prepare(session: &mut PgConnection, migrator: &Migrator) -> Result<(), StoreError> {
    let (schema, owner) = (quoted(&migrator.service), quoted(&migrator.owner));
    let statements = format!(
        "SET ROLE {owner};
         CREATE SCHEMA IF NOT EXISTS {schema};
         ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
         ALTER DEFAULT PRIVILEGES REVOKE USAGE ON TYPES FROM PUBLIC;"
    );
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(session).await?;
    Ok(())
}

/// A migration as the owner of its schema, in one transaction with the row
/// that says so. The row comes first: who comes second waits for it and then
/// fails. One that ends the transaction before its end is refused.
fn script(migrator: &Migrator, migration: &MigrationRow) -> String {
    let owner = quoted(&migrator.owner);
    let table = format!("{}.schema_migrations", quoted(&migrator.service));
    let version = migration.version;
    let checksum: String = migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
    let sql = &migration.sql;
    format!(
        "RESET ALL; SET ROLE {owner}; SET lock_timeout = '2s';
BEGIN;
CREATE TABLE IF NOT EXISTS {table} (
    version integer PRIMARY KEY,
    checksum bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);
INSERT INTO {table} (version, checksum) VALUES ({version}, '\\x{checksum}');
{sql}
;
DO $crm_end$ BEGIN
    IF NOT EXISTS (
        SELECT FROM {table} AS m
        WHERE m.version = {version} AND m.xmin = pg_current_xact_id()::xid
    ) THEN
        RAISE EXCEPTION 'the migration ended its transaction' USING ERRCODE = '2D000';
    END IF;
END $crm_end$;
COMMIT;"
    )
}
