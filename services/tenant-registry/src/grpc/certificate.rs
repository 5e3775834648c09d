//! Whose certificate came with a call.

use crm_auth::ServiceContext;
use crm_error::{ApiError, ErrorReason};
use tonic::transport::CertificateDer;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Status};
use webpki::EndEntityCert;

/// Where calls come over TLS: the certificate's name is that of the service
/// that the token is for, so that neither is of use without the other.
///
/// # Errors
///
/// PERMISSION_MISSING where it is another's.
pub(crate) fn certificate_fits(call: Request<()>) -> Result<Request<()>, Status> {
    let extensions = call.extensions();
    let Some(connection) = extensions.get::<TlsConnectInfo<TcpConnectInfo>>() else {
        return Ok(call);
    };
    let certificates = connection.peer_certs();
    let certificate = certificates.as_ref().and_then(|certificates| certificates.first());
    let service = extensions.get::<ServiceContext>().map(ServiceContext::service);
    match (certificate, service) {
        (Some(certificate), Some(service)) if names(certificate, service) => Ok(call),
        _ => {
            let error = "the client's certificate is not that of the service";
            Err(ApiError::new(ErrorReason::PermissionMissing, error).into())
        }
    }
}

/// Whether a certificate has this DNS name, as it stands.
fn names(certificate: &CertificateDer<'_>, service: &str) -> bool {
    let certificate = EndEntityCert::try_from(certificate);
    certificate.is_ok_and(|certificate| certificate.valid_dns_names().any(|name| name == service))
}
