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
use std::time::{Duration, Instant};

use crate::cluster::{handshake, Cluster};
use crate::config::{CREDENTIALS_DIR, PKI_DIR};
use crate::error::{Error, Result};
use crate::files;
use crate::node::names;
use crate::openssl::{self, Certificate, HUNDRED_YEARS};
use crate::readiness::files::CA_CERT;
use crate::readiness::Readiness;
use crate::supervisor::Init;
use crate::threads;

const CERTIFICATE: &str = "apiserver.crt";
const ASKED: &str = "apiserver.names";
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

type Names = BTreeSet<String>;

/// What the signing thread shares with the answering one.
#[derive(Default)]
pub struct ApiCertificate {
    baked: Vec<String>,
    known: Mutex<Known>,
    asked: Condvar,
}

/// Names in lower case, addresses as Rust writes them.
#[derive(Default)]
struct Known {
    /// Names in the certificate that the API server was seen to show. None is ever removed.
    served: Names,
    /// The container's own.
    own: Names,
    /// Other names under which `/config` was requested.
    asked: Names,
    /// Whether a client has asked under a name that is not served, since the thread last looked.
    due: bool,
}

/// Starts the signing thread of a cluster, which first waits for its API server.
pub fn start(init: &Arc<Init>, static_ip: Ipv4Addr, certificate: &Arc<ApiCertificate>) -> Result<()> {
    let files = Files { pki: PKI_DIR.into() };
    certificate.begin_cluster();
    let (ours, init) = (certificate.clone(), init.clone());
    threads::start("certificate", move || {
        let mut reported = String::new();
        while init.readiness.wait_until(|state| state.api_server) {
            let sign = |names: &Names| {
                files.keep_asked(&ours.known().asked)?;
                files.sign(&ours.baked, names)
            };
            let shows = || {
                let shown = handshake::shows(static_ip, &Path::new(CREDENTIALS_DIR).join(CA_CERT), &files.path(CERTIFICATE))?;
                // Whatever the API server of an earlier cluster has shown does not count.
                Ok(shown && !init.readiness.is_over())
            };
            let pause = |time| {
                init.readiness.pause(time);
                !init.readiness.is_over()
            };
            let served = own_names().and_then(|own| ours.serve_all(own, sign, shows, pause));
            if let Some(error) = served.as_ref().err().map(Error::to_string).filter(|error| *error != reported) {
                log::warn!(target: "cluster", "the API server's certificate gets no further names: {error}");
                reported = error;
            }
            init.readiness.pause(if served.is_ok_and(|served| served) { PAUSE } else { LOOK_LIMIT });
            ours.wait_until_asked(&init.readiness);
        }
    })
}

fn own_names() -> Result<Names> {
    Ok(names::own()?.iter().filter_map(|name| certified_as(name)).take(MOST_OWN).collect())
}

impl ApiCertificate {
    pub fn new(cluster: &Cluster) -> ApiCertificate {
        let asked = Files { pki: PKI_DIR.into() }.asked_before();
        let known = Mutex::new(Known { asked, ..Known::default() });
        let certificate = ApiCertificate { baked: cluster.certificate_names.clone(), known, ..ApiCertificate::default() };
        certificate.begin_cluster();
        certificate
    }

    /// A restored API server has the baked certificate, whatever is in the file. Wakes the thread of an earlier cluster, which
    /// is over.
    fn begin_cluster(&self) {
        self.known().served = self.baked.iter().map(|name| name.to_ascii_lowercase()).collect();
        self.asked.notify_all();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the API server shows a certificate for the name. If it does not, the name is added.
    pub fn is_served_for(&self, name: &str) -> bool {
        let served = self.known().ask(name);
        self.asked.notify_all();
        served
    }

    /// Waits until there is a name to be signed, or the cluster is over.
    fn wait_until_asked(&self, readiness: &Readiness) {
        let known = self.asked.wait_while(self.known(), |known| !known.due && !readiness.is_over());
        let mut known = known.unwrap_or_else(PoisonError::into_inner);
        if !readiness.is_over() {
            known.due = false;
        }
    }

    /// Signs certificates until the API server shows one with every wanted name; returns whether it does. It may miss a
    /// file, so after `LOOK_LIMIT` that one is given up. `pause` returns whether to go on.
    fn serve_all(
        &self,
        own: Names,
        sign: impl Fn(&Names) -> Result<()>,
        shows: impl Fn() -> Result<bool>,
        pause: impl Fn(Duration) -> bool,
    ) -> Result<bool> {
        self.known().own = own;
        let (began, mut next_look, mut signed) = (Instant::now(), FIRST_LOOK, Names::new());
        while began.elapsed() < LOOK_LIMIT {
            let (wanted, missing) = self.known().wanted();
            if missing.is_empty() {
                return Ok(true);
            }
            if !missing.is_subset(&signed) {
                sign(&wanted)?;
                signed = wanted;
            }
            match shows() {
                Ok(true) => self.known().add_served(&signed),
                Ok(false) => {}
                // It may have ended and will come back.
                Err(error) => log::debug!(target: "cluster", "{error}"),
            }
            if !pause(next_look) {
                break;
            }
            next_look = (next_look * 2).min(LAST_LOOK);
        }
        Ok(false)
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

    /// The names that the certificate is to hold, and those of them that are not served.
    fn wanted(&self) -> (Names, Names) {
        let wanted = &self.own | &self.asked;
        let missing = &wanted - &self.served;
        (wanted, missing)
    }

    fn add_served(&mut self, names: &Names) {
        let new: Vec<&str> = names.difference(&self.served).map(String::as_str).collect();
        let more = if new.len() > LOGGED_NAMES { ", ..." } else { "" };
        log::info!(target: "cluster", "the API server's certificate is now valid for {}{more}", new[..new.len().min(LOGGED_NAMES)].join(", "));
        self.served.extend(names.iter().cloned());
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

/// The files of the certificate. The API server's pod mounts their directory.
struct Files {
    pki: PathBuf,
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.pki.join(name)
    }

    /// The names that clients asked for, one per line: kubeconfigs without `tls-server-name` exist for them, and must
    /// still work when the container is started again.
    fn asked_before(&self) -> Names {
        let text = fs::read_to_string(self.path(ASKED)).unwrap_or_default();
        text.lines().filter_map(certified_as).take(MOST_ASKED).collect()
    }

    fn keep_asked(&self, names: &Names) -> Result<()> {
        let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
        files::write(self.path(ASKED), lines)
    }

    /// Replaces the certificate with one for these names.
    fn sign(&self, baked: &[String], wanted: &Names) -> Result<()> {
        let names: Names = baked.iter().chain(wanted).map(|name| openssl::alternative_name(name)).collect();
        let names = format!("subjectAltName={}", names.into_iter().collect::<Vec<_>>().join(","));
        let [key, ca, ca_key] = ["apiserver.key", "ca.crt", "ca.key"].map(|name| self.path(name));
        let extensions = [&EXTENSIONS[..], &[names.as_str()]].concat();
        let ca = Some((ca.as_path(), ca_key.as_path()));
        Certificate { subject: SUBJECT, key: &key, ca, days: HUNDRED_YEARS, extensions: &extensions }.write(&self.path(CERTIFICATE))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

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
        assert_eq!(known.wanted().0.len(), MOST_ASKED + 1);
        known.due = false;
        assert!(!known.ask("name-199") && !known.due, "one too many makes no work");
        assert!(!known.ask("name-1") && known.due);
        known.served.insert("name-1".into());
        assert!(known.ask("Name-1"));
    }

    /// What is signed for the container's own name and those that were asked for, when the API server shows the second
    /// certificate that it is asked for.
    #[test]
    fn a_certificate_is_signed_once_for_all_names_that_are_not_served() {
        for (served, own, asked, late, expected) in [
            (&["localhost"][..], "localhost", &[][..], "", &[][..]),
            (&["localhost"], "10.0.0.1", &[], "", &["10.0.0.1"]),
            (&["localhost"], "10.0.0.1", &["a", "b"], "", &["10.0.0.1 a b"]),
            // The certificate of an earlier start may lack a name of this one, so it is replaced as a whole.
            (&["a"], "a", &["b"], "", &["a b"]),
            (&["localhost"], "10.0.0.1", &["a"], "late", &["10.0.0.1 a", "10.0.0.1 a late"]),
        ] {
            let known = Known { served: set(served), asked: set(asked), ..Known::default() };
            let certificate = ApiCertificate { known: Mutex::new(known), ..ApiCertificate::default() };
            let (signed, looks) = (RefCell::new(vec![]), Cell::new(0));
            let sign = |names: &Names| {
                signed.borrow_mut().push(names.iter().cloned().collect::<Vec<_>>().join(" "));
                Ok(())
            };
            let shows = || {
                looks.set(looks.get() + 1);
                match looks.get() {
                    1 if !late.is_empty() => Ok(certificate.is_served_for(late)),
                    1 => Err(Error::new("it has ended")),
                    looks => Ok(looks > 2),
                }
            };
            assert!(certificate.serve_all(set(&[own]), sign, shows, |_| true).unwrap());
            assert_eq!(signed.into_inner(), expected, "{served:?} {own} {asked:?}");
            assert!(certificate.known().wanted().1.is_empty());
        }
    }

    #[test]
    fn names_that_were_asked_for_are_known_at_the_next_start() {
        let directory = std::env::temp_dir().join(format!("kind-certificates-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let files = Files { pki: directory.clone() };
        assert!(files.asked_before().is_empty());
        files.keep_asked(&set(&["a.example", "fd00::2"])).unwrap();
        assert_eq!(files.asked_before(), set(&["a.example", "fd00::2"]));
        let foreign: String = (0..100).map(|number| format!("x{number}\n")).collect();
        fs::write(files.path(ASKED), format!("a b\n*.c\n{foreign}")).unwrap();
        assert_eq!(files.asked_before().len(), MOST_ASKED);
        fs::remove_dir_all(directory).unwrap();
    }
}
