//! Mutual TLS between the processes of the suite.

use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// What is agreed on in the handshake (RFC 9113, section 3.2).
const HTTP2: &[u8] = b"h2";

/// Reads certificates from a file, as a value of an option.
///
/// # Errors
///
/// Says why the file cannot be used.
pub fn pem_file(path: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return Err("it holds no certificate in PEM".to_owned());
    }
    Ok(text)
}

/// A server's side of the handshake.
#[derive(Clone)]
pub struct ServerTls(TlsAcceptor);

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl ServerTls {
    pub(crate) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.0.accept(stream).await
    }
}

/// What cannot be used of a server's certificates and key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No PEM.
    #[error("a file is not PEM")]
    Pem(#[from] pem::Error),
    /// Nobody's certificate could be verified.
    #[error("the certificates of clients cannot be verified")]
    Clients(#[from] VerifierBuilderError),
    /// A certificate and a key that do not belong together, say.
    #[error("the certificate and its key cannot be used")]
    Identity(#[from] tokio_rustls::rustls::Error),
}

/// A server that demands a certificate of `client_ca` from every client.
///
/// # Errors
///
/// When a certificate or the key cannot be used.
pub fn server_tls(
    certificate: &str,
    key: &SecretString,
    client_ca: &str,
) -> Result<ServerTls, TlsError> {
    let certificates =
        |text: &str| CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(client_ca)?);
    let clients = WebPkiClientVerifier::builder(roots.into()).build()?;
    let key = PrivateKeyDer::from_pem_slice(key.expose_secret().as_bytes())?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(clients)
        .with_single_cert(certificates(certificate)?, key)?;
    config.alpn_protocols.push(HTTP2.to_owned());
    Ok(ServerTls(Arc::new(config).into()))
}

/// A client with a certificate, which believes servers of `ca`.
///
/// # Errors
///
/// When a certificate or the key cannot be used.
pub fn client_tls(
    certificate: &str,
    key: &SecretString,
    ca: &str,
) -> Result<ClientTlsConfig, tonic::transport::Error> {
    let tls = ClientTlsConfig::new()
        .identity(Identity::from_pem(certificate, key.expose_secret()))
        .ca_certificate(Certificate::from_pem(ca));
    Endpoint::from_static("https://registry").tls_config(tls.clone())?;
    Ok(tls)
}
