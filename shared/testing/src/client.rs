//! Clients with a token, and what errors say.

use std::net::SocketAddr;
use std::time::Duration;

use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::channel::Channel;

/// A caller with a token.
#[derive(Clone)]
pub struct Client {
    token: String,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// A caller with this token.
    pub fn new(token: impl Into<String>) -> Self {
        Self { token: token.into() }
    }

    /// A new connection.
    pub fn channel(&self, address: SocketAddr) -> Channel {
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy().into()
    }

    /// A request with the token.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // A test says what is right, not how fast a busy machine is.
        request.set_timeout(Duration::from_secs(30));
        let bearer = format!("Bearer {}", self.token);
        request.metadata_mut().insert("authorization", bearer.parse().unwrap());
        request
    }
}

/// The reason of an error.
pub fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("{status:?} has no ErrorInfo"));
    assert_eq!(info.domain, "crm");
    info.reason.clone()
}

/// The code and the reason of an error.
pub fn code_and_reason<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.unwrap_err();
    (status.code(), reason(&status))
}

/// The fields that an error names, each with its reason.
pub fn field_faults<T: std::fmt::Debug>(outcome: Result<T, Status>) -> Vec<(String, String)> {
    let status = outcome.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::InvalidArgument, "INVALID_FIELDS")
    );
    let details = status.get_error_details();
    let faults = &details.bad_request().unwrap().field_violations;
    faults.iter().map(|fault| (fault.field.clone(), fault.reason.clone())).collect()
}
