//! The API server's certificate follows the names under which clients reach it. Many clients do not support
//! `tls-server-name`, and the bake cannot know a container's names.
//!
//! The certificate is signed again, with the same key, once the API server answers, for the container's addresses
//! and host name; and later when a client asks for `/config` under a name that it lacks. It cannot be signed
//! earlier: kube-apiserver only notices a file that changes while it runs (from 1.23 on through inotify alone, before
//! that once a minute). Until a handshake has shown the new certificate, `/config` contains `tls-server-name`.
//!
//! | what a client could do | what it gets |
//! |---|---|
//! | ask under many names | the first 32 are added to the certificate; the others keep `tls-server-name` |
//! | ask often | a certificate is signed only for new names: at most once for each of the 32 |
//! | ask under a name that no certificate can hold, such as 1.2.3 | `tls-server-name` |
//! | wait for an answer | never happens: one thread signs, and answers only look at what it has seen |

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::handshake::{self, Handshake};
use crate::cluster::Cluster;
use crate::config::{CREDENTIALS_DIR, PKI_DIR};
use crate::error::{Error, Result};
use crate::node::names;
use crate::openssl::{self, Certificate, HUNDRED_YEARS};
use crate::readiness::files::CA_CERT;
use crate::supervisor::Init;

/// The same as kubeadm's.
const SUBJECT: &str = "/CN=kube-apiserver";
const EXTENSIONS: [&str; 3] =
    ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature,keyEncipherment", "extendedKeyUsage=serverAuth"];
/// Names that clients may add: a job has its alias, its runner's host name and an address or two.
const MOST_ASKED: usize = 32;
/// Addresses and names of the container itself, which may share a host's network with its many bridges.
const MOST_OWN: usize = 64;
/// How long to wait before checking the API server after its certificate was written; doubled up to the second value.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_secs(2);
/// An API server that does not show the certificate after this long never will: 1.20 reads its files once a minute.
const LOOK_LIMIT: Duration = Duration::from_secs(100);
/// Pause between rounds of signing.
const PAUSE: Duration = Duration::from_secs(1);
/// How many names a log line lists.
const LOGGED_NAMES: usize = 3;

/// What the signing thread shares with the answering one.
pub struct ApiCertificate {
    known: Mutex<Known>,
    asked: Condvar,
}

/// Names in lower case, addresses as Rust writes them.
#[derive(Default)]
struct Known {
    /// Names in the certificate that the API server was seen to show. None is ever removed.
    served: BTreeSet<String>,
    /// The container's own.
    own: BTreeSet<String>,
    /// Other names under which `/config` was requested.
    asked: BTreeSet<String>,
    /// Whether a client has asked under a name that is not served, since the thread last looked.
    due: bool,
}

/// Starts the signing thread, which first waits for the API server.
pub fn follow(init: &Arc<Init>, cluster: &Cluster) -> Result<Arc<ApiCertificate>> {
    let files = Files::new(Path::new(PKI_DIR));
    let known = Known {
        served: cluster.certificate_names.iter().map(|name| name.to_ascii_lowercase()).collect(),
        asked: files.asked_before(),
        ..Known::default()
    };
    let certificate = Arc::new(ApiCertificate { known: Mutex::new(known), asked: Condvar::new() });
    let mut signer = Signer {
        init: init.clone(),
        certificate: certificate.clone(),
        baked: cluster.certificate_names.clone(),
        files,
        static_ip: cluster.static_ip,
        written: BTreeSet::new(),
    };
    let started = thread::Builder::new().name("certificate".into()).spawn(move || signer.run());
    started.map_err(|cause| Error::new(format!("cannot start the thread for the API server's certificate: {cause}")))?;
    Ok(certificate)
}

impl ApiCertificate {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the API server shows a certificate for the name. If it does not, the name is added.
    pub fn is_served_for(&self, name: &str) -> bool {
        let served = self.known().ask(name);
        self.asked.notify_one();
        served
    }

    fn wait_until_asked(&self) {
        let known = self.asked.wait_while(self.known(), |known| !known.due);
        known.unwrap_or_else(PoisonError::into_inner).due = false;
    }
}

impl Known {
    fn ask(&mut self, name: &str) -> bool {
        let Some(name) = certified_as(name) else { return false };
        if self.served.contains(&name) {
            return true;
        }
        if !self.own.contains(&name) && !self.asked.contains(&name) {
            if self.asked.len() == MOST_ASKED {
                return false;
            }
            self.asked.insert(name);
        }
        self.due = true;
        false
    }

    fn wanted(&self) -> BTreeSet<String> {
        self.own.union(&self.asked).cloned().collect()
    }
}

/// A host name or address as it is written into a certificate, if it can be.
fn certified_as(name: &str) -> Option<String> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Some(address.to_string());
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let valid = names::is_host_name(name) && !name.ends_with('.') && handshake::can_be_certified(name);
    valid.then(|| name.to_ascii_lowercase())
}

/// What to do about the names that the API server does not show.
#[derive(Debug, PartialEq)]
enum Next {
    Nothing,
    /// Some are not in the file yet.
    Sign,
    Wait,
}

fn next(missing: &BTreeSet<String>, written: &BTreeSet<String>) -> Next {
    match (missing.is_empty(), missing.is_subset(written)) {
        (true, _) => Next::Nothing,
        (false, false) => Next::Sign,
        (false, true) => Next::Wait,
    }
}

struct Signer {
    init: Arc<Init>,
    certificate: Arc<ApiCertificate>,
    baked: Vec<String>,
    files: Files,
    static_ip: Ipv4Addr,
    /// Names in the file in addition to the baked ones.
    written: BTreeSet<String>,
}

impl Signer {
    fn run(&mut self) {
        let mut told = String::new();
        while self.init.readiness.wait_until(|state| state.api_server) {
            let served =
                Handshake::new(&Path::new(CREDENTIALS_DIR).join(CA_CERT), self.static_ip).and_then(|server| self.serve_all(&server));
            let pause = match served {
                Ok(true) => PAUSE,
                Ok(false) => LOOK_LIMIT,
                Err(error) => {
                    let error = error.to_string();
                    if told != error {
                        log::warn!(target: "cluster", "the API server's certificate gets no further names: {error}");
                        told = error;
                    }
                    LOOK_LIMIT
                }
            };
            self.init.shutdown.pause(pause);
            self.certificate.wait_until_asked();
        }
    }

    /// Signs certificates until the API server shows one with every wanted name; returns whether it does.
    fn serve_all(&mut self, server: &Handshake) -> Result<bool> {
        let own: BTreeSet<String> = names::own()?.iter().filter_map(|name| certified_as(name)).take(MOST_OWN).collect();
        self.certificate.known().own = own;
        let (began, mut pause) = (Instant::now(), FIRST_LOOK);
        while !self.init.shutdown.stopping() && began.elapsed() < LOOK_LIMIT {
            match self.look(server) {
                Ok(missing) => match next(&missing, &self.written) {
                    Next::Nothing => return Ok(true),
                    Next::Sign => self.sign()?,
                    Next::Wait => {}
                },
                // It may have ended and will come back.
                Err(error) => log::debug!(target: "cluster", "{error}"),
            }
            self.init.shutdown.pause(pause);
            pause = (pause * 2).min(LAST_LOOK);
        }
        // The API server may have missed the file, so sign another one next time.
        self.written.clear();
        Ok(false)
    }

    /// Records which names the API server shows; returns the wanted ones that it does not show.
    fn look(&self, server: &Handshake) -> Result<BTreeSet<String>> {
        let wanted = self.certificate.known().wanted();
        let shown = server.shown()?;
        let (held, missing): (BTreeSet<String>, _) = wanted.into_iter().partition(|name| shown.holds(name));
        let mut known = self.certificate.known();
        let new: Vec<String> = held.difference(&known.served).cloned().collect();
        known.served.extend(held);
        drop(known);
        if !new.is_empty() {
            log::info!(target: "cluster", "the API server's certificate holds {}", listed(&new));
        }
        Ok(missing)
    }

    fn sign(&mut self) -> Result<()> {
        let (wanted, asked) = {
            let known = self.certificate.known();
            (known.wanted(), known.asked.clone())
        };
        self.files.keep_asked(&asked)?;
        self.files.sign(&self.baked, &wanted)?;
        self.written = wanted;
        Ok(())
    }
}

fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(LOGGED_NAMES);
    let first = names[..names.len() - more].join(", ");
    if more == 0 {
        first
    } else {
        format!("{first} and {more} more")
    }
}

/// The files of the certificate. The API server's pod mounts their directory.
struct Files {
    pki: PathBuf,
}

impl Files {
    fn new(pki: &Path) -> Files {
        Files { pki: pki.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.pki.join(name)
    }

    /// The names that clients asked for, one per line: kubeconfigs without `tls-server-name` exist for them, and must
    /// still work when the container is started again.
    fn asked_file(&self) -> PathBuf {
        self.path("apiserver.names")
    }

    fn asked_before(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(self.asked_file()).unwrap_or_default();
        text.lines().filter_map(certified_as).take(MOST_ASKED).collect()
    }

    fn keep_asked(&self, names: &BTreeSet<String>) -> Result<()> {
        let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
        fs::write(self.asked_file(), lines).map_err(|cause| Error::io("write", self.asked_file(), cause))
    }

    /// Replaces the certificate with one for these names.
    fn sign(&self, baked: &[String], wanted: &BTreeSet<String>) -> Result<()> {
        let names: BTreeSet<String> = baked.iter().chain(wanted).map(|name| openssl::alternative_name(name)).collect();
        let names = format!("subjectAltName={}", names.into_iter().collect::<Vec<_>>().join(","));
        let [key, ca, ca_key] = ["apiserver.key", "ca.crt", "ca.key"].map(|name| self.path(name));
        let extensions = [&EXTENSIONS[..], &[names.as_str()]].concat();
        let ca = Some((ca.as_path(), ca_key.as_path()));
        Certificate { subject: SUBJECT, key: &key, ca, days: HUNDRED_YEARS, extensions: &extensions }.write(&self.path("apiserver.crt"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_name_is_certified_in_one_spelling_or_not_at_all() {
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        for (name, expected) in [
            ("Kind.Example.", Some("kind.example")),
            ("group__project", Some("group__project")),
            ("172.17.0.2", Some("172.17.0.2")),
            ("FD00:0::2", Some("fd00::2")),
            ("::ffff:10.0.0.1", Some("::ffff:10.0.0.1")),
            (&longest, Some(longest.as_str())),
            (&format!("{longest}d"), None),
            // No certificate can contain it: it would be an invalid address.
            ("1.2.3", None),
            ("a..", None),
            ("*.example", None),
            ("a,DNS:b", None),
            ("a\nb", None),
            ("", None),
        ] {
            assert_eq!(certified_as(name).as_deref(), expected, "{name:?}");
        }
    }

    #[test]
    fn names_are_asked_for_once_and_only_so_many() {
        let mut known = Known { served: set(&["localhost"]), own: set(&["172.17.0.2"]), ..Known::default() };
        assert!(known.ask("LOCALHOST") && !known.due);
        assert!(!known.ask("1.2.3") && !known.due, "no certificate can hold it");
        assert!(!known.ask("172.17.0.2") && known.due && known.asked.is_empty(), "it is signed without being asked for");
        for number in 0..200 {
            assert!(!known.ask(&format!("name-{number}")) && !known.ask(&format!("NAME-{number}.")));
        }
        assert_eq!(known.asked.len(), MOST_ASKED);
        assert_eq!(known.wanted().len(), MOST_ASKED + 1);
        known.due = false;
        assert!(!known.ask("name-199") && !known.due, "one too many makes no work");
        assert!(!known.ask("name-1") && known.due);
        known.served.insert("name-1".into());
        assert!(known.ask("Name-1"));
    }

    #[test]
    fn a_certificate_is_signed_only_for_names_that_the_file_lacks() {
        for (missing, written, expected) in [
            (&[][..], &[][..], Next::Nothing),
            (&[], &["a"], Next::Nothing),
            (&["a"], &[], Next::Sign),
            (&["a"], &["a", "b"], Next::Wait),
            (&["a", "c"], &["a", "b"], Next::Sign),
        ] {
            assert_eq!(next(&set(missing), &set(written)), expected, "{missing:?} {written:?}");
        }
    }

    #[test]
    fn a_line_of_the_log_does_not_grow_with_the_names() {
        let names: Vec<String> = ["a", "b", "c", "d", "e"].map(String::from).into();
        assert_eq!(listed(&names[..1]), "a");
        assert_eq!(listed(&names[..3]), "a, b, c");
        assert_eq!(listed(&names), "a, b, c and 2 more");
    }

    #[test]
    fn names_that_were_asked_for_are_known_at_the_next_start() {
        let directory = std::env::temp_dir().join(format!("kind-certificates-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let files = Files::new(&directory);
        assert!(files.asked_before().is_empty());
        files.keep_asked(&set(&["a.example", "fd00::2"])).unwrap();
        assert_eq!(files.asked_before(), set(&["a.example", "fd00::2"]));
        let foreign: String = (0..100).map(|number| format!("x{number}\n")).collect();
        fs::write(files.asked_file(), format!("a b\n*.c\n{foreign}")).unwrap();
        assert_eq!(files.asked_before().len(), MOST_ASKED);
        fs::remove_dir_all(directory).unwrap();
    }
}
