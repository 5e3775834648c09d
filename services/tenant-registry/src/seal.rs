//! Secrets at rest (AES-256-GCM) and on their way to PostgreSQL (SCRAM).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{digest, hmac, pbkdf2, rand};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};

/// Two hundred and fifty-six bits, for keys and passwords alike.
const SECRET_BYTES: usize = 32;
/// Iterations protect passwords that people choose. Ours are random, and each
/// connection pays for an iteration.
const SCRAM_ITERATIONS: u32 = 1;

/// Sealing failed, or what was opened was not sealed here and for this.
#[derive(Debug, thiserror::Error)]
#[error("a sealed secret cannot be used: {0}")]
pub struct SealError(&'static str);

impl From<Unspecified> for SealError {
    fn from(_: Unspecified) -> Self {
        Self("the key does not fit, or it was changed")
    }
}

/// The key that seals the secrets of the registry's database.
#[derive(Clone)]
pub struct MasterKey(Arc<RandomizedNonceKey>);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey")
    }
}

impl MasterKey {
    /// Reads a key from its text: 32 bytes, base64url without padding.
    ///
    /// # Errors
    ///
    /// When it is anything else.
    pub fn parse(text: &SecretString) -> Result<Self, SealError> {
        let bytes = URL_SAFE_NO_PAD
            .decode(text.expose_secret().trim())
            .map_err(|_| SealError("the master key is not base64url"))?;
        if bytes.len() != SECRET_BYTES {
            return Err(SealError("the master key has not 32 bytes"));
        }
        Ok(Self(Arc::new(RandomizedNonceKey::new(&AES_256_GCM, &bytes)?)))
    }

    /// Seals a secret. `purpose` names what it is for; only with the same
    /// purpose can it be opened again.
    pub(crate) fn seal(&self, purpose: &str, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut sealed = secret.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        let nonce = self.0.seal_in_place_append_tag(aad, &mut sealed)?;
        sealed.extend_from_slice(nonce.as_ref());
        Ok(sealed)
    }

    /// Opens what was sealed for this purpose.
    ///
    /// # Errors
    ///
    /// When it was not sealed with this key and for this.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let split = sealed.len().checked_sub(NONCE_LEN).ok_or(SealError("it is too short"))?;
        let (text, nonce) = sealed.split_at(split);
        let nonce = Nonce::try_assume_unique_for_key(nonce)?;
        let mut text = text.to_vec();
        let opened = self.0.open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut text)?;
        Ok(opened.to_vec())
    }

    /// As [`MasterKey::open`], for a secret that is text.
    pub(crate) fn open_text(
        &self,
        purpose: &str,
        sealed: &[u8],
    ) -> Result<SecretString, SealError> {
        let bytes = self.open(purpose, sealed)?;
        let text = String::from_utf8(bytes).map_err(|_| SealError("it is not text"))?;
        Ok(text.into())
    }
}

/// A new secret: 256 random bits, base64url without padding.
///
/// # Errors
///
/// When the machine has no random numbers.
pub fn new_secret() -> Result<SecretString, SealError> {
    let mut bytes = [0; SECRET_BYTES];
    rand::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes).into())
}

/// What is stored of a secret that only has to be recognized.
pub(crate) fn fingerprint(secret: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, secret.as_bytes()).as_ref().to_vec()
}

/// What PostgreSQL stores of a password (RFC 5803), so that the password
/// itself is never sent.
///
/// # Errors
///
/// When the machine has no random numbers.
pub fn scram_verifier(password: &SecretString) -> Result<String, SealError> {
    let mut salt = [0; 16];
    rand::fill(&mut salt)?;
    salted_verifier(password, &salt)
}

/// Whether the verifier with this salt (base64) and digest (SHA-256) is one that
/// [`scram_verifier`] made of a password.
pub(crate) fn is_verifier_of(password: &SecretString, salt: &str, digest: &[u8]) -> bool {
    let Ok(salt) = STANDARD.decode(salt) else { return false };
    salted_verifier(password, &salt).is_ok_and(|verifier| fingerprint(&verifier) == digest)
}

fn salted_verifier(password: &SecretString, salt: &[u8]) -> Result<String, SealError> {
    let iterations =
        std::num::NonZeroU32::new(SCRAM_ITERATIONS).ok_or(SealError("at least one iteration"))?;
    let mut salted = [0; 32];
    let password = password.expose_secret().as_bytes();
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password, &mut salted);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let client_key = hmac::sign(&key, b"Client Key");
    let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
    let server_key = hmac::sign(&key, b"Server Key");
    Ok(format!(
        "SCRAM-SHA-256${SCRAM_ITERATIONS}:{}${}:{}",
        STANDARD.encode(salt),
        STANDARD.encode(stored_key),
        STANDARD.encode(server_key)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> MasterKey {
        MasterKey::parse(&new_secret().unwrap()).unwrap()
    }

    #[test]
    fn a_sealed_secret_opens_only_with_its_key_and_purpose() {
        let key = key();

        let sealed = key.seal("login a", b"secret").unwrap();

        assert_eq!(key.open("login a", &sealed).unwrap(), b"secret");
        assert!(key.open("login b", &sealed).is_err());
        assert!(self::key().open("login a", &sealed).is_err());
        assert!(key.open("login a", &sealed[..8]).is_err());
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
    }

    #[test]
    fn a_verifier_is_known_by_its_salt_and_digest() {
        let (password, other) = (new_secret().unwrap(), new_secret().unwrap());

        let verifier = scram_verifier(&password).unwrap();

        let salt = verifier.split([':', '$']).nth(2).unwrap();
        let digest = fingerprint(&verifier);
        assert!(is_verifier_of(&password, salt, &digest));
        assert!(!is_verifier_of(&other, salt, &digest));
        assert!(!is_verifier_of(&password, "AAAA", &digest));
        assert!(!is_verifier_of(&password, "no base64", &digest));
        assert!(!is_verifier_of(&password, salt, &fingerprint(&verifier[1..])));
    }

    #[test]
    fn a_master_key_has_one_form_and_never_shows() {
        assert!(MasterKey::parse(&"short".to_owned().into()).is_err());
        assert!(MasterKey::parse(&"not base64!".to_owned().into()).is_err());
        assert_eq!(format!("{:?}", key()), "MasterKey");
    }
}
