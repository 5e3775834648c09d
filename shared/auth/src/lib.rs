//! Who calls, for which tenant, and whether the method's rule allows it.
//!
//! [`AuthLayer`] stands before every handler. It verifies the token, compares
//! it with the rule that the method declares in its proto, and hands a
//! context to the handler. A context can be made nowhere else: that is how a
//! handler knows that its caller was checked.
//!
//! To add a permission: a value in `crm.options.v1.Permission`, the roles that
//! grant it in `roles.rs`, and the rule of the methods that need it.

mod claims;
mod context;
mod layer;
mod roles;
mod sign;
mod verify;

pub use claims::{Audience, Claims, ISSUER, LIFETIME, TenantClaims};
pub use context::{Context, PlatformContext, ServiceContext, TenantContext, TenantId};
pub use layer::{Auth, AuthLayer};
pub use roles::{INTERNAL_SERVICE, PLATFORM_OPERATOR, TENANT_ADMIN, built_in_roles};
pub use sign::SigningKey;
pub use verify::{KeyError, TokenError, Verifier};
