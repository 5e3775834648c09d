//! Writes that may be repeated (AIP-155).

use aws_lc_rs::digest;
use prost::Message;
use uuid::Uuid;

/// What tells a repeated request from another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// The request_id. `None`: the caller gave none, and each call counts.
    pub id: Option<Uuid>,
    /// SHA-256 of the request without its request_id.
    pub hash: Vec<u8>,
}

impl RequestKey {
    /// The key of a request: its request_id, and itself without it.
    ///
    /// A request_id that is no UUID is left to the field's own rules.
    pub fn new(request_id: &str, anonymous: &impl Message) -> Self {
        let hash = digest::digest(&digest::SHA256, &anonymous.encode_to_vec());
        Self { id: Uuid::try_parse(request_id).ok(), hash: hash.as_ref().to_vec() }
    }
}
