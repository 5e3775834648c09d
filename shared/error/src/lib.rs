//! The one place where errors become gRPC statuses.
//!
//! Every status carries a `google.rpc.ErrorInfo` whose reason is a value of
//! `enum ErrorReason` and whose domain is `crm` (AIP-193); the code follows
//! from the reason. To add an error, add a reason to the proto and its code to
//! [`code`].

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

pub use crm_proto::common::v1::ErrorReason;
pub use crm_proto::validate::{Violation, Violations};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "crm";

/// More faults than this are counted, not named: clients accept no more than
/// 8 or 16 KiB of metadata, where errors travel.
const MAX_VIOLATIONS: usize = 25;
/// Nor are more named than take so many bytes on their way, lest long fields
/// fill it.
const MAX_VIOLATION_BYTES: usize = 6 * 1024;
/// How much of the gRPC library's own words a message shows, in characters:
/// they may repeat what the caller sent.
const MAX_FOREIGN: usize = 100;

type Source = Box<dyn Error + Send + Sync>;

/// A failed call, as the caller will see it; and its cause, which only the log
/// sees.
#[derive(Debug)]
pub struct ApiError(Box<Parts>);

#[derive(Debug)]
struct Parts {
    reason: ErrorReason,
    message: String,
    metadata: HashMap<String, String>,
    violations: Vec<Violation>,
    resource: Option<(&'static str, String)>,
    retry_after: Option<Duration>,
    source: Option<Source>,
}

impl ApiError {
    /// An error with a message that is safe to show to any caller.
    pub fn new(reason: ErrorReason, message: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            reason,
            message: message.into(),
            metadata: HashMap::new(),
            violations: Vec::new(),
            resource: None,
            retry_after: None,
            source: None,
        }))
    }

    /// A fault of this server. The caller learns nothing of the cause.
    pub fn internal(source: impl Into<Source>) -> Self {
        Self::new(ErrorReason::Internal, "internal error").with_source(source)
    }

    /// A dependency does not answer. The caller learns nothing of the cause.
    pub fn unavailable(source: impl Into<Source>) -> Self {
        Self::new(
            ErrorReason::DependencyUnavailable,
            "the service cannot answer now; repeat the call later",
        )
        .with_retry_after(Duration::from_secs(1))
        .with_source(source)
    }

    /// No such resource, or none that the caller may know of. The answer for
    /// both is the same, to the byte.
    pub fn not_found(kind: &'static str, name: impl Into<String>) -> Self {
        let mut error =
            Self::new(ErrorReason::ResourceNotFound, format!("there is no such {kind}"));
        error.0.resource = Some((kind, name.into()));
        error
    }

    /// Fields are wrong: all of them at once.
    pub fn invalid(violations: Violations) -> Self {
        let mut violations = violations.into_vec();
        let named = room_for(&violations);
        let more = violations.len() - named;
        violations.truncate(named);
        let mut fields: Vec<_> = violations.iter().map(|v| v.field.as_str()).collect();
        fields.dedup();
        let mut message = format!("invalid fields: {}", fields.join(", "));
        if more > 0 {
            message.push_str(&format!(", and {more} more faults"));
        }
        let mut error = Self::new(ErrorReason::InvalidFields, message);
        error.0.violations = violations;
        error
    }

    /// Adds a fact for programs to the `ErrorInfo`.
    #[must_use]
    pub fn with_metadata(mut self, key: &str, value: impl Into<String>) -> Self {
        self.0.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// Says when repeating the call makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Why the call failed.
    pub fn reason(&self) -> ErrorReason {
        self.0.reason
    }
}

/// How many violations an answer can name: at least one.
fn room_for(violations: &[Violation]) -> usize {
    let mut bytes = 0;
    let fitting = violations.iter().take(MAX_VIOLATIONS).take_while(|violation| {
        let Violation { field, reason, description } = violation;
        // The message names the field, and most signs take three bytes there;
        // the details repeat it, and in base64 four bytes stand for three.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._[]".contains(&byte);
        bytes += field.bytes().map(|byte| if is_plain(byte) { 1 } else { 3 }).sum::<usize>();
        bytes += (2 * field.len() + reason.len() + description.len() + 16) * 4 / 3;
        bytes <= MAX_VIOLATION_BYTES
    });
    fitting.count().max(violations.len().min(1))
}

/// The beginning of what the gRPC library says.
fn foreign(status: &Status) -> String {
    status.message().chars().take(MAX_FOREIGN).collect()
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl Error for ApiError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

impl From<ApiError> for Status {
    #[expect(clippy::disallowed_methods, reason = "the one place that makes statuses")]
    fn from(ApiError(error): ApiError) -> Self {
        let code = code(error.reason);
        if let Some(source) = &error.source {
            let cause = chain(source.as_ref());
            if matches!(code, Code::Internal) {
                tracing::error!(cause, "the call failed by a fault of this server");
            } else {
                tracing::warn!(cause, reason = name(error.reason), "the call failed");
            }
        }
        let mut details = ErrorDetails::new();
        details.set_error_info(name(error.reason), DOMAIN, error.metadata);
        if !error.violations.is_empty() {
            let violations: Vec<_> = error
                .violations
                .into_iter()
                .map(|v| FieldViolation {
                    reason: v.reason.to_owned(),
                    ..FieldViolation::new(v.field, v.description)
                })
                .collect();
            details.set_bad_request(violations);
        }
        if let Some((kind, name)) = error.resource {
            details.set_resource_info(format!("crm/{kind}"), name, "", "");
        }
        if let Some(delay) = error.retry_after {
            details.set_retry_info(Some(delay));
        }
        let message = match &error.source {
            Some(source) if cfg!(bug_error_text_leaked) => chain(source.as_ref()),
            _ => error.message,
        };
        Self::with_error_details(code, message, details)
    }
}

/// The reason's name without the prefix of the enum (AIP-193).
pub fn name(reason: ErrorReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}

/// The reason that a status of this project carries, where this version knows
/// it.
pub fn reason(status: &Status) -> Option<ErrorReason> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason))
}

/// The status code of each reason.
pub fn code(reason: ErrorReason) -> Code {
    match reason {
        ErrorReason::Unspecified | ErrorReason::Internal => Code::Internal,
        ErrorReason::MalformedRequest
        | ErrorReason::InvalidFields
        | ErrorReason::RequestIdReused => Code::InvalidArgument,
        ErrorReason::RequestTooLarge
        | ErrorReason::SessionsExhausted
        | ErrorReason::ClustersFull => Code::ResourceExhausted,
        ErrorReason::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorReason::MethodUnknown | ErrorReason::CompressionUnknown => Code::Unimplemented,
        ErrorReason::Overloaded
        | ErrorReason::DependencyUnavailable
        | ErrorReason::SchemaVersionUnsupported => Code::Unavailable,
        ErrorReason::TokenMissing
        | ErrorReason::TokenInvalid
        | ErrorReason::TokenExpired
        | ErrorReason::CredentialsInvalid => Code::Unauthenticated,
        ErrorReason::PermissionMissing | ErrorReason::TenantMismatch => Code::PermissionDenied,
        ErrorReason::ResourceNotFound => Code::NotFound,
        ErrorReason::SlugTaken | ErrorReason::ClusterExists => Code::AlreadyExists,
        ErrorReason::TenantInactive
        | ErrorReason::TenantSuspended
        | ErrorReason::TenantDeleted
        | ErrorReason::TenantNotSuspended
        | ErrorReason::MigrationChanged
        | ErrorReason::MigrationFailed
        | ErrorReason::MigrationNotFailed
        | ErrorReason::ResourceDeleted
        | ErrorReason::ResourceNotDeleted
        | ErrorReason::ConversationClosed
        | ErrorReason::ClusterNotReady
        | ErrorReason::StateTransitionInvalid
        | ErrorReason::ConversationLimitReached
        | ErrorReason::SessionBudgetExceeded
        | ErrorReason::ClusterUnreconciled => Code::FailedPrecondition,
        ErrorReason::ConcurrentChange => Code::Aborted,
        ErrorReason::Cancelled => Code::Cancelled,
    }
}

/// An answer of the gRPC library itself, which has no details, in this
/// project's terms. `None`: the status was made here and is fine as it is.
pub fn normalize(status: &Status) -> Option<ApiError> {
    if status.code() == Code::Ok || !status.details().is_empty() {
        return None;
    }
    let error = match status.code() {
        // tonic says INTERNAL for bytes that do not decode, OUT_OF_RANGE for
        // too many of them, CANCELLED for its own timeout.
        Code::Internal | Code::InvalidArgument => {
            ApiError::new(ErrorReason::MalformedRequest, "the request cannot be decoded")
        }
        Code::OutOfRange | Code::ResourceExhausted => {
            ApiError::new(ErrorReason::RequestTooLarge, "the request is too large")
        }
        Code::DeadlineExceeded => deadline_exceeded(),
        Code::Cancelled if status.message() == "Timeout expired" => deadline_exceeded(),
        Code::Cancelled => ApiError::new(ErrorReason::Cancelled, "the call was given up"),
        Code::Unimplemented if status.message().contains("compress") => {
            ApiError::new(ErrorReason::CompressionUnknown, foreign(status))
        }
        Code::Unimplemented => ApiError::new(ErrorReason::MethodUnknown, foreign(status)),
        Code::Unavailable => ApiError::new(ErrorReason::Overloaded, "the server is overloaded")
            .with_retry_after(Duration::from_secs(1)),
        Code::NotFound => ApiError::not_found("service", ""),
        Code::Ok
        | Code::Unknown
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::DataLoss
        | Code::Unauthenticated => ApiError::internal(status.to_string()),
    };
    Some(error)
}

/// The answer to a call whose deadline passed.
pub fn deadline_exceeded() -> ApiError {
    ApiError::new(
        ErrorReason::DeadlineExceeded,
        "the deadline passed; a write may have happened: repeat it with the same request_id",
    )
}

/// An error and all its causes, in one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_never_reaches_the_caller() {
        let error = ApiError::internal("relation \"contacts\" does not exist");

        let status = Status::from(error);

        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "internal error");
        assert!(!String::from_utf8_lossy(status.details()).contains("relation"));
    }

    #[test]
    fn all_violations_stand_in_one_answer() {
        let mut violations = Violations::default();
        violations.add("contact.email", "EMAIL", "An email address.");
        violations.add("contact.phone", "PHONE", "A phone number.");

        let status = Status::from(ApiError::invalid(violations));

        let details = status.get_error_details();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(details.error_info().unwrap().reason, "INVALID_FIELDS");
        let fields: Vec<_> = details
            .bad_request()
            .unwrap()
            .field_violations
            .iter()
            .map(|v| v.field.as_str())
            .collect();
        assert_eq!(fields, ["contact.email", "contact.phone"]);
    }

    #[test]
    fn an_answer_with_many_long_faults_stays_small_and_counts_the_rest() {
        let mut violations = Violations::default();
        for _ in 0..40 {
            violations.add("\u{202e}".repeat(100), "NO_NUL", "No NUL character.");
        }

        let status = Status::from(ApiError::invalid(violations));

        let named = status.get_details_bad_request().unwrap().field_violations.len();
        assert!((1..25).contains(&named), "{named}");
        assert!(status.message().ends_with(&format!("and {} more faults", 40 - named)));
        assert!(status.details().len() * 4 / 3 + status.message().len() * 3 < 8 * 1024);
    }

    #[test]
    fn answers_of_the_library_are_normalized_and_ours_are_not() {
        #[expect(clippy::disallowed_methods, reason = "what the library makes")]
        let foreign = Status::new(Code::Internal, "failed to decode Protobuf message");
        let own = Status::from(ApiError::not_found("contact", "contacts/1"));

        assert_eq!(normalize(&foreign).unwrap().reason(), ErrorReason::MalformedRequest);
        assert!(normalize(&own).is_none());
    }
}
