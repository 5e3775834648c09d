//! What an answer may be.

use std::collections::BTreeSet;

use crm_error::ErrorReason;
use tonic_types::{FieldViolation, StatusExt as _};

use super::catalogue::Catalogue;
use super::hostile::Verdict;
use super::send::Answer;

/// Clients take 8 KiB of metadata, and more only if they are told to.
const MAX_STATUS_BYTES: usize = 8 * 1024;

/// Refusals that are the caller's, not the server's.
const DOMAIN: [ErrorReason; 17] = [
    ErrorReason::ClusterExists,
    ErrorReason::ClusterNotReady,
    ErrorReason::CompressionUnknown,
    ErrorReason::ConcurrentChange,
    ErrorReason::ConversationClosed,
    ErrorReason::CredentialsInvalid,
    ErrorReason::DependencyUnavailable,
    ErrorReason::MigrationChanged,
    ErrorReason::MigrationNotFailed,
    ErrorReason::PermissionMissing,
    ErrorReason::RequestIdReused,
    ErrorReason::RequestTooLarge,
    ErrorReason::ResourceDeleted,
    ErrorReason::ResourceNotDeleted,
    ErrorReason::ResourceNotFound,
    ErrorReason::SessionBudgetExceeded,
    ErrorReason::StateTransitionInvalid,
];
/// Refusals that depend on what tenants are at the time.
const TENANTS: [ErrorReason; 4] = [
    ErrorReason::SlugTaken,
    ErrorReason::TenantNotSuspended,
    ErrorReason::MigrationFailed,
    ErrorReason::TenantInactive,
];

/// What an answer is, once it is found to be fine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Ok,
    Malformed,
    /// The fields that it names, each with its reason.
    Invalid(BTreeSet<(String, String)>),
    Other(String),
}

/// What is wrong with an answer, whatever was sent; or what it is.
pub(super) fn outcome(answer: &Answer, catalogue: &Catalogue) -> Result<Outcome, String> {
    let status = &answer.status;
    if answer.is_ok() {
        return Ok(Outcome::Ok);
    }
    if answer.status_bytes > MAX_STATUS_BYTES {
        return Err(format!("a status of {} bytes", answer.status_bytes));
    }
    if let Some(word) = catalogue.word_in(status) {
        return Err(format!("the status says {word:?}: {status:?}"));
    }
    let reason = crm_error::reason(status).ok_or_else(|| format!("no reason: {status:?}"))?;
    if status.code() != crm_error::code(reason) {
        return Err(format!("{:?} for {reason:?}", status.code()));
    }
    let violations = status.get_details_bad_request().map(|details| details.field_violations);
    match (reason, violations) {
        (ErrorReason::MalformedRequest, None) => Ok(Outcome::Malformed),
        (ErrorReason::InvalidFields, Some(violations)) if !violations.is_empty() => {
            violations.into_iter().map(named).collect::<Result<_, _>>().map(Outcome::Invalid)
        }
        (reason, None) if DOMAIN.contains(&reason) || TENANTS.contains(&reason) => {
            Ok(Outcome::Other(crm_error::name(reason).to_owned()))
        }
        _ => Err(format!("it is refused thus: {status:?}")),
    }
}

fn named(violation: FieldViolation) -> Result<(String, String), String> {
    let FieldViolation { field, description, reason, .. } = violation;
    let is_reason = !reason.is_empty()
        && reason.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    if field.is_empty() || !is_reason || description.is_empty() {
        return Err(format!("a violation of {field:?} for {reason:?}: {description:?}"));
    }
    Ok((field, reason))
}

/// Whether an outcome is the one that the contract asks for.
pub(super) fn compare(outcome: &Outcome, verdict: Verdict, path: &str) -> Result<(), String> {
    match (verdict, outcome) {
        (_, Outcome::Other(reason)) if reason == "REQUEST_TOO_LARGE" => Ok(()),
        (Verdict::Malformed, Outcome::Malformed) => Ok(()),
        (Verdict::Malformed, other) => Err(format!("it is malformed, and answered {other:?}")),
        (_, Outcome::Malformed) => Err("it is well-formed, and called malformed".to_owned()),
        (Verdict::Refused, Outcome::Invalid(faults)) => {
            let is_named = faults.iter().any(|(field, _)| is_at(field, path));
            is_named.then_some(()).ok_or_else(|| format!("{path} is not named: {faults:?}"))
        }
        (Verdict::Refused, other) => Err(format!("it must be refused, and answered {other:?}")),
        (Verdict::Open, Outcome::Invalid(faults)) => {
            let stray = faults
                .iter()
                .find(|(field, reason)| !is_at(field, path) && !is_relative(field, reason, path));
            stray.map_or(Ok(()), |stray| Err(format!("{path} is wrong, and {stray:?} named")))
        }
        (Verdict::Open, Outcome::Ok | Outcome::Other(_)) => Ok(()),
    }
}

/// Whether a violation is at a path, or at a part of what is there.
fn is_at(field: &str, path: &str) -> bool {
    field.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Faults that stand elsewhere than where the value was changed.
fn is_relative(field: &str, reason: &str, path: &str) -> bool {
    match reason {
        // A contact lacks both addresses, or an update all its fields.
        "UNREACHABLE" => path.starts_with("contact") || path == "update_mask",
        "NOTHING_TO_UPDATE" => field == "update_mask",
        // A mask may name fields that the example lacks.
        "NOT_BLANK" | "ENUM_NOT_IN" => path == "update_mask",
        // A time is one value, however it is encoded.
        "TIMESTAMP" => {
            path.strip_prefix(field).is_some_and(|part| [".seconds", ".nanos"].contains(&part))
        }
        _ => false,
    }
}
