//! The orderly end of the bake: the committed state must look as if nothing was interrupted.

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::bake::bundle::BIN_DIR;
use crate::bake::etcd::{self, Etcd};
use crate::bake::{hooks, images};
use crate::boot::STOP_ORDER;
use crate::cluster::api::Api;
use crate::cluster::objects::{List, Pod, Service};
use crate::cluster::{pods, BakedPod, Cluster};
use crate::config::{CLUSTER_FILE, LOG_DIR, POLL, STATE_DIR};
use crate::daemons::containerd::{self, ctr};
use crate::daemons::containerd_config::Form;
use crate::daemons::dockerd::DOCKERD;
use crate::daemons::image_names;
use crate::daemons::kubelet::KUBELET;
use crate::error::{Error, Result};
use crate::node::cluster_network::ClusterNetwork;
use crate::node::{cgroup, directories};
use crate::readiness::files::{WAIT_SCRIPT, WAIT_SCRIPT_TEXT};
use crate::supervisor::Init;
use crate::supervisor::{reaper, stop};

/// The label that kubelet puts on its containers.
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// How long a control plane container may take to end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(15);
/// The leases that the next holder would have to wait for.
const LEASES: [&str; 2] = ["kube-scheduler", "kube-controller-manager"];

/// Records what the next boot needs to find.
pub fn describe(
    api: &Api,
    version: &str,
    static_ip: Ipv4Addr,
    network: &ClusterNetwork,
    pause: &str,
    form: Form,
    names: Vec<String>,
) -> Result<Cluster> {
    let list: Vec<Pod> = api.get::<List<Pod>>("/api/v1/pods")?.items;
    let baked = |pod: &Pod| BakedPod { name: pod.metadata.full_name(), is_static: pods::is_static(pod), owner: pods::owner(pod) };
    let dns: Option<Service> = api.get("/api/v1/namespaces/kube-system/services/kube-dns").ok();
    let dns = dns.and_then(|service| service.spec.cluster_ip.parse().ok());
    let bake = "/proc/sys/kernel/random/uuid";
    Ok(Cluster {
        bake: fs::read_to_string(bake).map_err(|cause| Error::io("read", bake, cause))?.trim().to_string(),
        kubernetes_version: version.to_string(),
        static_ip,
        pause_image: pause.to_string(),
        containerd_form: form,
        network: network.clone(),
        certificate_names: names,
        dns,
        pods: list.iter().map(baked).collect(),
        containers: list.iter().flat_map(pods::container_ids).chain(containerd::pod_containers(None)?).collect(),
    })
}

/// Stops the cluster so that its next start finds nothing half done: kubelet, then the controllers while they can
/// still write to the API server, then the API server, and etcd last.
pub fn stop_cluster(init: &Init, api: &Api) -> Result<()> {
    init.end_cluster();
    // First, because it would start whatever ends.
    STOP_ORDER.iter().filter(|step| step.daemon == KUBELET).for_each(|step| stop::stop_daemon(init, step));
    for name in ["kube-scheduler", "kube-controller-manager"] {
        end_container(name)?;
    }
    for lease in LEASES {
        api.delete(&format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{lease}"))?;
    }
    kill_container("kube-apiserver")?;
    for container in running("etcd")? {
        Etcd::new(&container).rewrite()?;
    }
    // It closes its log, so the next start does not have to repair it.
    end_container("etcd")?;
    etcd::adopt()?;
    containerd::end_pod_containers()?;
    let docker = reaper::run(Command::new("docker").args(["ps", "--all", "--quiet"]))?;
    for id in docker.lines() {
        reaper::run(Command::new("docker").args(["rm", "--force", id]))?;
    }
    // CRI's names are the only ones left on images that hooks have since rebuilt.
    image_names::tidy()?;
    // Otherwise BuildKit's cache would stay: dockerd keeps it with leases, which outlive dockerd.
    STOP_ORDER.iter().filter(|step| step.daemon == DOCKERD).for_each(|step| stop::stop_daemon(init, step));
    containerd::delete_leases()?;
    containerd::collect_garbage()?;
    images::flatten()?;
    images::keep()?;
    images::save_names()?;
    stop::everything(init, &STOP_ORDER);
    match cgroup::processes_of_pods().as_slice() {
        [] => Ok(()),
        left => Err(Error::new(format!("processes of pods are left: {left:?}"))),
    }
}

/// Asks a container's process to end, and waits until it has.
fn end_container(name: &str) -> Result<()> {
    for id in running(name)? {
        ctr(&["tasks", "kill", "--signal", "SIGTERM", &id])?;
    }
    let ended = reaper::poll(POLL, END_LIMIT, || running(name).is_ok_and(|ids| ids.is_empty()).then_some(()));
    ended.ok_or_else(|| Error::new(format!("{name} did not end within {} s of SIGTERM", END_LIMIT.as_secs())))
}

/// Kills a container that has nothing to lose and would otherwise wait for its clients.
fn kill_container(name: &str) -> Result<()> {
    running(name)?.iter().try_for_each(|id| ctr(&["tasks", "kill", "--signal", "SIGKILL", id]).map(drop))
}

fn running(name: &str) -> Result<Vec<String>> {
    let ids = containerd::pod_containers(Some((CONTAINER_NAME, name)))?;
    let tasks = ctr(&["tasks", "ls"])?;
    let is_running = |id: &String| tasks.lines().any(|line| line.starts_with(id.as_str()) && line.contains("RUNNING"));
    Ok(ids.into_iter().filter(is_running).collect())
}

/// Removes what must not be in the image: the hooks and the traces of the bake.
pub fn clean_up(init: &Init) -> Result<()> {
    directories::save_seeds()?;
    init.readiness.clear()?;
    for path in [
        "/hooks",
        hooks::IMAGES,
        LOG_DIR,
        STATE_DIR,
        "/var/log/containers",
        "/etc/kubernetes/tmp",
        // 40 to 75 MB that only a bake needs.
        "/usr/local/bin/kubeadm",
    ] {
        let removed = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(_) => Ok(()),
        };
        removed.map_err(|cause| Error::io("remove", path, cause))?;
    }
    // So that the image can also be a job's image.
    let wait = Path::new(BIN_DIR).join(WAIT_SCRIPT);
    let written = fs::write(&wait, WAIT_SCRIPT_TEXT).and_then(|()| fs::set_permissions(&wait, Permissions::from_mode(0o755)));
    written.map_err(|cause| Error::io("write", wait, cause))
}

/// Writes the bake's last file: an image has a cluster if and only if it has this file.
pub fn write(cluster: &Cluster) -> Result<()> {
    fs::write(CLUSTER_FILE, cluster.to_json() + "\n").map_err(|cause| Error::io("write", CLUSTER_FILE, cause))
}
