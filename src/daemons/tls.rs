//! Docker's port with TLS, as docker:dind serves it: `DOCKER_TLS_CERTDIR` names a directory whose subdirectories
//! `ca`, `server` and `client` contain the keys and certificates. Clients get `client` through a shared volume.
//!
//! The files are created while containerd starts. Existing keys are used again. Their certificates are created again
//! at every start, because the container's addresses change, and so that none expires.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use crate::error::{Error, Result};
use crate::files::make_dir;
use crate::node::names;
use crate::openssl::{self, Certificate, Keys};
use crate::threads;

/// Empty or not set: no TLS.
pub const DIRECTORY: &str = "DOCKER_TLS_CERTDIR";
/// Further names for the server's certificate, as openssl writes them: `DNS:ci.example,IP:10.0.0.7`.
const NAMES: &str = "DOCKER_TLS_SAN";
/// The same as docker:dind; some clients refuse more (https://github.com/FiloSottile/mkcert/issues/174).
const DAYS: &str = "825";

/// Where a server's certificates are, whether they exist yet or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Files {
    directory: PathBuf,
}

/// Certificates that are being created.
pub struct Making(JoinHandle<Result<()>>);

impl Files {
    pub fn new(directory: impl Into<PathBuf>) -> Files {
        Files { directory: directory.into() }
    }

    /// dockerd's settings for them, under the names that its flags and its daemon.json share.
    pub fn settings(&self) -> [(&'static str, PathBuf); 3] {
        let file = |name| self.directory.join("server").join(name);
        [("tlscacert", file("ca.pem")), ("tlscert", file("cert.pem")), ("tlskey", file("key.pem"))]
    }

    /// Starts creating what is missing. The container must already have all its addresses.
    pub fn make(&self) -> Result<Making> {
        let directory = self.directory.clone();
        let body = move || provide(&directory, &server_names()?);
        threads::start_for("tls", body).map(Making)
    }
}

impl Making {
    /// Waits until the certificates have been created.
    pub fn finish(self) -> Result<()> {
        self.join().map_err(|error| Error::new(format!("no certificates for Docker's port with TLS: {error}")))
    }

    fn join(self) -> Result<()> {
        self.0.join().unwrap_or_else(|_| Err(Error::new("the thread has panicked")))
    }
}

/// What to do, depending on the files in the directory.
#[derive(Debug, PartialEq)]
enum Plan {
    /// The user's own server certificate, from a CA whose key is elsewhere.
    Check,
    /// Everything is ours.
    Make,
    /// A CA certificate, but neither its key nor a server certificate.
    Impossible,
}

fn plan(is_there: impl Fn(&str) -> bool) -> Plan {
    let server = ["server/ca.pem", "server/cert.pem", "server/key.pem"].iter().all(|name| is_there(name));
    match (is_there("ca/key.pem"), is_there("ca/cert.pem")) {
        (false, _) if server => Plan::Check,
        (false, true) => Plan::Impossible,
        _ => Plan::Make,
    }
}

fn provide(directory: &Path, names: &str) -> Result<()> {
    let [ca, server, client] = ["ca", "server", "client"].map(|part| directory.join(part));
    let is_there = |name: &str| fs::metadata(directory.join(name)).is_ok_and(|metadata| metadata.len() > 0);
    match plan(is_there) {
        Plan::Check => return openssl::verify(&server.join("ca.pem"), &server.join("cert.pem")),
        Plan::Impossible => {
            return Err(Error::new(format!("{} has ca/cert.pem, but neither ca/key.pem nor all of server/", directory.display()))
                .advise("Put the CA's key there, or server/ca.pem, server/cert.pem and server/key.pem, or empty the directory"))
        }
        Plan::Make => {}
    }
    [&ca, &server, &client].iter().try_for_each(make_dir)?;
    // The client's key must be readable by everyone with whom the volume is shared.
    at_once([(&ca, 0o600), (&server, 0o600), (&client, 0o644)].map(|(part, mode)| {
        let key = part.join("key.pem");
        move || openssl::ensure_key(&key, Keys::Rsa2048, mode)
    }))?;
    let (ca_certificate, ca_key) = (ca.join("cert.pem"), ca.join("key.pem"));
    let extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,digitalSignature,keyCertSign"];
    Certificate { subject: "/CN=docker:dind CA", key: &ca_key, ca: None, days: DAYS, extensions: &extensions }.write(&ca_certificate)?;
    let names = format!("subjectAltName={names}");
    let leaf = |part: PathBuf, subject: &'static str, extensions: Vec<String>| {
        let (certificate, key) = (ca_certificate.clone(), ca_key.clone());
        move || {
            let extensions: Vec<&str> = extensions.iter().map(String::as_str).collect();
            let ca = Some((certificate.as_path(), key.as_path()));
            Certificate { subject, key: &part.join("key.pem"), ca, days: DAYS, extensions: &extensions }.write(&part.join("cert.pem"))?;
            let copy = part.join("ca.pem");
            fs::copy(&certificate, &copy).map(drop).map_err(|cause| Error::io("write", copy, cause))
        }
    };
    let common = "basicConstraints=critical,CA:FALSE".to_string();
    at_once([
        leaf(server, "/CN=docker:dind server", vec![common.clone(), "extendedKeyUsage=serverAuth".into(), names]),
        leaf(client, "/CN=docker:dind client", vec![common, "extendedKeyUsage=clientAuth".into()]),
    ])
}

/// Runs each in a thread of its own, because openssl uses one core.
fn at_once<const N: usize>(bodies: [impl FnOnce() -> Result<()> + Send + 'static; N]) -> Result<()> {
    let threads = bodies.map(|body| threads::start_for("tls", body).map(Making));
    threads.into_iter().try_for_each(|thread| thread?.join())
}

/// Every name and address under which a client may reach this container.
fn server_names() -> Result<String> {
    Ok(join_names(&names::own()?, &std::env::var(NAMES).unwrap_or_default()))
}

/// `DNS:docker,IP:172.17.0.2,…`, each name once.
fn join_names(own: &[String], wanted: &str) -> String {
    let known = ["docker", "kind", "localhost"].into_iter().chain(own.iter().map(String::as_str));
    let wanted = wanted.split([',', '\n', ' ']).map(str::trim).filter(|name| !name.is_empty());
    let wanted = wanted.map(|name| match name.parse::<IpAddr>().is_err() && name.contains(':') {
        // Already in openssl's notation.
        true => name.to_string(),
        false => openssl::alternative_name(name),
    });
    let names: BTreeSet<String> = known.map(openssl::alternative_name).chain(wanted).collect();
    names.into_iter().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_created_depends_on_whose_ca_it_is() {
        let server = ["server/ca.pem", "server/cert.pem", "server/key.pem"];
        for (files, expected) in [
            (vec![], Plan::Make),
            (vec!["ca/key.pem"], Plan::Make),
            (vec!["ca/key.pem", "ca/cert.pem"], Plan::Make),
            (server.to_vec(), Plan::Check),
            ([&server[..], &["ca/cert.pem"]].concat(), Plan::Check),
            // With the CA's key we can create a new certificate, and do.
            ([&server[..], &["ca/key.pem"]].concat(), Plan::Make),
            (vec!["ca/cert.pem"], Plan::Impossible),
            (vec!["ca/cert.pem", "server/cert.pem"], Plan::Impossible),
        ] {
            assert_eq!(plan(|name| files.contains(&name)), expected, "{files:?}");
        }
    }

    #[test]
    fn the_certificate_names_all_that_a_client_may_call_it() {
        let own = ["127.0.0.1", "172.17.0.2", "172.99.99.1", "::1", "ci", "ci.example.com"].map(String::from);
        let names = join_names(&own, "DNS:*.svc,IP:10.0.0.7, bare.example 10.0.0.8,::2");
        assert_eq!(
            names,
            "DNS:*.svc,DNS:bare.example,DNS:ci,DNS:ci.example.com,DNS:docker,DNS:kind,DNS:localhost,\
             IP:10.0.0.7,IP:10.0.0.8,IP:127.0.0.1,IP:172.17.0.2,IP:172.99.99.1,IP:::1,IP:::2"
        );
        assert_eq!(join_names(&[], ""), "DNS:docker,DNS:kind,DNS:localhost");
    }
}
