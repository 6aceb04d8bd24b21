//! Our own containerd: dockerd would overwrite the configuration of one that it manages itself.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use crate::config::{
    CNI_BIN_DIR, CNI_CONF_DIR, CONTAINERD_ROOT, CONTAINERD_SOCKET, CRI_CERTS_DIR, DOCKER_SOCKET, NAMESPACE, REQUEST_LIMIT, RUN_DIR,
};
use crate::daemons::{answers_ok, prepare};
use crate::error::{Error, Result};
use crate::node::iptables::Iptables;
use crate::node::{can_lower_oom_score, mounts};
use crate::supervisor::daemon::Spec;
use crate::supervisor::reaper;

pub const CONTAINERD: &str = "containerd";

/// Selects what the CRI plugin created, as opposed to what dockerd created in the same namespace.
const CRI_CONTAINERS: &str = "labels.\"io.cri-containerd.kind\"";
const CRI_PLUGIN: &str = "io.containerd.grpc.v1.cri";

pub fn spec(pause_image: String, iptables: Iptables) -> Spec {
    let starts = Arc::new(AtomicU32::new(0));
    let count = starts.clone();
    Spec {
        name: CONTAINERD,
        command: Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let path = Path::new(RUN_DIR).join("containerd.toml");
            let configuration = configuration(&pause_image, !can_lower_oom_score());
            command_with(&path, &configuration, &iptables)
        }),
        // It listens only once every plugin is loaded.
        answers: Box::new(move || {
            let first = starts.load(Ordering::Relaxed) == 1;
            UnixStream::connect(CONTAINERD_SOCKET).is_ok() && (first || dockerd_reaches_it())
        }),
        before_reload: None,
        condition: |state| &mut state.containerd,
    }
}

/// The command for a containerd without the CRI plugin.
pub fn command_without_cri(iptables: &Iptables) -> Result<Command> {
    let path = Path::new(RUN_DIR).join("containerd-without-cri.toml");
    command_with(&path, &base(&[CRI_PLUGIN]), iptables)
}

fn command_with(path: &Path, configuration: &str, iptables: &Iptables) -> Result<Command> {
    mounts::make_dir(RUN_DIR)?;
    std::fs::write(path, configuration).map_err(|cause| Error::io("write", path, cause))?;
    let mut command = Command::new("containerd");
    prepare(&mut command, iptables);
    command.arg("--config").arg(path).args(["--log-level", "warn"]);
    Ok(command)
}

/// A dockerd that has lost its containerd looks for the new one only every few seconds, and answers
/// pings meanwhile. We do not wait for a dockerd that is not running.
fn dockerd_reaches_it() -> bool {
    let Ok(stream) = UnixStream::connect(DOCKER_SOCKET) else { return true };
    // A request that makes it ask containerd.
    stream.set_read_timeout(Some(REQUEST_LIMIT)).is_ok() && answers_ok(stream, "/images/json")
}

/// Version 2 of the format, which containerd 1.7 and 2.x both read.
fn base(disabled_plugins: &[&str]) -> String {
    format!(
        r#"version = 2
root = "{CONTAINERD_ROOT}"
state = "/run/containerd"
disabled_plugins = {disabled_plugins:?}
[grpc]
  address = "{CONTAINERD_SOCKET}"
"#
    )
}

fn configuration(pause_image: &str, restrict_oom_score_adj: bool) -> String {
    let base = base(&[]);
    format!(
        r#"{base}[plugins."{CRI_PLUGIN}"]
  sandbox_image = "{pause_image}"
  # Without CAP_SYS_RESOURCE every pod would fail to start because of its oom_score_adj.
  restrict_oom_score_adj = {restrict_oom_score_adj}
  tolerate_missing_hugetlb_controller = true
  [plugins."{CRI_PLUGIN}".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."{CRI_PLUGIN}".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."{CRI_PLUGIN}".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."{CRI_PLUGIN}".cni]
    bin_dir = "{CNI_BIN_DIR}"
    conf_dir = "{CNI_CONF_DIR}"
  # Docker's directory is used for kubelet's pulls too.
  [plugins."{CRI_PLUGIN}".registry]
    config_path = "{CRI_CERTS_DIR}"
"#
    )
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
        Some((name, value)) => format!("{CRI_CONTAINERS},labels.\"{name}\"=={value}"),
        None => CRI_CONTAINERS.to_string(),
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
            Err(Error::new(format!("containerd keeps removed containers {containers:?} and sandboxes {sandboxes:?}")))
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

/// Makes containerd delete the layers of removed containers now instead of some time later.
pub fn collect_garbage() -> Result<()> {
    let lease = ctr(&["leases", "create"])?;
    ctr(&["leases", "delete", "--sync", lease.trim()])?;
    let snapshots = ctr(&["snapshots", "ls"])?;
    match snapshots.lines().find(|line| line.split_whitespace().last() == Some("Active")) {
        Some(left) => Err(Error::new(format!("containerd keeps the layer of a removed container: {left}"))),
        None => Ok(()),
    }
}
