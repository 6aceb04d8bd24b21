//! Finds out which certificate the API server shows, with a handshake and no request: a file that was written is
//! not necessarily served yet.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::config::{API_PORT, REQUEST_LIMIT};
use crate::error::{Error, Result};

/// A name in every certificate that the API server ever has.
const ALWAYS_NAMED: &str = "localhost";

/// Connects to the API server, trusting only its CA.
pub struct Handshake {
    config: Arc<ClientConfig>,
    server: SocketAddr,
}

/// A certificate that the CA has signed and that is valid now.
pub struct Shown(CertificateDer<'static>);

impl Handshake {
    pub fn new(ca: &Path, server: Ipv4Addr) -> Result<Handshake> {
        let unusable = |cause: &dyn std::fmt::Display| Error::io("use", ca, cause);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).map_err(|cause| unusable(&cause))?).map_err(|cause| unusable(&cause))?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
        let config = config.map_err(|cause| unusable(&cause))?.with_root_certificates(roots).with_no_client_auth();
        Ok(Handshake { config: Arc::new(config), server: (server, API_PORT).into() })
    }

    /// The certificate that the server shows now.
    pub fn shown(&self) -> Result<Shown> {
        let failed = |cause: &dyn std::fmt::Display| Error::new(format!("no TLS handshake with {}: {cause}", self.server));
        let name = ServerName::try_from(ALWAYS_NAMED).map_err(|cause| failed(&cause))?;
        let mut connection = ClientConnection::new(self.config.clone(), name).map_err(|cause| failed(&cause))?;
        self.complete(&mut connection).map_err(|cause| failed(&cause))?;
        let certificate = connection.peer_certificates().and_then(|chain| chain.first());
        certificate.map(|certificate| Shown(certificate.clone().into_owned())).ok_or_else(|| failed(&"no certificate"))
    }

    fn complete(&self, connection: &mut ClientConnection) -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.server, REQUEST_LIMIT)?;
        stream.set_read_timeout(Some(REQUEST_LIMIT))?;
        stream.set_write_timeout(Some(REQUEST_LIMIT))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        connection.send_close_notify();
        connection.write_tls(&mut stream).map(drop)
    }
}

impl Shown {
    /// Whether a client that connects under `name` accepts the certificate.
    pub fn holds(&self, name: &str) -> bool {
        let Ok(name) = ServerName::try_from(name) else { return false };
        ParsedCertificate::try_from(&self.0).is_ok_and(|certificate| verify_server_name(&certificate, &name).is_ok())
    }
}

/// Whether a certificate can contain a name that a client used.
pub fn can_be_certified(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}
