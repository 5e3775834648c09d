//! What an access token says: RFC 7519 claims in the profile of RFC 9068.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

/// The issuer of every token.
pub const ISSUER: &str = "crm";

/// How long a token lives.
pub const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// The most roles that a token may name.
const MAX_ROLES: usize = 32;

/// Whom a token is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Audience {
    /// The public methods' servers.
    #[serde(rename = "crm")]
    Public,
    /// The internal methods' servers.
    #[serde(rename = "crm-internal")]
    Internal,
}

/// The claims of an access token. Unknown and repeated members are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The issuer.
    pub iss: String,
    /// Whom the token is meant for.
    pub aud: Audience,
    /// Who calls: `users/{uuid}`, `serviceAccounts/{uuid}` or
    /// `services/{service}`.
    pub sub: String,
    /// When it was issued, in seconds since 1970.
    pub iat: i64,
    /// From when on it is valid.
    pub nbf: i64,
    /// Until when it is valid.
    pub exp: i64,
    /// The token's own id.
    #[serde(deserialize_with = "id")]
    pub jti: Uuid,
    /// The caller's roles.
    pub roles: Vec<String>,
    /// The tenant. Together with `gen` and `ver`, or not at all.
    #[serde(default, deserialize_with = "present_id", skip_serializing_if = "Option::is_none")]
    pub tid: Option<Uuid>,
    /// The tenant's generation.
    #[serde(
        default,
        rename = "gen",
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub generation: Option<u32>,
    /// The tenant's access version.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub ver: Option<u64>,
    /// The login session of a user.
    #[serde(default, deserialize_with = "present_id", skip_serializing_if = "Option::is_none")]
    pub sid: Option<Uuid>,
}

/// The three claims of a tenant token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantClaims {
    /// The tenant.
    pub tid: Uuid,
    /// Its generation.
    pub generation: u32,
    /// Its access version.
    pub ver: u64,
}

/// A member that is there has a value: `null` is refused.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    input: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(input).map(Some)
}

fn id<'de, D: Deserializer<'de>>(input: D) -> Result<Uuid, D::Error> {
    let text = String::deserialize(input)?;
    parse_id(&text).ok_or_else(|| D::Error::custom("not an id"))
}

fn present_id<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Uuid>, D::Error> {
    id(input).map(Some)
}

impl Claims {
    /// The tenant's claims, if this is a tenant token.
    pub fn tenant(&self) -> Option<TenantClaims> {
        Some(TenantClaims { tid: self.tid?, generation: self.generation?, ver: self.ver? })
    }

    /// The first claim that does not fit the others, whatever the time.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let (kind, id) = self.sub.split_once('/').unwrap_or_default();
        let tenant = [self.tid.is_some(), self.generation.is_some(), self.ver.is_some()];
        let is_uuid = |id| parse_id(id).is_some();
        let lifetime = self.exp.checked_sub(self.iat).unwrap_or_default();
        let subject_fits = match (kind, self.aud) {
            ("users", Audience::Public) => is_uuid(id) && self.tid.is_some(),
            ("serviceAccounts", Audience::Public) => is_uuid(id),
            ("services", Audience::Internal) => is_service(id) && self.tid.is_none(),
            _ => false,
        };
        let checks = [
            (self.iss == ISSUER, "iss"),
            (subject_fits, "sub"),
            (tenant == [true; 3] || tenant == [false; 3], "tid"),
            (self.sid.is_some() == (kind == "users"), "sid"),
            (!self.roles.is_empty() && self.roles.len() <= MAX_ROLES, "roles"),
            (self.roles.iter().all(|role| (1..=64).contains(&role.len())), "roles"),
            (self.iat >= 0 && self.nbf >= 0, "iat"),
            ((1..=LIFETIME.as_secs() as i64).contains(&lifetime), "exp"),
        ];
        checks.into_iter().find(|(fits, _)| !fits).map(|(_, claim)| claim)
    }
}

/// Ids have one form, the lower-case one with hyphens: whoever compares them as
/// texts, in a log or at a gateway, sees one id where there is one.
pub(crate) fn parse_id(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok().filter(|id| id.as_hyphenated().to_string() == text)
}

fn is_service(text: &str) -> bool {
    (1..=20).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}
