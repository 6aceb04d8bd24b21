//! The orderly end of the bake: the committed state must look as if nothing was interrupted.

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::bake::bundle::BIN_DIR;
use crate::bake::etcd::{self, Etcd};
use crate::bake::{control_plane, hooks, images};
use crate::cluster::api::Api;
use crate::cluster::objects::{List, Meta, Pod, Service};
use crate::cluster::{pods, BakedPod, Cluster};
use crate::config::{CLUSTER_FILE, LOG_DIR, STATE_DIR};
use crate::daemons::containerd;
use crate::daemons::containerd_config::Form;
use crate::error::{Error, Result};
use crate::node::{cgroup, cluster_network, scratch};
use crate::readiness::files::{WAIT_SCRIPT, WAIT_SCRIPT_TEXT};
use crate::supervisor::reaper;
use crate::supervisor::Init;

const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";
/// Where kubelet renews its own, which nobody waits for.
const NODE_LEASES: &str = "kube-node-lease";

/// Records what the next boot needs to find.
pub fn describe(api: &Api, version: &str, static_ip: Ipv4Addr, pause: &str, form: Form, names: Vec<String>) -> Result<Cluster> {
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
        network: cluster_network::current().clone(),
        certificate_names: names,
        dns,
        pods: list.iter().map(baked).collect(),
        containers: list.iter().flat_map(pods::container_ids).chain(containerd::pod_containers(None)?).collect(),
    })
}

/// Stops the pods, and removes the leases that they and the controllers have left: whoever elects a leader would wait until
/// they are over. kubelet must have stopped.
pub fn stop_workloads(api: &Api) -> Result<()> {
    control_plane::kill_workloads()?;
    for name in ["kube-scheduler", "kube-controller-manager"] {
        control_plane::end(name)?;
    }
    for path in leaders_leases(&api.get(LEASES)?) {
        // A webhook whose pod has just been stopped may refuse it.
        if let Err(error) = api.delete(&path) {
            log::warn!(target: "bake", "a lease stays in the image, and the next leader waits until it is over: {error}");
        }
    }
    Ok(())
}

/// The paths of all leases but nodes'.
fn leaders_leases(leases: &List<Meta>) -> Vec<String> {
    let leases = leases.items.iter().map(|lease| &lease.metadata).filter(|lease| lease.namespace != NODE_LEASES);
    leases.map(|lease| format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases/{}", lease.namespace, lease.name)).collect()
}

/// Stops the API server and etcd, whose data has then lost what was deleted. No client may run.
pub fn stop_control_plane() -> Result<()> {
    control_plane::kill("kube-apiserver")?;
    Etcd::running()?.rewrite()?;
    // It closes its log, so the next start does not have to repair it.
    control_plane::end("etcd")?;
    etcd::adopt()
}

/// Removes every container and sandbox, kubelet's and Docker's.
pub fn remove_containers() -> Result<()> {
    containerd::end_pod_containers()?;
    let docker = reaper::run(Command::new("docker").args(["ps", "--all", "--quiet"]))?;
    docker.lines().try_for_each(|id| reaper::run(Command::new("docker").args(["rm", "--force", id])).map(drop))
}

/// Leaves in containerd what the image is to have: each image in a form that a commit can keep, and nothing else.
/// dockerd must have stopped, since it keeps BuildKit's cache with leases, which outlive it.
pub fn settle_images() -> Result<()> {
    containerd::delete_leases()?;
    containerd::collect_garbage()?;
    images::flatten()?;
    images::keep()?;
    images::save_names()
}

/// Fails if a pod has left processes behind, which would run on beside what is saved.
pub fn require_no_processes() -> Result<()> {
    match cgroup::processes_of_pods().as_slice() {
        [] => Ok(()),
        left => Err(Error::new(format!("processes of pods are still running: {left:?}"))),
    }
}

/// Removes what must not be in the image: the hooks and the traces of the bake.
pub fn clean_up(init: &Init) -> Result<()> {
    scratch::save_seeds()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaders_lease_goes_and_a_nodes_stays() {
        let lease = |namespace: &str, name: &str| serde_json::json!({"metadata": {"namespace": namespace, "name": name}});
        let path = |namespace: &str, name: &str| format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}");
        for (leases, paths) in [
            (vec![], vec![]),
            (vec![lease("kube-node-lease", "kind")], vec![]),
            (
                vec![lease("kube-system", "kube-scheduler"), lease("kube-node-lease", "kind"), lease("cert-manager", "controller")],
                vec![path("kube-system", "kube-scheduler"), path("cert-manager", "controller")],
            ),
        ] {
            let list = serde_json::from_value(serde_json::json!({"items": leases})).unwrap();
            assert_eq!(leaders_leases(&list), paths);
        }
    }
}
