//! How every handler begins: [`open`] takes a request apart.

use crm_auth::Context;
use crm_error::{ApiError, Violations};
use crm_proto::validate::{Path, Validate};
use tonic::Request;

/// The caller's context, the message, and what its field rules found wrong.
///
/// The violations are not an error yet: the handler adds those of its domain
/// and answers all of them at once, with [`settle`].
///
/// # Errors
///
/// INTERNAL where the auth layer did not run: then nothing may be done.
pub fn open<C: Context, T: Validate>(request: Request<T>) -> Result<(C, T, Violations), ApiError> {
    let context = request
        .extensions()
        .get::<C>()
        .cloned()
        .ok_or_else(|| ApiError::internal("a guarded handler was reached without a context"))?;
    let (message, violations) = open_public(request);
    Ok((context, message, violations))
}

/// As [`open`], for a public method.
pub fn open_public<T: Validate>(request: Request<T>) -> (T, Violations) {
    let message = request.into_inner();
    let mut violations = Violations::default();
    message.validate(&Path::Root, &mut violations);
    (message, violations)
}

/// Goes on only with a request that has no fault, and with the value that was
/// made of it.
///
/// # Errors
///
/// INVALID_FIELDS with all violations; INTERNAL where there are none and yet
/// no value.
pub fn settle<T>(value: Option<T>, violations: Violations) -> Result<T, ApiError> {
    if !violations.is_empty() {
        return Err(ApiError::invalid(violations));
    }
    value.ok_or_else(|| ApiError::internal("a request was refused without a violation"))
}
