//! Verification of access tokens.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crm_clock::Clock;
use crm_proto::identity::v1::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey};
use moka::sync::Cache;
use serde::Deserialize;

use crate::claims::{Audience, Claims};
use crate::context::Caller;

/// How far the clocks of two machines may differ.
const LEEWAY_SECONDS: i64 = 5;
/// The longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 4096;
/// How many verified tokens are kept.
const CACHED_TOKENS: u64 = 100_000;

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token of this kind.
    #[error("the token is malformed")]
    Malformed,
    /// It is signed with a key that is not known.
    #[error("the token's key is unknown")]
    UnknownKey,
    /// Its signature is wrong.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// A claim is missing, of a wrong type, or does not fit the others.
    #[error("the token's claim {0} is wrong")]
    BadClaim(&'static str),
    /// It is meant for another audience.
    #[error("the token is meant for another audience")]
    WrongAudience,
    /// It is not valid yet.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// It has expired.
    #[error("the token has expired")]
    Expired,
}

/// A published key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("key {kid} is not a usable Ed25519 key")]
pub struct KeyError {
    kid: String,
}

/// The only header that is accepted; any other member, `jku` or `crit` among
/// them, is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

/// A token that was verified: its key and times still have to hold.
#[derive(Debug)]
struct Verified {
    kid: String,
    claims: Claims,
    caller: Arc<Caller>,
}

/// Verifies tokens for one audience with the keys that it was last given.
/// Clones share keys and cache.
#[derive(Clone)]
pub struct Verifier {
    audience: Audience,
    clock: Clock,
    keys: Arc<RwLock<HashMap<String, DecodingKey>>>,
    cache: Cache<[u8; 32], Arc<Verified>>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("audience", &self.audience).finish_non_exhaustive()
    }
}

impl Verifier {
    /// A verifier without keys: it refuses every token.
    pub fn new(audience: Audience, clock: Clock) -> Self {
        let cache = Cache::builder()
            .max_capacity(CACHED_TOKENS)
            .time_to_live(crate::LIFETIME + Duration::from_secs(60))
            .build();
        Self { audience, clock, keys: Arc::default(), cache }
    }

    /// Replaces the keys. Tokens of keys that are gone are refused at once.
    ///
    /// # Errors
    ///
    /// Names the first key that is no Ed25519 key; then nothing is replaced.
    pub fn set_keys(&self, published: &[Jwk]) -> Result<(), KeyError> {
        let mut keys = HashMap::new();
        for key in published {
            let unusable = || KeyError { kid: key.kid.clone() };
            if (key.kty.as_str(), key.crv.as_str()) != ("OKP", "Ed25519") {
                return Err(unusable());
            }
            let decoded = DecodingKey::from_ed_components(&key.x).map_err(|_| unusable())?;
            keys.insert(key.kid.clone(), decoded);
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// Who the bearer of a token is.
    ///
    /// # Errors
    ///
    /// Why the token is refused.
    pub(crate) fn verify(&self, token: &str) -> Result<Arc<Caller>, TokenError> {
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        let verified = match self.cache.get(&fingerprint) {
            Some(verified) if self.knows(&verified.kid) => verified,
            Some(_) => return Err(TokenError::UnknownKey),
            None => {
                let verified = Arc::new(self.verify_signature(token)?);
                self.cache.insert(fingerprint, verified.clone());
                verified
            }
        };
        self.check_time(&verified.claims)?;
        Ok(verified.caller.clone())
    }

    fn knows(&self, kid: &str) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).contains_key(kid)
    }

    fn verify_signature(&self, token: &str) -> Result<Verified, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = decode_json(header).ok_or(TokenError::Malformed)?;
        if header.alg != "EdDSA" || header.typ != "at+jwt" {
            return Err(TokenError::Malformed);
        }
        let key = self
            .keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&header.kid)
            .cloned()
            .ok_or(TokenError::UnknownKey)?;
        let message = message.as_bytes();
        match jsonwebtoken::crypto::verify(signature, message, &key, Algorithm::EdDSA) {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(TokenError::BadSignature),
        }
        let claims: Claims = decode_json(payload).ok_or(TokenError::BadClaim("set"))?;
        if claims.aud != self.audience && !cfg!(bug_audience_unchecked) {
            return Err(TokenError::WrongAudience);
        }
        if let Some(claim) = claims.fault() {
            return Err(TokenError::BadClaim(claim));
        }
        let caller = Arc::new(Caller::new(&claims));
        Ok(Verified { kid: header.kid, claims, caller })
    }

    fn check_time(&self, claims: &Claims) -> Result<(), TokenError> {
        let now = self.clock.now().timestamp();
        if claims.exp <= now && !cfg!(bug_expiry_unchecked) {
            return Err(TokenError::Expired);
        }
        if claims.nbf > now + LEEWAY_SECONDS || claims.iat > now + LEEWAY_SECONDS {
            return Err(TokenError::NotYetValid);
        }
        Ok(())
    }
}

fn decode_json<T: for<'de> Deserialize<'de>>(part: &str) -> Option<T> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&bytes).ok()
}
