//! The API server, asked in-process over one kept connection.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::Value;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use ureq::Agent;

use crate::config::{API_PORT, REQUEST_LIMIT};
use crate::error::{Error, Result};
use crate::readiness::files::{CA_CERT, CLIENT_CERT, CLIENT_KEY};

/// Bytes, for each connection: of ureq's own 128 KiB the init's connections took 1.5 MB together. The first
/// must hold an answer's whole head.
const INPUT_BUFFER: usize = 16 << 10;
const OUTPUT_BUFFER: usize = 8 << 10;

pub struct Api {
    agent: Agent,
    base: String,
}

impl Api {
    /// A client with the credentials in `dir`.
    pub fn new(dir: &Path, address: Ipv4Addr) -> Result<Api> {
        let read = |name| fs::read(dir.join(name)).map_err(|cause| Error::io("read", dir.join(name), cause));
        let certificate = |name| Certificate::from_pem(&read(name)?).map_err(|cause| Error::io("use", dir.join(name), cause));
        let key = PrivateKey::from_pem(&read(CLIENT_KEY)?).map_err(|cause| Error::io("use", dir.join(CLIENT_KEY), cause))?;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[certificate(CA_CERT)?]))
            .client_cert(Some(ClientCert::new_with_certs(&[certificate(CLIENT_CERT)?], key)))
            .build();
        // The environment's proxy is for the user's pulls, not for a server on our own address.
        let config = Agent::config_builder().tls_config(tls).proxy(None).http_status_as_error(false);
        let config = config.input_buffer_size(INPUT_BUFFER).output_buffer_size(OUTPUT_BUFFER).build();
        Ok(Api { agent: config.into(), base: format!("https://{address}:{API_PORT}") })
    }

    /// Whether the server says that it can be used.
    pub fn is_ready(&self) -> bool {
        self.readiness() == Some(200)
    }

    /// The status with which the server says whether it can be used, when it says anything.
    pub fn readiness(&self) -> Option<u16> {
        self.request("GET", "/readyz").ok().map(|(status, _)| status)
    }

    pub fn get(&self, path: &str) -> Result<Value> {
        let (status, body) = self.request("GET", path)?;
        if status != 200 {
            return Err(Error::new(format!("the API server answers GET {path} with {status}: {}", body.trim())));
        }
        serde_json::from_str(&body).map_err(|cause| Error::new(format!("the API server's answer to GET {path} is broken: {cause}")))
    }

    /// Deletes an object; one that is gone already counts as deleted.
    pub fn delete(&self, path: &str) -> Result<()> {
        match self.request("DELETE", path)? {
            (200 | 202 | 404, _) => Ok(()),
            (status, body) => Err(Error::new(format!("the API server answers DELETE {path} with {status}: {}", body.trim()))),
        }
    }

    /// Merges `patch` into an object (RFC 7386).
    pub fn patch(&self, path: &str, patch: &Value) -> Result<()> {
        let url = format!("{}{path}", self.base);
        let fail = |cause: ureq::Error| Error::new(format!("PATCH {url}: {cause}"));
        let request = self.agent.patch(&url).config().timeout_global(Some(REQUEST_LIMIT)).build();
        let response = request.content_type("application/merge-patch+json").send(patch.to_string());
        let mut response = response.map_err(fail)?;
        match (response.status().as_u16(), response.body_mut().read_to_string().map_err(fail)?) {
            (200 | 201, _) => Ok(()),
            (status, body) => Err(Error::new(format!("the API server answers PATCH {path} with {status}: {}", body.trim()))),
        }
    }

    fn request(&self, method: &'static str, path: &str) -> Result<(u16, String)> {
        let url = format!("{}{path}", self.base);
        let fail = |cause: ureq::Error| Error::new(format!("{method} {url}: {cause}"));
        let response = match method {
            "DELETE" => self.agent.delete(&url).config().timeout_global(Some(REQUEST_LIMIT)).build().call(),
            _ => self.agent.get(&url).config().timeout_global(Some(REQUEST_LIMIT)).build().call(),
        };
        let mut response = response.map_err(fail)?;
        let body = response.body_mut().read_to_string().map_err(fail)?;
        Ok((response.status().as_u16(), body))
    }

    /// Opens a watch: one JSON object on each line, until the server ends it.
    pub fn watch(&self, path: &str) -> Result<impl Iterator<Item = std::io::Result<String>>> {
        let url = format!("{}{path}", self.base);
        let response = self.agent.get(&url).call().map_err(|cause| Error::new(format!("GET {url}: {cause}")))?;
        if response.status() != 200 {
            return Err(Error::new(format!("the API server answers GET {path} with {}", response.status())));
        }
        Ok(BufReader::new(response.into_body().into_reader()).lines())
    }
}
