//! What can go wrong with a schema.

use crm_error::{ApiError, ErrorReason, Violations};
use crm_tenancy::{DatabaseError, SessionError, StoreError};

use crate::seal::SealError;

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
        source: DatabaseError,
    },
    #[error("a migration made or removed schemas: {0}")]
    Stray(String),
    #[error("the cluster does not answer in time")]
    TooSlow,
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
            SchemaError::Migration { .. } | SchemaError::Stray(_) => Self::new(
                ErrorReason::MigrationFailed,
                "a migration does not run; nothing of the set was taken in",
            )
            .with_source(error),
            SchemaError::TooSlow => Self::unavailable(error),
            SchemaError::Seal(_) => Self::internal(error),
            SchemaError::Store(error) => error.into(),
            SchemaError::Task(error) => error.into(),
        }
    }
}

/// SQLSTATEs that say nothing about a migration: a lock was not free, two
/// waited for each other, the server was short of something (PostgreSQL,
/// appendix A).
const PASSING: [&str; 3] = ["55P03", "40P01", "40001"];
/// Classes of such: connections, resources, intervention by an operator.
const PASSING_CLASSES: [&str; 3] = ["08", "53", "57"];
/// The longest error that is kept, in characters.
const MAX_ERROR: usize = 1000;

impl SchemaError {
    /// Whether another attempt may do better without anyone's doing.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Migration { source, .. } => {
                let Some(error) = source.cause().as_database_error() else { return true };
                let code = error.code().unwrap_or_default();
                PASSING.contains(&code.as_ref())
                    || PASSING_CLASSES.iter().any(|class| code.starts_with(class))
                    // The server still runs it for a process that is gone.
                    || error.constraint() == Some("schema_migrations_pkey")
            }
            // The registry's own statements around a migration.
            Self::TooSlow | Self::Store(_) | Self::Task(_) => true,
            Self::UnknownService
            | Self::Gap
            | Self::Changed(_)
            | Self::Stray(_)
            | Self::Seal(_) => false,
        }
    }

    /// What an operator is told: PostgreSQL's word with its SQLSTATE.
    pub(crate) fn report(&self) -> String {
        let text = match self {
            Self::Migration { version, source, .. } => {
                format!("migration {version}: {}", crm_error::chain(source))
            }
            Self::UnknownService
            | Self::Gap
            | Self::Changed(_)
            | Self::Stray(_)
            | Self::TooSlow
            | Self::Seal(_)
            | Self::Store(_)
            | Self::Task(_) => crm_error::chain(self),
        };
        text.chars().take(MAX_ERROR).collect()
    }
}
