//! What can go wrong between a use case and its tenant's database.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use crm_error::{ApiError, ErrorReason, deadline_exceeded};

/// Why a use case got no session, or no answer from it.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The budget was used up, and no session came free in time.
    #[error("no session came free in time")]
    Exhausted,
    /// The registry or the database does not answer.
    #[error("{0}")]
    Unavailable(&'static str, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The tenant is still being made.
    #[error("the tenant is still being made")]
    Inactive,
    /// The tenant is suspended.
    #[error("the tenant is suspended")]
    Suspended,
    /// The tenant is deleted.
    #[error("the tenant is deleted")]
    Deleted,
    /// The tenant is gone, or its tokens were revoked.
    #[error("the token is void for its tenant")]
    TokenVoid,
    /// The tenant's schema is not of a version that this service can use.
    #[error("the tenant's schema has version {found}; {wanted} is wanted")]
    SchemaVersion {
        /// What the tenant has.
        found: u32,
        /// What the service needs.
        wanted: u32,
    },
    /// The work took too long and was cut off.
    #[error("the work was cut off")]
    TimedOut,
    /// The work panicked.
    #[error("the work panicked")]
    Panicked,
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        let retry = Duration::from_secs(1);
        match error {
            SessionError::Exhausted => {
                Self::new(ErrorReason::SessionsExhausted, "too many calls at once; repeat later")
                    .with_retry_after(retry)
            }
            SessionError::Unavailable(..) => Self::unavailable(error),
            SessionError::Inactive => {
                Self::new(ErrorReason::TenantInactive, "the tenant is still being made")
            }
            SessionError::Suspended => {
                Self::new(ErrorReason::TenantSuspended, "the tenant is suspended")
            }
            SessionError::Deleted => Self::new(ErrorReason::TenantDeleted, "the tenant is deleted"),
            SessionError::TokenVoid => {
                Self::new(ErrorReason::TokenInvalid, "the token is not valid here")
            }
            SessionError::SchemaVersion { .. } => Self::new(
                ErrorReason::SchemaVersionUnsupported,
                "the tenant's data is being upgraded; repeat later",
            )
            .with_retry_after(retry)
            .with_source(error),
            SessionError::TimedOut => deadline_exceeded(),
            SessionError::Panicked => Self::internal(error),
        }
    }
}

/// A statement failed. What it means to the caller follows from its SQLSTATE
/// (PostgreSQL, appendix A).
#[derive(Debug, thiserror::Error)]
#[error("the database refused a statement")]
pub struct StoreError(#[source] DatabaseError);

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self(DatabaseError(error))
    }
}

/// An error of the database, which says nothing of what a tenant keeps there.
///
/// PostgreSQL quotes the value that it cannot take (SQLSTATE class 22), and
/// has rows in its details; errors end in logs, and in front of operators.
pub struct DatabaseError(sqlx::Error);

impl DatabaseError {
    /// The error itself, for its code and what it is about; not for its text.
    pub fn cause(&self) -> &sqlx::Error {
        &self.0
    }
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(error) = self.0.as_database_error() else { return self.0.fmt(f) };
        let code = error.code().unwrap_or_default();
        write!(f, "{code}: {}", without_value(&code, error.message()))
    }
}

impl fmt::Debug for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for DatabaseError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // What it says of itself is all that may be told of it.
        if self.0.as_database_error().is_some() { None } else { self.0.source() }
    }
}

/// A message of PostgreSQL without the value that it quotes, if its code is one
/// of those that quote values. The value may have quotes in it, too.
fn without_value<'m>(code: &str, message: &'m str) -> Cow<'m, str> {
    let is_of_data = code.starts_with("22");
    match (message.find('"'), message.rfind('"')) {
        (Some(first), Some(last)) if is_of_data => {
            format!("{}…{}", &message[..=first], &message[last..]).into()
        }
        _ => message.into(),
    }
}

impl StoreError {
    /// The SQLSTATE, where the database gave one.
    fn state(&self) -> Option<String> {
        let error = self.0.cause().as_database_error()?;
        error.code().map(Cow::into_owned)
    }

    /// Whether the database gave this SQLSTATE.
    pub fn has_state(&self, state: &str) -> bool {
        self.state().is_some_and(|own| own == state)
    }

    /// Whether the row that was to be written changed meanwhile: reading it
    /// again and trying once more may help.
    pub fn is_conflict(&self) -> bool {
        self.has_state("CR002")
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let Some(state) = error.state() else {
            // Not the database's word: the connection broke, or we misread.
            let broken = matches!(
                error.0.cause(),
                sqlx::Error::Io(_)
                    | sqlx::Error::Tls(_)
                    | sqlx::Error::Protocol(_)
                    | sqlx::Error::PoolTimedOut
                    | sqlx::Error::PoolClosed
            );
            return if broken { Self::unavailable(error) } else { Self::internal(error) };
        };
        match state.as_str() {
            // platform.begin_write and end_write raise these two.
            "CR001" => Self::new(
                ErrorReason::RequestIdReused,
                "the request_id was used for a different request",
            ),
            "CR002" | "40001" | "40P01" | "55P03" => Self::new(
                ErrorReason::ConcurrentChange,
                "the resource changed meanwhile; read it again",
            ),
            // statement_timeout and cancellation.
            "57014" => deadline_exceeded(),
            // Shutdown, crash, not yet started; ended for being idle, in a
            // transaction or at all; a template in use.
            "57P01" | "57P02" | "57P03" | "25P03" | "57P05" | "55006" => Self::unavailable(error),
            // No connection; no room: on the disk, in memory, for sessions.
            state if state.starts_with("08") || state.starts_with("53") => Self::unavailable(error),
            _ => Self::internal(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_the_database_quotes_is_left_out() {
        let told = |code, message| without_value(code, message).into_owned();

        let cast = "invalid input syntax for type bigint: \"Ada \"Countess\" L.\"";
        assert_eq!(told("22P02", cast), "invalid input syntax for type bigint: \"…\"");
        let range = "value \"99999999999\" is out of range for type integer";
        assert_eq!(told("22003", range), "value \"…\" is out of range for type integer");
        let cut = "value too long for type character varying(5)";
        assert_eq!(told("22001", cut), cut);
        let table = "relation \"people\" does not exist";
        assert_eq!(told("42P01", table), table);
    }
}
