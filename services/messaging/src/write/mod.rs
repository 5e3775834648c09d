//! Writes of conversations and messages.

mod store;

use crm_service::repeat::RequestKey;

pub(crate) use store::write_once;

/// A write that may be repeated: its method, its caller and its request.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) method: &'static str,
    pub(crate) actor: String,
    pub(crate) key: RequestKey,
}

/// A resource as the change log has it: its public message without revision
/// and etag, and the revision.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) after: Vec<u8>,
    pub(crate) revision: i64,
}
