//! What a handler learns of its caller. Only this crate makes these.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use crm_error::{ApiError, ErrorReason};
use crm_proto::options::v1::{Permission, Scope};
use uuid::Uuid;

use crate::claims::{Claims, TenantClaims};
use crate::roles::Permissions;

/// A verified tenant: there is no way to make one from text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TenantId(Uuid);

impl TenantId {
    /// The tenant's id, for names and logs.
    pub fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

/// What a verified token stands for.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) subject: Arc<str>,
    pub(crate) tenant: Option<TenantClaims>,
    pub(crate) scope: Scope,
    pub(crate) permissions: Permissions,
    pub(crate) expire_time: DateTime<Utc>,
}

impl Caller {
    pub(crate) fn new(claims: &Claims) -> Self {
        let scope = match (claims.aud, claims.tid) {
            (crate::Audience::Internal, _) => Scope::Internal,
            (crate::Audience::Public, Some(_)) => Scope::Tenant,
            (crate::Audience::Public, None) => Scope::Platform,
        };
        Self {
            subject: claims.sub.as_str().into(),
            tenant: claims.tenant(),
            scope,
            permissions: Permissions::of(&claims.roles),
            expire_time: DateTime::from_timestamp(claims.exp, 0).unwrap_or_default(),
        }
    }
}

/// A context that the auth layer puts into a request.
pub trait Context: Clone + Send + Sync + 'static {}

/// A caller within a tenant.
#[derive(Clone, Debug)]
pub struct TenantContext {
    tenant: TenantClaims,
    subject: Arc<str>,
    permissions: Permissions,
}

/// A caller of the platform's own methods.
#[derive(Clone, Debug)]
pub struct PlatformContext {
    subject: Arc<str>,
}

/// A service of this suite.
#[derive(Clone, Debug)]
pub struct ServiceContext {
    subject: Arc<str>,
    expire_time: DateTime<Utc>,
}

impl Context for TenantContext {}
impl Context for PlatformContext {}
impl Context for ServiceContext {}

impl TenantContext {
    pub(crate) fn new(caller: &Caller, tenant: TenantClaims) -> Self {
        Self { tenant, subject: caller.subject.clone(), permissions: caller.permissions }
    }

    /// The caller's tenant.
    pub fn tenant(&self) -> TenantId {
        TenantId(self.tenant.tid)
    }

    /// The tenant's generation and access version that the token was issued
    /// for.
    pub fn tenant_claims(&self) -> TenantClaims {
        self.tenant
    }

    /// The caller: `users/{uuid}` or `serviceAccounts/{uuid}`.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Demands a permission beyond those of the method's rule.
    ///
    /// # Errors
    ///
    /// PERMISSION_MISSING where the caller's roles do not grant it.
    pub fn demand(&self, permission: Permission) -> Result<(), ApiError> {
        if self.permissions.has(permission) { Ok(()) } else { Err(permission_missing(permission)) }
    }
}

impl PlatformContext {
    pub(crate) fn new(caller: &Caller) -> Self {
        Self { subject: caller.subject.clone() }
    }

    /// The caller: `serviceAccounts/{uuid}`.
    pub fn subject(&self) -> &str {
        &self.subject
    }
}

impl ServiceContext {
    pub(crate) fn new(caller: &Caller) -> Self {
        Self { subject: caller.subject.clone(), expire_time: caller.expire_time }
    }

    /// When the caller's token expires: no stream goes on after that.
    pub fn expire_time(&self) -> DateTime<Utc> {
        self.expire_time
    }

    /// The calling service's name, such as `contacts`.
    pub fn service(&self) -> &str {
        self.subject.strip_prefix("services/").unwrap_or(&self.subject)
    }
}

pub(crate) fn permission_missing(permission: Permission) -> ApiError {
    let name = permission.as_str_name();
    ApiError::new(ErrorReason::PermissionMissing, "the caller's roles do not allow this")
        .with_metadata("permission", name.strip_prefix("PERMISSION_").unwrap_or(name))
}
