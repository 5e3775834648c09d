//! Tokens that nobody would issue, made of a valid one as `tokens.json` says.

use std::cell::Cell;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use aws_lc_rs::{hmac, rsa};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use crm_testing::server;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::door::Kind;
use crate::world::Inhabited;

/// One line of the corpus.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mutation {
    pub(crate) name: String,
    pub(crate) why: String,
    #[serde(default)]
    header: Edit,
    #[serde(default)]
    claims: Edit,
    #[serde(default)]
    signed: Signed,
    /// What is made of header, payload and signature.
    #[serde(default = "compact")]
    token: String,
    /// The lines of `authorization`; `{t}` is the token.
    #[serde(default = "bearer")]
    authorization: Vec<String>,
    /// How long the token is made, with white space in its JSON.
    length: Option<usize>,
    /// Whom it is for; everyone, unless it says so.
    #[serde(default)]
    only: Vec<Kind>,
    /// What it is answered.
    pub(crate) answer: String,
}

/// What becomes of a JSON object.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Edit {
    /// Members with values that JSON has.
    #[serde(default)]
    set: Map<String, Value>,
    /// Members with values as they are written.
    #[serde(default)]
    raw: Map<String, Value>,
    #[serde(default)]
    drop: Vec<String>,
    /// Texts before and behind the members, and before and behind the object.
    #[serde(default)]
    first: String,
    #[serde(default)]
    last: String,
    #[serde(default)]
    before: String,
    #[serde(default)]
    after: String,
    /// This, and no object.
    text: Option<String>,
    #[serde(default)]
    encoding: Encoding,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Encoding {
    #[default]
    Base64Url,
    /// With `=` at its end.
    Padded,
    /// With `+` and `/`.
    Standard,
    /// With bits at its end that decode to nothing.
    TrailingBits,
    /// Not encoded.
    Plain,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Signed {
    #[default]
    Right,
    BeforeTheChange,
    ByAnotherKey,
    Hs256WithThePublicKey,
    Hs256WithThePublishedKey,
    Es256,
    Rs256,
}

fn compact() -> String {
    "{h}.{p}.{s}".to_owned()
}

fn bearer() -> Vec<String> {
    vec!["Bearer {t}".to_owned()]
}

impl Mutation {
    pub(crate) fn concerns(&self, kind: Kind) -> bool {
        self.only.is_empty() || self.only.contains(&kind)
    }

    pub(crate) fn authorization(&self, token: &str) -> Vec<Vec<u8>> {
        let lines = self.authorization.iter().map(|line| line.replace("{t}", token));
        lines.map(|line| bytes(&line)).collect()
    }
}

/// Text as bytes. U+E0FF stands for the byte 0xff, which no text has.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for letter in text.chars() {
        match letter {
            '\u{e0ff}' => bytes.push(0xff),
            _ => bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// Has the key that signs tokens here, and others.
pub(crate) struct Forge {
    kid: String,
    key: Ed25519KeyPair,
    other: Ed25519KeyPair,
    es256: EcdsaKeyPair,
    rs256: RsaKeyPair,
    tenant: String,
    /// All times of one token are told from here.
    now: Cell<i64>,
}

impl Forge {
    pub(crate) async fn new(home: &Inhabited) -> Self {
        let (kid, pkcs8) = server().signing_key().await;
        let es256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self {
            kid,
            key: Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8).unwrap(),
            other: Ed25519KeyPair::generate().unwrap(),
            es256,
            rs256: rsa::KeyPair::generate(KeySize::Rsa2048).unwrap(),
            tenant: home.tenant.id.to_string(),
            now: Cell::default(),
        }
    }

    fn header(&self) -> Map<String, Value> {
        object(json!({"alg": "EdDSA", "typ": "at+jwt", "kid": self.kid}))
    }

    /// The claims of a right caller.
    fn claims(&self, kind: Kind) -> Map<String, Value> {
        let now = self.now.get();
        let id = || server().clock.new_id().to_string();
        let mut claims = object(json!({
            "iss": "crm", "aud": audience(kind), "sub": format!("serviceAccounts/{}", id()),
            "iat": now, "nbf": now, "exp": now + 900, "jti": id(), "roles": [role(kind)],
        }));
        match kind {
            Kind::Tenant => claims.extend(object(json!({"tid": self.tenant, "gen": 1, "ver": 1}))),
            Kind::Platform => {}
            Kind::Internal => drop(claims.insert("sub".to_owned(), json!("services/contacts"))),
        }
        claims
    }

    /// The token that a mutation makes, and the one that it makes it of.
    pub(crate) fn tokens(&self, mutation: &Mutation, kind: Kind) -> (String, String) {
        self.now.set(server().clock.now().timestamp());
        let claims = self.claims(kind);
        let twin = self.part(&Edit::default(), self.header(), kind, 0);
        let twin = format!("{twin}.{}", self.part(&Edit::default(), claims.clone(), kind, 0));
        let signature = self.sign(Signed::Right, &twin);
        let right = format!("{twin}.{signature}");
        let Some(length) = mutation.length else {
            return (self.mutate(mutation, &claims, kind, &right, (0, 0)), right);
        };
        // Base64 skips every fourth length: white space in the header makes up
        // for that.
        let short = self.mutate(mutation, &claims, kind, &right, (0, 0)).len();
        let about = (length - short) * 3 / 4;
        let spaces = (0..4).flat_map(|header| (about - 8..about + 8).map(move |p| (header, p)));
        let long = spaces
            .map(|spaces| self.mutate(mutation, &claims, kind, &right, spaces))
            .find(|token| token.len() == length);
        (long.unwrap(), right)
    }

    fn mutate(
        &self,
        mutation: &Mutation,
        claims: &Map<String, Value>,
        kind: Kind,
        right: &str,
        spaces: (usize, usize),
    ) -> String {
        let header = self.part(&mutation.header, self.header(), kind, spaces.0);
        let payload = self.part(&mutation.claims, claims.clone(), kind, spaces.1);
        let message = format!("{header}.{payload}");
        let (unchanged, _) = right.rsplit_once('.').unwrap();
        let is_late = mutation.signed == Signed::BeforeTheChange;
        let signature = self.sign(mutation.signed, if is_late { unchanged } else { &message });
        let another = self.sign(Signed::Right, &format!("{message}x"));
        let raw = URL_SAFE_NO_PAD.decode(&signature).unwrap();
        let flipped: Vec<_> = raw.iter().enumerate().map(|(i, b)| b ^ u8::from(i == 10)).collect();
        mutation
            .token
            .replace("{h}", &header)
            .replace("{p}", &payload)
            .replace("{s}", &signature)
            .replace("{s:first half}", &signature[..signature.len() / 2])
            .replace("{s:without its last}", &signature[..signature.len() - 1])
            .replace("{s:a bit flipped}", &URL_SAFE_NO_PAD.encode(flipped))
            .replace("{s:of another token}", &another)
            .replace("{s:trailing bits}", &trailing_bits(&signature))
            .replace("{s:of zeros}", &URL_SAFE_NO_PAD.encode([0; 64]))
            .replace("{s:hex}", &raw.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    fn part(&self, edit: &Edit, mut members: Map<String, Value>, kind: Kind, n: usize) -> String {
        for name in &edit.drop {
            members.remove(name);
        }
        members.extend(edit.set.clone());
        let mut written: Map<String, Value> = members;
        written.extend(edit.raw.clone());
        let written: Vec<_> = written
            .iter()
            .map(|(name, value)| match edit.raw.get(name) {
                Some(raw) => format!("\"{name}\":{}", raw.as_str().unwrap()),
                None => format!("\"{name}\":{value}"),
            })
            .collect();
        let Edit { before, first, last, after, .. } = edit;
        let spaces = " ".repeat(n);
        let text = format!("{before}{{{first}{}{last}{spaces}}}{after}", written.join(","));
        let mut text = bytes(&self.fill(edit.text.as_ref().unwrap_or(&text), kind));
        if matches!(edit.encoding, Encoding::Padded | Encoding::TrailingBits) {
            while text.len() % 3 != 1 {
                text.insert(1, b' ');
            }
        }
        let encoded = URL_SAFE_NO_PAD.encode(&text);
        match edit.encoding {
            Encoding::Base64Url => encoded,
            Encoding::Plain => String::from_utf8(text).unwrap(),
            Encoding::Padded => URL_SAFE.encode(text),
            Encoding::TrailingBits => trailing_bits(&encoded),
            Encoding::Standard => {
                assert_ne!(STANDARD_NO_PAD.encode(&text), encoded, "there is nothing to see");
                STANDARD_NO_PAD.encode(text)
            }
        }
    }

    /// Puts values into the places that the corpus leaves for them.
    fn fill(&self, text: &str, kind: Kind) -> String {
        let other = URL_SAFE_NO_PAD.encode(self.other.public_key().as_ref());
        let mut text = text
            .replace("$other_audience", if kind == Kind::Internal { "crm" } else { "crm-internal" })
            .replace("$audience", audience(kind))
            .replace("$role", role(kind))
            .replace("$kid", &self.kid)
            .replace("$TID", &self.tenant.to_uppercase())
            .replace("$tid", &self.tenant)
            .replace("$uuid", &server().clock.new_id().to_string())
            .replace("$x", &other);
        while let Some((before, after)) = text.split_once("$now") {
            let end = after.find(|c: char| !"+-0123456789".contains(c)).unwrap_or(after.len());
            let (offset, rest) = after.split_at(end);
            let offset: i64 = if offset.is_empty() { 0 } else { offset.parse().unwrap() };
            text = format!("{before}{}{rest}", self.now.get() + offset);
        }
        text
    }

    fn sign(&self, signed: Signed, message: &str) -> String {
        let message = message.as_bytes();
        let hs256 = |secret: &[u8]| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
        };
        let random = SystemRandom::new();
        let public = self.key.public_key().as_ref();
        let signature = match signed {
            Signed::Right | Signed::BeforeTheChange => self.key.sign(message).as_ref().to_vec(),
            Signed::ByAnotherKey => self.other.sign(message).as_ref().to_vec(),
            Signed::Hs256WithThePublicKey => hs256(public),
            Signed::Hs256WithThePublishedKey => hs256(URL_SAFE_NO_PAD.encode(public).as_bytes()),
            Signed::Es256 => self.es256.sign(&random, message).unwrap().as_ref().to_vec(),
            Signed::Rs256 => {
                let mut signature = vec![0; self.rs256.public_modulus_len()];
                self.rs256.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
        };
        URL_SAFE_NO_PAD.encode(signature)
    }
}

fn audience(kind: Kind) -> &'static str {
    if kind == Kind::Internal { "crm-internal" } else { "crm" }
}

fn role(kind: Kind) -> &'static str {
    match kind {
        Kind::Tenant => "roles/user",
        Kind::Platform => "roles/platform.operator",
        Kind::Internal => "roles/internal.service",
    }
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// The same bytes, in a form that base64 has no need of: the last letter has
/// bits that are not used.
fn trailing_bits(encoded: &str) -> String {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = encoded.split_at(encoded.len() - 1);
    let next = LETTERS.find(last).unwrap() + 1;
    format!("{rest}{}", &LETTERS[next..=next])
}
