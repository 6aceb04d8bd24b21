//! A client for the API server, in this process, with connections that are kept open.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
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
        let config = Agent::config_builder().tls_config(tls).proxy(None).http_status_as_error(false).timeout_global(Some(REQUEST_LIMIT));
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
        let body = check("GET", &url, self.agent.get(&url).call(), &[200])?;
        let invalid = |cause| Error::new(format!("the response to GET {url} is not valid: {cause}"));
        serde_json::from_reader(BufReader::new(body.into_reader())).map_err(invalid)
    }

    /// Asks for something, to the answer's end, of which only the status counts.
    pub fn ask(&self, path: &str) -> Result<()> {
        let url = format!("{}{path}", self.base);
        check("GET", &url, self.agent.get(&url).call(), &[200]).map(drain)
    }

    /// Deletes an object. Succeeds if it does not exist.
    pub fn delete(&self, path: &str) -> Result<()> {
        let url = format!("{}{path}", self.base);
        check("DELETE", &url, self.agent.delete(&url).call(), &[200, 202, 404]).map(drain)
    }

    /// Creates an object; one that is there already counts as created.
    pub fn create(&self, path: &str, object: &Value) -> Result<()> {
        let url = format!("{}{path}", self.base);
        let answer = self.agent.post(&url).content_type("application/json").send(object.to_string());
        check("POST", &url, answer, &[200, 201, 409]).map(drain)
    }

    /// Applies a JSON merge patch (RFC 7386) to an object.
    pub fn patch(&self, path: &str, patch: &Value) -> Result<()> {
        let url = format!("{}{path}", self.base);
        let answer = self.agent.patch(&url).content_type("application/merge-patch+json").send(patch.to_string());
        check("PATCH", &url, answer, &[200, 201]).map(drain)
    }

    /// Reports the objects at `path`, and then every change, until the server ends the watch: after half an hour or so, or
    /// because it ends itself.
    ///
    /// # Errors
    /// The API server cannot be asked, the connection broke, it ended the watch with an error, or `report` failed.
    pub fn watch<T: DeserializeOwned>(&self, path: &str, mut report: impl FnMut(Change<T>) -> Result<()>) -> Result<()> {
        let list: List<T> = self.get(path)?;
        let version = list.metadata.resource_version;
        report(Change::All(list.items))?;
        // Without bookmarks, which would wake us every minute.
        let url = format!("{}{path}?watch=1&resourceVersion={version}", self.base);
        let watch = self.agent.get(&url).config().timeout_global(None).build();
        let body = check("GET", &url, watch.call(), &[200])?;
        for line in BufReader::new(body.into_reader()).lines() {
            let line = line.map_err(|cause| Error::new(format!("the watch {url} broke: {cause}")))?;
            report(parse_event(&line).ok_or_else(|| Error::new(format!("the API server ended the watch {url}: {line}")))?)?;
        }
        Ok(())
    }
}

/// What `Api::watch` reports.
#[derive(Debug)]
pub enum Change<T> {
    /// Every object that there is.
    All(Vec<T>),
    /// A new object, or an object's new state.
    Put(T),
    /// The last state of an object that has been deleted.
    Deleted(T),
}

/// Parses an event of a watch. `None` for an error event, and for what cannot be parsed.
fn parse_event<T: DeserializeOwned>(line: &str) -> Option<Change<T>> {
    let event: Event<T> = serde_json::from_str(line).ok()?;
    match event.kind.as_str() {
        "ADDED" | "MODIFIED" => Some(Change::Put(event.object)),
        "DELETED" => Some(Change::Deleted(event.object)),
        _ => None,
    }
}

/// The body of a response, if its status is among the accepted ones.
fn check(method: &str, url: &str, answer: std::result::Result<Response<Body>, ureq::Error>, accepted: &[u16]) -> Result<Body> {
    let answer = answer.map_err(|cause| Error::new(format!("{method} {url}: {cause}")))?;
    let status = answer.status().as_u16();
    if accepted.contains(&status) {
        return Ok(answer.into_body());
    }
    let mut text = String::new();
    // Keep what was read before an error.
    let _ = answer.into_body().into_reader().take(LONGEST_ERROR).read_to_string(&mut text);
    Err(Error::new(format!("{method} {url} returned status {status}: {}", text.trim())))
}

/// Reads a response that does not matter to its end: otherwise the connection cannot be reused.
fn drain(body: Body) {
    let _ = io::copy(&mut body.into_reader(), &mut io::sink());
}

#[cfg(test)]
impl Api {
    /// A client without TLS.
    pub fn plain(base: String) -> Api {
        Api { agent: Agent::config_builder().http_status_as_error(false).build().into(), kubelet: base.clone(), base }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    /// An API server that answers one request after another with these statuses and bodies. Returns the paths that were
    /// asked for, what was reported, and how the watch ended.
    fn watch(answers: &[(u16, &str)]) -> (Vec<String>, Vec<String>, Result<()>) {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", server.local_addr().unwrap());
        let api = Api::plain(base);
        let answers: Vec<_> = answers.iter().map(|(status, text)| (*status, text.to_string())).collect();
        let serve = std::thread::spawn(move || {
            let answer = |(status, text): (u16, String)| {
                let mut client = BufReader::new(server.accept().unwrap().0);
                let head: Vec<String> = client.by_ref().lines().map_while(|line| line.ok().filter(|line| !line.is_empty())).collect();
                let length = text.len();
                write!(client.get_mut(), "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{text}").unwrap();
                head[0].split(' ').nth(1).unwrap().to_string()
            };
            answers.into_iter().map(answer).collect()
        });
        let mut reported = vec![];
        let names = |pods: &[Pod]| pods.iter().map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>().join(" ");
        let ended = api.watch("/pods", |change: Change<Pod>| {
            reported.push(match change {
                Change::All(pods) => format!("all: {}", names(&pods)),
                Change::Put(pod) => format!("put: {}", names(&[pod])),
                Change::Deleted(pod) => format!("deleted: {}", names(&[pod])),
            });
            Ok(())
        });
        (serve.join().unwrap(), reported, ended)
    }

    const LIST: &str = r#"{"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}"#;
    const EVENTS: &str = r#"{"type": "ADDED", "object": {"metadata": {"name": "c"}}}
{"type": "MODIFIED", "object": {"metadata": {"name": "a"}}}
{"type": "DELETED", "object": {"metadata": {"name": "b"}}}
"#;
    const GONE: &str = r#"{"type": "ERROR", "object": {"kind": "Status", "code": 410}}"#;

    #[test]
    fn objects_are_reported_as_they_are_and_then_as_they_change_until_the_watch_ends() {
        let (paths, reported, ended) = watch(&[(200, LIST), (200, EVENTS)]);
        assert_eq!(paths, ["/pods", "/pods?watch=1&resourceVersion=7"]);
        assert_eq!(reported, ["all: a b", "put: c", "put: a", "deleted: b"]);
        ended.unwrap();
    }

    #[test]
    fn a_watch_has_no_time_limit() {
        const LIMIT: Duration = Duration::from_secs(1);
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", server.local_addr().unwrap());
        let agent = Agent::config_builder().timeout_global(Some(LIMIT)).build().into();
        let api = Api { agent, kubelet: base.clone(), base };
        let serve = std::thread::spawn(move || {
            for (pause, text) in [(Duration::ZERO, LIST), (LIMIT + Duration::from_millis(500), EVENTS)] {
                let mut client = BufReader::new(server.accept().unwrap().0);
                client.by_ref().lines().find(|line| line.as_ref().is_ok_and(String::is_empty)).unwrap().unwrap();
                write!(client.get_mut(), "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", text.len()).unwrap();
                std::thread::sleep(pause);
                write!(client.get_mut(), "{text}").unwrap();
            }
        });
        let mut changes = 0;
        let ended = api.watch("/pods", |_: Change<Pod>| {
            changes += 1;
            Ok(())
        });
        serve.join().unwrap();
        ended.unwrap();
        assert_eq!(changes, 4);
    }

    #[test]
    fn what_ends_a_watch_before_its_time_is_an_error_with_what_the_server_has_said() {
        let broken = format!("{EVENTS}{GONE}");
        for (answers, reports, error) in [
            (&[(503, "etcd is down")][..], 0, "/pods returned status 503: etcd is down"),
            (&[(200, "no list")], 0, "/pods is not valid: "),
            (&[(200, LIST), (410, "too old")], 1, "resourceVersion=7 returned status 410: too old"),
            (&[(200, LIST), (200, &broken)], 4, "the API server ended the watch"),
            (&[(200, LIST), (200, "no event")], 1, "no event"),
        ] {
            let (_, reported, ended) = watch(answers);
            let message = ended.unwrap_err().to_string();
            assert!(message.contains(error) && reported.len() == reports, "{message}: {reported:?}");
        }
    }
}
