//! Signing of access tokens.

use std::fmt;

use aws_lc_rs::error::{KeyRejected, Unspecified};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crm_proto::identity::v1::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};

use crate::claims::Claims;

/// A private key that signs tokens (Ed25519, RFC 8037).
pub struct SigningKey {
    kid: String,
    public: String,
    key: EncodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Makes a new private key, as PKCS#8.
    ///
    /// # Errors
    ///
    /// When the machine has no random numbers.
    pub fn generate() -> Result<Vec<u8>, Unspecified> {
        let pair = Ed25519KeyPair::generate()?;
        Ok(pair.to_pkcs8v1()?.as_ref().to_vec())
    }

    /// Takes a private key, as PKCS#8.
    ///
    /// # Errors
    ///
    /// When it is no Ed25519 key.
    pub fn from_pkcs8(kid: impl Into<String>, pkcs8: &[u8]) -> Result<Self, KeyRejected> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)?;
        let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        Ok(Self { kid: kid.into(), public, key: EncodingKey::from_ed_der(pkcs8) })
    }

    /// The public half, as it is published.
    pub fn jwk(&self) -> Jwk {
        Jwk {
            kty: "OKP".to_owned(),
            crv: "Ed25519".to_owned(),
            kid: self.kid.clone(),
            alg: "EdDSA".to_owned(),
            r#use: "sig".to_owned(),
            x: self.public.clone(),
        }
    }

    /// A token with these claims.
    ///
    /// # Errors
    ///
    /// When the key cannot sign.
    pub fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        let header = Header {
            typ: Some("at+jwt".to_owned()),
            kid: Some(self.kid.clone()),
            ..Header::new(Algorithm::EdDSA)
        };
        jsonwebtoken::encode(&header, claims, &self.key)
    }
}
