//! A client for the API server, in this process, with connections that are kept open.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::Response;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::cluster::objects::{Event, List, Pod};
use crate::config::{API_PORT, KUBELET_PORT, REQUEST_LIMIT};
use crate::error::{Error, Result};
use crate::readiness::files::{CA_CERT, CLIENT_CERT, CLIENT_KEY};

/// Bytes per connection. With ureq's default of 128 KiB the init's connections took 1.5 MB. The input buffer must
/// hold the whole head of a response.
const INPUT_BUFFER: usize = 16 << 10;
const OUTPUT_BUFFER: usize = 8 << 10;

/// Bytes of an error response that an error includes.
const LONGEST_ERROR: u64 = 16 << 10;

pub struct Api {
    agent: Agent,
    base: String,
    kubelet: String,
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
        // The proxy in the environment is for pulling images; this server is on our own address.
        let config = Agent::config_builder().tls_config(tls).proxy(None).http_status_as_error(false);
        let config = config.input_buffer_size(INPUT_BUFFER).output_buffer_size(OUTPUT_BUFFER).build();
        Ok(Api {
            agent: config.into(),
            base: format!("https://{address}:{API_PORT}"),
            kubelet: format!("https://{address}:{KUBELET_PORT}"),
        })
    }

    /// Whether the server reports itself ready.
    pub fn is_ready(&self) -> bool {
        self.readiness() == Some(200)
    }

    /// The HTTP status of `/readyz`, if the server answers.
    pub fn readiness(&self) -> Option<u16> {
        self.readiness_within(REQUEST_LIMIT)
    }

    /// As `readiness`, for a server that may hang.
    pub fn readiness_within(&self, limit: Duration) -> Option<u16> {
        let answer = self.agent.get(format!("{}/readyz", self.base)).config().timeout_global(Some(limit)).build().call();
        answer.ok().map(|answer| answer.status().as_u16())
    }

    /// Gets an object or a list of any length. It is parsed while it arrives, and only the fields of `T` are kept.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.get_from(&self.base, path)
    }

    /// The pods that kubelet itself reports; static ones have the names that kubelet gives them.
    pub fn kubelets_pods(&self) -> Result<Vec<Pod>> {
        self.get_from::<List<Pod>>(&self.kubelet, "/pods").map(|list| list.items)
    }

    fn get_from<T: DeserializeOwned>(&self, server: &str, path: &str) -> Result<T> {
        let url = format!("{server}{path}");
        let request = self.agent.get(&url).config().timeout_global(Some(REQUEST_LIMIT)).build();
        let mut answer = request.call().map_err(|cause| Error::new(format!("GET {url}: {cause}")))?;
        let status = answer.status().as_u16();
        let body = BufReader::new(answer.body_mut().as_reader());
        if status != 200 {
            let mut text = String::new();
            // Keep what was read before an error.
            let _ = body.take(LONGEST_ERROR).read_to_string(&mut text);
            return Err(Error::new(format!("GET {url} returned status {status}: {}", text.trim())));
        }
        serde_json::from_reader(body).map_err(|cause| Error::new(format!("the response to GET {url} is not valid: {cause}")))
    }

    /// Deletes an object. Succeeds if it does not exist.
    pub fn delete(&self, path: &str) -> Result<()> {
        let url = format!("{}{path}", self.base);
        let answer = self.agent.delete(&url).config().timeout_global(Some(REQUEST_LIMIT)).build().call();
        check("DELETE", &url, answer, &[200, 202, 404])
    }

    /// Creates an object; one that is there already counts as created.
    pub fn create(&self, path: &str, object: &Value) -> Result<()> {
        let url = format!("{}{path}", self.base);
        let request = self.agent.post(&url).config().timeout_global(Some(REQUEST_LIMIT)).build();
        check("POST", &url, request.content_type("application/json").send(object.to_string()), &[200, 201, 409])
    }

    /// Applies a JSON merge patch (RFC 7386) to an object.
    pub fn patch(&self, path: &str, patch: &Value) -> Result<()> {
        let url = format!("{}{path}", self.base);
        let request = self.agent.patch(&url).config().timeout_global(Some(REQUEST_LIMIT)).build();
        let answer = request.content_type("application/merge-patch+json").send(patch.to_string());
        check("PATCH", &url, answer, &[200, 201])
    }

    /// Opens a watch, which lasts until the server ends it.
    ///
    /// # Errors
    /// The watch cannot be opened. Each event may be an error too: the connection broke, or the server ended the
    /// watch with an error.
    pub fn watch<T: DeserializeOwned>(&self, path: &str) -> Result<impl Iterator<Item = Result<Event<T>>>> {
        let url = format!("{}{path}", self.base);
        let answer = self.agent.get(&url).call().map_err(|cause| Error::new(format!("GET {url}: {cause}")))?;
        if answer.status() != 200 {
            return Err(Error::new(format!("GET {url} returned status {}", answer.status())));
        }
        let lines = BufReader::new(answer.into_body().into_reader()).lines();
        Ok(lines.map(move |line| {
            let line = line.map_err(|cause| Error::new(format!("the watch {url} ended: {cause}")))?;
            parse_event(&line).ok_or_else(|| Error::new(format!("the API server ended the watch {url}: {line}")))
        }))
    }
}

/// Parses an event of a watch. `None` for an error event, and for what cannot be parsed.
fn parse_event<T: DeserializeOwned>(line: &str) -> Option<Event<T>> {
    serde_json::from_str(line).ok().filter(|event: &Event<T>| event.kind != "ERROR")
}

fn check(method: &str, url: &str, answer: std::result::Result<Response<Body>, ureq::Error>, accepted: &[u16]) -> Result<()> {
    let fail = |cause: ureq::Error| Error::new(format!("{method} {url}: {cause}"));
    let mut answer = answer.map_err(fail)?;
    let status = answer.status().as_u16();
    // Read the whole body in any case: otherwise the connection cannot be reused.
    let body = answer.body_mut().read_to_string().map_err(fail)?;
    if accepted.contains(&status) {
        return Ok(());
    }
    Err(Error::new(format!("{method} {url} returned status {status}: {}", body.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_event_is_not_an_event() {
        let pod = r#"{"type": "ADDED", "object": {"metadata": {"name": "a"}}}"#;
        assert_eq!(parse_event::<Pod>(pod).unwrap().object.metadata.name, "a");
        assert!(parse_event::<Pod>(r#"{"type": "ERROR", "object": {"kind": "Status", "code": 410}}"#).is_none());
        assert!(parse_event::<Pod>("").is_none());
    }
}
