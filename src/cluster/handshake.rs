//! Finds out which certificate the API server shows, with a handshake and no request: a file that was written is
//! not necessarily served yet.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::config::{API_PORT, REQUEST_LIMIT};
use crate::error::{Error, Result};

/// A name in every certificate that the API server ever has.
const ALWAYS_NAMED: &str = "localhost";

/// Whether the API server shows the certificate in a file, to a client that trusts only its CA.
pub fn shows(server: Ipv4Addr, ca: &Path, certificate: &Path) -> Result<bool> {
    let read = |path: &Path| CertificateDer::from_pem_file(path).map_err(|cause| Error::io("use", path, cause));
    let (ca, wanted) = (read(ca)?, read(certificate)?);
    let server = SocketAddr::from((server, API_PORT));
    let shown = shown(server, ca).map_err(|cause| Error::new(format!("no TLS handshake with {server}: {cause}")))?;
    Ok(shown.is_some_and(|shown| shown == wanted))
}

fn shown(server: SocketAddr, ca: CertificateDer) -> std::result::Result<Option<CertificateDer<'static>>, Box<dyn std::error::Error>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from(ALWAYS_NAMED)?)?;
    complete(&mut connection, server)?;
    Ok(connection.peer_certificates().and_then(|chain| chain.first()).map(|certificate| certificate.clone().into_owned()))
}

fn complete(connection: &mut ClientConnection, server: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, REQUEST_LIMIT)?;
    stream.set_read_timeout(Some(REQUEST_LIMIT))?;
    stream.set_write_timeout(Some(REQUEST_LIMIT))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    connection.send_close_notify();
    connection.write_tls(&mut stream).map(drop)
}

/// Whether a certificate can contain a name that a client used.
pub fn can_be_certified(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}
