//! Words that no caller may read: what PostgreSQL's catalogue holds, and what
//! programs say of their own insides.

use crm_testing::server;
use sqlx::Connection as _;
use tonic::Status;

/// Whatever database it is.
const WORDS: [&str; 24] = [
    "select ",
    "insert ",
    "constraint",
    "relation ",
    "sqlstate",
    "postgres",
    "sqlx",
    "jsonb",
    "pg_",
    ".rs:",
    "syntax error",
    "duplicate key",
    "violates",
    "plpgsql",
    "out of range",
    "panicked",
    "unwrap",
    "backtrace",
    "tonic",
    "prost",
    "crm_",
    "/var/",
    "/tmp/",
    "/src/",
];
/// Fields and services of the contract with such a word in them.
const PUBLIC: [&str; 2] = ["postgresql_version", "type.googleapis.com"];

/// The words of one installation.
#[derive(Debug)]
pub(super) struct Catalogue(Vec<String>);

impl Catalogue {
    /// Reads the names of tables, indexes, sequences, functions, constraints and
    /// databases of the registry and of a tenant, and of roles.
    pub(super) async fn read(tenant: &str) -> Self {
        let mut words: Vec<String> = WORDS.map(str::to_owned).into();
        for database in ["crm_registry", tenant] {
            let mut connection = server().superuser(database).await;
            let names: Vec<String> = sqlx::query_scalar(
                "WITH own AS (
                     SELECT oid, nspname FROM pg_namespace
                     WHERE nspname !~ '^(pg_|information_schema)'
                 )
                 SELECT nspname || '.' || relname FROM pg_class JOIN own ON own.oid = relnamespace
                 UNION
                 SELECT relname FROM pg_class JOIN own ON own.oid = relnamespace
                 UNION
                 SELECT nspname || '.' || proname FROM pg_proc JOIN own ON own.oid = pronamespace
                 UNION
                 SELECT proname FROM pg_proc JOIN own ON own.oid = pronamespace
                 UNION
                 SELECT conname FROM pg_constraint JOIN own ON own.oid = connamespace
                 UNION
                 SELECT rolname FROM pg_roles
                 UNION
                 SELECT datname FROM pg_database",
            )
            .fetch_all(&mut connection)
            .await
            .unwrap();
            connection.close().await.unwrap();
            // `contacts` is a word of the contract; `contacts_pkey` and
            // `contacts.contacts` are not.
            words.extend(names.into_iter().filter(|name| name.contains(['_', '.'])));
        }
        words.sort_unstable();
        words.dedup();
        Self(words)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The first such word in a status.
    pub(super) fn word_in(&self, status: &Status) -> Option<String> {
        let details = String::from_utf8_lossy(status.details());
        let mut said = format!("{}\n{details}", status.message()).to_lowercase();
        for public in PUBLIC {
            said = said.replace(public, "");
        }
        self.0.iter().find(|word| said.contains(word.as_str())).cloned()
    }
}
