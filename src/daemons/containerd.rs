//! Our own containerd: dockerd would overwrite the configuration of one that it manages itself.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::config::{CONTAINERD_SOCKET, DOCKER_SOCKET, LOG_DIR, NAMESPACE, REQUEST_LIMIT, RUN_DIR};
use crate::daemons::containerd_config::{self, Form};
use crate::daemons::{is_on_path, prepare, socket_answers_ok};
use crate::error::{Error, Result};
use crate::files;
use crate::node::can_lower_oom_score;
use crate::node::iptables::Iptables;
use crate::supervisor::daemon::Spec;
use crate::supervisor::reaper;

pub const CONTAINERD: &str = "containerd";

/// An error about containerd, which names its log.
pub fn error(message: impl Into<String>) -> Error {
    Error::new(message).advise(format!("Its log is {LOG_DIR}/{CONTAINERD}.log in the container"))
}

/// The label of what the CRI plugin has created, as opposed to what dockerd has in the same namespace: whether it is a container
/// or a sandbox.
pub const CRI_KIND: &str = "io.cri-containerd.kind";

/// The first two numbers of containerd's version.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// Asks the program, which takes a few hundredths of a second.
    pub fn find() -> Result<Version> {
        let said = reaper::run(Command::new(CONTAINERD).arg("--version"))?;
        Version::parse(&said).ok_or_else(|| Error::new(format!("containerd's version cannot be read from what it says: {}", said.trim())))
    }

    /// Parses a line such as `containerd github.com/containerd/containerd/v2 v2.1.5 fcd43222d6b07379`.
    fn parse(said: &str) -> Option<Version> {
        said.split_whitespace().find_map(|word| {
            let mut numbers = word.trim_start_matches('v').split('.');
            Some(Version { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
        })
    }

    pub fn form(self) -> Form {
        Form::of(self.major, self.minor)
    }
}

pub fn spec(form: Form, pause_image: String, iptables: Iptables) -> Spec {
    let starts = Arc::new(AtomicU32::new(0));
    let count = starts.clone();
    Spec {
        name: CONTAINERD,
        command: Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let path = Path::new(RUN_DIR).join("containerd.toml");
            let configuration = containerd_config::with_cri(form, &pause_image, !can_lower_oom_score(), runtime());
            command_with(&path, &configuration, &iptables)
        }),
        // It listens only once every plugin is loaded.
        answers: Box::new(move || {
            let first = starts.load(Ordering::Relaxed) == 1;
            UnixStream::connect(CONTAINERD_SOCKET).is_ok() && (first || dockerd_reaches_it())
        }),
        before_reload: None,
        condition: |state| &mut state.containerd,
        first_start: Mutex::default(),
    }
}

/// The OCI runtime of pods. containerd runs it several times for each pod that comes or goes, and a call takes crun, which is
/// not written in Go, about half the time of runc. An image without crun, baked earlier, has Docker's runc alone.
fn runtime() -> &'static str {
    if is_on_path("crun") {
        "crun"
    } else {
        "runc"
    }
}

/// The command for a containerd without the CRI plugin.
pub fn command_without_cri(form: Form, iptables: &Iptables) -> Result<Command> {
    let path = Path::new(RUN_DIR).join("containerd-without-cri.toml");
    command_with(&path, &containerd_config::without_cri(form), iptables)
}

fn command_with(path: &Path, configuration: &str, iptables: &Iptables) -> Result<Command> {
    files::make_dir(RUN_DIR)?;
    files::write(path, configuration)?;
    let mut command = Command::new("containerd");
    prepare(&mut command, iptables);
    command.arg("--config").arg(path).args(["--address", CONTAINERD_SOCKET, "--log-level", "warn"]);
    Ok(command)
}

/// A dockerd that has lost its containerd looks for the new one only every few seconds, and answers
/// pings meanwhile. We do not wait for a dockerd that is not running.
fn dockerd_reaches_it() -> bool {
    // A request that makes it ask containerd.
    UnixStream::connect(DOCKER_SOCKET).is_err() || socket_answers_ok(Path::new(DOCKER_SOCKET), "/images/json", REQUEST_LIMIT)
}

/// Runs containerd's own client in the namespace that pods and Docker share.
pub fn ctr(arguments: &[&str]) -> Result<String> {
    ctr_in(NAMESPACE, arguments)
}

fn ctr_in(namespace: &str, arguments: &[&str]) -> Result<String> {
    reaper::run(Command::new("ctr").args(["--address", CONTAINERD_SOCKET, "--namespace", namespace]).args(arguments))
}

/// The names of all images, Docker's and kubelet's.
pub fn images() -> Result<Vec<String>> {
    Ok(ctr(&["images", "ls", "--quiet"])?.lines().map(str::to_string).collect())
}

/// Ids of the pods' containers and sandboxes, filtered by a label and its value if given.
pub fn pod_containers(label: Option<(&str, &str)>) -> Result<Vec<String>> {
    let filter = match label {
        Some((name, value)) => format!("labels.\"{CRI_KIND}\",labels.\"{name}\"=={value}"),
        None => format!("labels.\"{CRI_KIND}\""),
    };
    let list = ctr(&["containers", "ls", "-q", &filter])?;
    Ok(list.lines().map(str::trim).filter(|id| !id.is_empty()).map(str::to_string).collect())
}

/// Ends the pods' running containers and sandboxes, and removes all of them; Docker's own stay.
pub fn end_pod_containers() -> Result<usize> {
    // It fails for those that are no longer running, but still removes the others.
    let _ = ctr_for(&["tasks", "rm", "--force"], &pod_containers(None)?);
    remove_pod_containers()
}

/// Removes the records and layers of the pods' containers and sandboxes, none of which may be running. Returns
/// how many there were.
pub fn remove_pod_containers() -> Result<usize> {
    let ids = pod_containers(None)?;
    let sandboxes = sandboxes();
    if ctr_for(&["containers", "rm"], &ids).is_err() {
        // A layer that cannot be removed does not reserve a name.
        ctr_for(&["containers", "rm", "--keep-snapshot"], &pod_containers(None)?)?;
    }
    // It only logs what it could not remove.
    ctr_for(&["sandboxes", "rm", "--force"], &sandboxes)?;
    match (pod_containers(None)?, self::sandboxes()) {
        (containers, sandboxes) if containers.is_empty() && sandboxes.is_empty() => Ok(ids.len()),
        (containers, sandboxes) => {
            Err(Error::new(format!("containerd still lists the removed containers {containers:?} and sandboxes {sandboxes:?}")))
        }
    }
}

/// containerd 2 keeps a record of sandboxes beside their containers; 1.7 has no such list.
fn sandboxes() -> Vec<String> {
    let list = ctr(&["sandboxes", "ls"]).unwrap_or_default();
    list.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_string).collect()
}

/// Runs ctr once for all ids, or not at all if there are none.
fn ctr_for(arguments: &[&str], ids: &[String]) -> Result<()> {
    let all: Vec<&str> = arguments.iter().copied().chain(ids.iter().map(String::as_str)).collect();
    if ids.is_empty() {
        Ok(())
    } else {
        ctr(&all).map(drop)
    }
}

/// Deletes every lease, because leases keep layers and blobs that no image or container uses. It does so in every
/// namespace, because BuildKit keeps its build history in a namespace of its own. Nothing may be using the leases.
pub fn delete_leases() -> Result<()> {
    for namespace in ctr(&["namespaces", "ls", "--quiet"])?.lines().map(str::trim) {
        let list = ctr_in(namespace, &["leases", "ls", "--quiet"])?;
        let leases: Vec<&str> = list.lines().map(str::trim).filter(|id| !id.is_empty()).collect();
        if !leases.is_empty() {
            ctr_in(namespace, &[&["leases", "delete"], leases.as_slice()].concat())?;
        }
    }
    Ok(())
}

/// Makes containerd delete now, instead of some time later, whatever nothing refers to.
pub fn run_garbage_collector() -> Result<()> {
    let lease = ctr(&["leases", "create"])?;
    ctr(&["leases", "delete", "--sync", lease.trim()]).map(drop)
}

/// Makes containerd delete the layers of removed containers now instead of some time later.
pub fn collect_garbage() -> Result<()> {
    run_garbage_collector()?;
    let snapshots = ctr(&["snapshots", "ls"])?;
    match snapshots.lines().find(|line| line.split_whitespace().last() == Some("Active")) {
        Some(left) => Err(Error::new(format!("containerd still has the layer of a removed container: {left}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_every_containerd_says() {
        for (said, major, minor) in [
            ("containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+deb13u1\n", 1, 7),
            ("containerd github.com/containerd/containerd/v2 2.1.9+unknown \n", 2, 1),
            ("containerd github.com/containerd/containerd/v2 v2.3.4 fcd43222d6b07379a4be9786bda52438f0dd16a1\n", 2, 3),
            ("containerd containerd.io 1.7.29 442cb34bda9a6a0fed82a2ca7cade05c5c749582\n", 1, 7),
        ] {
            assert_eq!(Version::parse(said), Some(Version { major, minor }), "{said}");
        }
        assert_eq!(Version::parse("containerd"), None);
    }
}
