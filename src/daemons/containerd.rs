//! containerd, ours: dockerd would overwrite the configuration of one that it manages itself.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use crate::config::{CNI_BIN_DIR, CNI_CONF_DIR, CONTAINERD_ROOT, CONTAINERD_SOCKET, DOCKER_SOCKET, NAMESPACE, REQUEST_LIMIT, RUN_DIR};
use crate::daemons::{answers_ok, prepare};
use crate::error::{Error, Result};
use crate::node::iptables::Iptables;
use crate::node::registry::CERTS_DIR;
use crate::node::{can_lower_oom_score, mounts};
use crate::supervisor::daemon::Spec;
use crate::supervisor::reaper;

pub const CONTAINERD: &str = "containerd";

/// Marks what the CRI plugin made, in contrast to what dockerd made in the same namespace.
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
        // It listens only when every plugin is loaded.
        answers: Box::new(move || {
            let first = starts.load(Ordering::Relaxed) == 1;
            UnixStream::connect(CONTAINERD_SOCKET).is_ok() && (first || dockerd_reaches_it())
        }),
        before_reload: None,
        condition: |state| &mut state.containerd,
    }
}

/// Without the plugin that knows pods.
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

/// A dockerd that has lost its containerd looks for the new one every few seconds only, and answers
/// pings meanwhile. One that does not run at all is not waited for.
fn dockerd_reaches_it() -> bool {
    let Ok(stream) = UnixStream::connect(DOCKER_SOCKET) else { return true };
    // A request for which it has to ask containerd.
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
  # Without CAP_SYS_RESOURCE every pod would fail to start on its oom_score_adj.
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
  # Docker's own folder serves kubelet's pulls too.
  [plugins."{CRI_PLUGIN}".registry]
    config_path = "{CERTS_DIR}"
"#
    )
}

/// containerd's own client, in the namespace that pods and Docker share.
pub fn ctr(arguments: &[&str]) -> Result<String> {
    ctr_in(NAMESPACE, arguments)
}

fn ctr_in(namespace: &str, arguments: &[&str]) -> Result<String> {
    reaper::run(Command::new("ctr").args(["--address", CONTAINERD_SOCKET, "--namespace", namespace]).args(arguments))
}

/// The names of the images, Docker's and kubelet's.
pub fn images() -> Result<Vec<String>> {
    Ok(ctr(&["images", "ls", "--quiet"])?.lines().map(str::to_string).collect())
}

/// Ids of the containers and sandboxes of pods, whose `label` has `value` where one is given.
pub fn pod_containers(label: Option<(&str, &str)>) -> Result<Vec<String>> {
    let filter = match label {
        Some((name, value)) => format!("{CRI_CONTAINERS},labels.\"{name}\"=={value}"),
        None => CRI_CONTAINERS.to_string(),
    };
    let list = ctr(&["containers", "ls", "-q", &filter])?;
    Ok(list.lines().map(str::trim).filter(|id| !id.is_empty()).map(str::to_string).collect())
}

/// Ends every pod's containers and sandboxes that run, and removes all of them; Docker's own stay.
pub fn end_pod_containers() -> Result<usize> {
    // It fails for those that do not run any more, and removes the others all the same.
    let _ = ctr_for(&["tasks", "rm", "--force"], &pod_containers(None)?);
    remove_pod_containers()
}

/// Removes the records and layers of every pod's containers and sandboxes, none of which runs. Returns
/// how many there were.
pub fn remove_pod_containers() -> Result<usize> {
    let ids = pod_containers(None)?;
    let sandboxes = sandboxes();
    if ctr_for(&["containers", "rm"], &ids).is_err() {
        // A layer that cannot be removed keeps nobody's name.
        ctr_for(&["containers", "rm", "--keep-snapshot"], &pod_containers(None)?)?;
    }
    // It only logs what it could not do.
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

/// The same for all of the ids at once, or nothing where there are none.
fn ctr_for(arguments: &[&str], ids: &[String]) -> Result<()> {
    let all: Vec<&str> = arguments.iter().copied().chain(ids.iter().map(String::as_str)).collect();
    if ids.is_empty() {
        Ok(())
    } else {
        ctr(&all).map(drop)
    }
}

/// Deletes every lease, which would keep layers and blobs that no image and no container uses. In every namespace,
/// because BuildKit keeps the history of its builds in one of its own. Nothing may be using them any more.
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

/// Makes containerd delete the layers of removed containers, which it would do some time later.
pub fn collect_garbage() -> Result<()> {
    let lease = ctr(&["leases", "create"])?;
    ctr(&["leases", "delete", "--sync", lease.trim()])?;
    let snapshots = ctr(&["snapshots", "ls"])?;
    match snapshots.lines().find(|line| line.split_whitespace().last() == Some("Active")) {
        Some(left) => Err(Error::new(format!("containerd keeps the layer of a removed container: {left}"))),
        None => Ok(()),
    }
}
