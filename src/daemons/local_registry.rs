//! The node's own registry, which containerd asks first when it pulls for a pod (`node::pull_hosts`).
//!
//! `image: app` means `app:latest`, and for `latest` kubelet has containerd pull at each start of a container, as it does
//! for any tag with `imagePullPolicy: Always`, and for a digest that it does not know by name. No registry has what was
//! built a moment ago. So this one says which digest a name has here. containerd then finds everything in its own store,
//! and transfers nothing. Only manifests can be had.
//!
//! | what is asked for | the answer |
//! |---|---|
//! | a tag that was built or loaded here (`made_here`) | its digest |
//! | a tag that was pulled, or that is not here | 404: containerd asks the registry |
//! | the same, when the registry cannot be reached | the digest that is here; otherwise 503, which says so |
//! | a digest | itself, if it belongs to an image of that repository that is here; otherwise as above |
//!
//! It listens on loopback, where pods with `hostNetwork` reach it too, and learn which images are here.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::LOCAL_REGISTRY_PORTS;
use crate::daemons::content::Manifest;
use crate::daemons::image_records::{self, Record};
use crate::daemons::made_here::{is_made_here, Name, Reference};
use crate::error::{Error, Result};
use crate::http;
use crate::listen;
use crate::node::pull_hosts;
use crate::node::reach;
use crate::threads::{self, Places, STACK};

/// Concurrent clients; kubelet has containerd pull a few images at a time.
const MAX_CLIENTS: usize = 64;
const CLIENT_LIMIT: Duration = Duration::from_secs(5);
/// How long a pull may take from our answer until containerd has named the image.
const PULL_LIMIT: Duration = Duration::from_secs(60);

/// Names by digest that containerd gives to an image because we have answered, with the time of the last answer. It pulls
/// by name, and names what it has pulled by digest too.
#[derive(Default)]
pub struct Given(Mutex<BTreeMap<String, Instant>>);

impl Given {
    fn add(&self, name: String, is_there: bool) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.retain(|_, answered| answered.elapsed() < PULL_LIMIT);
        // One that was there before is somebody else's.
        if !is_there || names.contains_key(&name) {
            names.insert(name, Instant::now());
        }
    }

    pub fn names(&self) -> BTreeMap<String, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn forget(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// Starts it. Without it the node works as any other, so a failure is only a warning.
pub fn start() -> Arc<Given> {
    let given = Arc::new(Given::default());
    if let Err(error) = serve(given.clone()) {
        log::warn!(
            target: "images",
            "pods that are to pull an image at each start (latest, imagePullPolicy: Always), or name one by digest, get it from a registry \
             alone, and not what was built here: {error}"
        );
    }
    given
}

fn serve(given: Arc<Given>) -> Result<()> {
    let listener = listen()?;
    let port = listener.local_addr().map_err(|cause| Error::new(format!("the node's registry has no address: {cause}")))?.port();
    let serve = move |client| serve_client(client, &given);
    threads::start("registry", move || listen::accept(listener.incoming(), &Places::new(MAX_CLIENTS, STACK), serve))?;
    pull_hosts::ask_first(format!("http://{}:{port}", Ipv4Addr::LOCALHOST))
}

fn listen() -> Result<TcpListener> {
    let mut last = None;
    for port in LOCAL_REGISTRY_PORTS {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Ok(listener),
            Err(cause) => last = Some(cause),
        }
    }
    let why = last.map(|cause| cause.to_string()).unwrap_or_default();
    Err(Error::new(format!("the node's registry can listen on no port of {LOCAL_REGISTRY_PORTS:?} on loopback: {why}")))
}

fn serve_client(mut client: TcpStream, given: &Given) {
    // A client that has disconnected or was too slow needs no answer.
    let _ = client.set_write_timeout(Some(CLIENT_LIMIT));
    if let Ok(Some(head)) = http::read_head(&mut client, CLIENT_LIMIT) {
        let _ = client.write_all(&answer(&head, given));
    }
}

fn answer(head: &[u8], given: &Given) -> Vec<u8> {
    let (method, target) = http::request_line(head);
    let has_body = match &*method {
        "GET" => true,
        "HEAD" => false,
        _ => return refusal("405 Method Not Allowed"),
    };
    let Some(asked) = Asked::read(&target) else { return refusal("404 Not Found") };
    let Some(name) = asked.name() else { return refusal("404 Not Found") };
    match look_up(&name, given) {
        Ok(Verdict::Here(manifest)) => found(&manifest, has_body),
        Ok(Verdict::NotHere) => refusal("404 Not Found"),
        Ok(Verdict::NoWay(why)) => refusal(&format!("503 this node has no such image, and no way to its registry: {why}")),
        Err(error) => {
            log::warn!(target: "images", "cannot say whether {name:?} was built here, so the registry is asked: {error}");
            refusal("404 Not Found")
        }
    }
}

fn look_up(name: &Name, given: &Given) -> Result<Verdict> {
    let records = image_records::list()?;
    let node = Node { records: &records, is_made_here: &is_made_here, manifest: &Manifest::read, way: &reach::registry };
    let verdict = node.decide(name)?;
    if let Verdict::Here(manifest) = &verdict {
        let by_digest = format!("{}/{}@{}", name.host, name.repository, manifest.digest);
        let is_there = records.iter().any(|record| record.name == by_digest);
        given.add(by_digest, is_there);
    }
    Ok(verdict)
}

/// What a request asks for.
#[derive(Debug, PartialEq)]
struct Asked {
    host: String,
    repository: String,
    reference: String,
}

impl Asked {
    /// Reads a target such as `/v2/library/app/manifests/latest?ns=docker.io`, which is all that containerd asks for if it
    /// has the content. `ns` is the registry that it means.
    fn read(target: &str) -> Option<Asked> {
        let (path, query) = target.split_once('?')?;
        let (repository, reference) = path.strip_prefix("/v2/")?.rsplit_once("/manifests/")?;
        let host = query.split('&').find_map(|pair| pair.strip_prefix("ns="))?;
        Some(Asked { host: decoded(host)?, repository: repository.to_string(), reference: decoded(reference)? })
    }

    fn name(&self) -> Option<Name<'_>> {
        let is_digest = self.reference.contains(':');
        let reference = if is_digest { Reference::Digest(&self.reference) } else { Reference::Tag(&self.reference) };
        Name::new(&self.host, &self.repository, reference)
    }
}

/// Without percent-encoding (RFC 3986), as far as ASCII goes.
fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut decoded = parts.next()?.to_string();
    for part in parts {
        let byte = u8::from_str_radix(part.get(..2)?, 16).ok().filter(u8::is_ascii)?;
        decoded.push(byte.into());
        decoded.push_str(&part[2..]);
    }
    Some(decoded)
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Here(Manifest),
    NotHere,
    /// Not here, and nobody else can be asked, for this reason.
    NoWay(String),
}

/// What there is to decide by.
struct Node<'a> {
    records: &'a [Record],
    is_made_here: &'a dyn Fn(&Record) -> Result<bool>,
    /// Of a digest, with the media type that it has.
    manifest: &'a dyn Fn(&str, &str) -> Option<Manifest>,
    /// Whether a registry can be reached, or why not; with more patience if an older image would be taken instead.
    way: &'a dyn Fn(&str, bool) -> std::result::Result<(), String>,
}

impl Node<'_> {
    fn decide(&self, name: &Name) -> Result<Verdict> {
        let (here, is_ours) = match name.reference {
            Reference::Digest(digest) => (self.of_digest(name, digest), true),
            Reference::Tag(_) => match self.records.iter().find(|record| Name::parse(&record.name) == Some(*name)) {
                Some(record) => ((self.manifest)(&record.target, &record.media_type), (self.is_made_here)(record)?),
                None => (None, false),
            },
        };
        Ok(match (here, is_ours) {
            (Some(manifest), true) => Verdict::Here(manifest),
            (here, _) => match ((self.way)(name.host, here.is_some()), here) {
                (Ok(()), _) => Verdict::NotHere,
                (Err(why), Some(manifest)) => {
                    log::warn!(target: "images", "{}/{} is taken from this node, because its registry cannot be reached: {why}", name.host, name.repository);
                    Verdict::Here(manifest)
                }
                (Err(why), None) => Verdict::NoWay(why),
            },
        })
    }

    /// The manifest with this digest, if an image of that repository is it, or lists it.
    fn of_digest(&self, name: &Name, digest: &str) -> Option<Manifest> {
        let is_of_repository = |record: &&Record| Name::parse(&record.name).is_some_and(|other| other.is_of_same_repository(name));
        self.records.iter().filter(is_of_repository).find_map(|record| {
            let target = (self.manifest)(&record.target, &record.media_type)?;
            if target.digest == digest {
                return Some(target);
            }
            let (digest, media_type) = target.children().into_iter().find(|(child, _)| child == digest)?;
            (self.manifest)(&digest, &media_type)
        })
    }
}

fn found(manifest: &Manifest, has_body: bool) -> Vec<u8> {
    let Manifest { digest, media_type, text } = manifest;
    let head = http::head("200 OK", &[("Content-Type", media_type), ("Content-Length", &text.len()), ("Docker-Content-Digest", digest)]);
    [head.as_slice(), if has_body { text } else { &[] }].concat()
}

/// A status without a body. containerd shows the line to whoever describes the pod.
fn refusal(status: &str) -> Vec<u8> {
    let line: String = status.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    http::head(&line, &[("Content-Length", &0)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemons::image_records::tests::record;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn manifest(digest: &str, media_type: &str) -> Option<Manifest> {
        let text = if media_type == INDEX {
            r#"{"manifests": [{"digest": "sha256:c1", "mediaType": "m"}, {"digest": "sha256:c2", "mediaType": "m"}]}"#
        } else {
            "{}"
        };
        // Of one platform alone.
        (digest != "sha256:c2").then(|| Manifest { digest: digest.into(), media_type: media_type.into(), text: text.into() })
    }

    #[test]
    fn the_registry_is_asked_for_what_is_not_from_here_unless_there_is_no_way_to_it() {
        let mut list = record("r.example/list:1", "sha256:f");
        list.media_type = INDEX.to_string();
        let records = [
            record("docker.io/library/built:latest", "sha256:a"),
            record("docker.io/library/pulled:latest", "sha256:b"),
            record("sha256:aaaa", "sha256:a"),
            list,
        ];
        for (name, with_a_way, without) in [
            ("docker.io/library/built:latest", "sha256:a", "sha256:a"),
            ("docker.io/library/pulled:latest", "not here", "sha256:b"),
            ("docker.io/library/other:latest", "not here", "no way"),
            ("docker.io/library/built:2", "not here", "no way"),
            ("quay.io/library/built:latest", "not here", "no way"),
            // It is the same wherever it comes from.
            ("docker.io/library/pulled@sha256:b", "sha256:b", "sha256:b"),
            ("docker.io/library/built@sha256:a", "sha256:a", "sha256:a"),
            // But not another repository's.
            ("docker.io/library/built@sha256:b", "not here", "no way"),
            ("r.example/list@sha256:f", "sha256:f", "sha256:f"),
            ("r.example/list@sha256:c1", "sha256:c1", "sha256:c1"),
            ("r.example/list@sha256:c2", "not here", "no way"),
        ] {
            for (way, expected) in [(Ok(()), with_a_way), (Err("no way".to_string()), without)] {
                let is_made_here = |record: &Record| Ok(!record.name.contains("pulled"));
                let node = Node { records: &records, is_made_here: &is_made_here, manifest: &manifest, way: &|_, _| way.clone() };
                let said = match node.decide(&Name::parse(name).unwrap()).unwrap() {
                    Verdict::Here(manifest) => manifest.digest,
                    Verdict::NotHere => "not here".to_string(),
                    Verdict::NoWay(why) => why,
                };
                assert_eq!(said, expected, "{name}, {way:?}");
            }
        }
    }

    #[test]
    fn a_request_names_a_manifest_and_the_registry_that_is_meant() {
        let read = |target: &str| Asked::read(target).map(|asked| format!("{:?}", asked.name()));
        let name = |name: &str| Some(format!("{:?}", Name::parse(name)));
        for (target, expected) in [
            ("/v2/library/app/manifests/latest?ns=docker.io", name("docker.io/library/app:latest")),
            ("/v2/app/manifests/1?x=y&ns=localhost%3A5000", name("localhost:5000/app:1")),
            ("/v2/a/b/manifests/sha256:aa?ns=r.example", name("r.example/a/b@sha256:aa")),
            ("/v2/a/manifests/sha256%3Aaa?ns=r.example", name("r.example/a@sha256:aa")),
            ("/v2/a/manifests/1?ns=..%2F", Some("None".into())),
            ("/v2/a/manifests/1?ns=%ff", None),
            ("/v2/a/manifests/1?ns=%1", None),
            ("/v2/a/manifests/1?ns=%é", None),
            ("/v2/library/app/manifests/latest", None),
            ("/v2/a/blobs/sha256:aa?ns=r.example", None),
            ("/v2/?ns=r.example", None),
            ("", None),
        ] {
            assert_eq!(read(target), expected, "{target}");
        }
    }

    #[test]
    fn only_manifests_can_be_had() {
        let status =
            |head: &str| String::from_utf8(answer(head.as_bytes(), &Given::default())).unwrap().lines().next().unwrap().to_string();
        let target = "/v2/a/blobs/sha256:aa?ns=r.example";
        for (head, expected) in [
            (format!("GET {target} HTTP/1.1\r\nHost: h\r\n"), "HTTP/1.1 404 Not Found"),
            (format!("PUT {target} HTTP/1.1\r\n"), "HTTP/1.1 405 Method Not Allowed"),
            (String::new(), "HTTP/1.1 405 Method Not Allowed"),
        ] {
            assert_eq!(status(&head), expected, "{head}");
        }
        let refused = String::from_utf8(refusal("503 no\r\nway")).unwrap();
        assert!(refused.starts_with("HTTP/1.1 503 no  way\r\n") && refused.contains("\r\nContent-Length: 0\r\n"), "{refused}");
        let answer = |has_body| String::from_utf8(found(&manifest("sha256:a", "m").unwrap(), has_body)).unwrap();
        let head =
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: m\r\nContent-Length: 2\r\nDocker-Content-Digest: sha256:a\r\n\r\n";
        assert_eq!((answer(false), answer(true)), (head.to_string(), format!("{head}{{}}")));
    }

    #[test]
    fn a_name_that_was_there_before_is_not_the_pulls() {
        let given = Given::default();
        for (name, is_there) in [("new", false), ("old", true), ("new", true)] {
            given.add(name.into(), is_there);
        }
        assert_eq!(given.names().keys().collect::<Vec<_>>(), ["new"]);
        given.forget("new");
        assert!(given.names().is_empty());
    }
}
