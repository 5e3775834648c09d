//! Mutual TLS between the processes of the suite.

use secrecy::{ExposeSecret as _, SecretString};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};

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

/// A server that demands a certificate of `client_ca` from every client.
///
/// # Errors
///
/// When a certificate or the key cannot be used.
pub fn server_tls(
    certificate: &str,
    key: &SecretString,
    client_ca: &str,
) -> Result<ServerTlsConfig, tonic::transport::Error> {
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(certificate, key.expose_secret()))
        .client_ca_root(Certificate::from_pem(client_ca));
    Server::builder().tls_config(tls.clone())?;
    Ok(tls)
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
