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
use crate::cluster::objects::{List, Metadata, Pod, Service};
use crate::cluster::{pods, BakedPod, Cluster};
use crate::config::{CLUSTER_FILE, LOG_DIR, NODE_NAME, STATE_DIR};
use crate::daemons::containerd;
use crate::daemons::containerd_config::Form;
use crate::error::{Error, Result};
use crate::node::cluster_network::ClusterNetwork;
use crate::node::{cgroup, directories};
use crate::readiness::files::{WAIT_SCRIPT, WAIT_SCRIPT_TEXT};
use crate::supervisor::reaper;
use crate::supervisor::Init;

const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";
/// Where kubelet renews its own, which nobody waits for.
const NODE_LEASES: &str = "kube-node-lease";

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

/// Stops the pods, and removes the leases that they and the controllers have left: whoever elects a leader would wait until
/// they are over. kubelet must have stopped.
pub fn stop_workloads(api: &Api, cluster: &Cluster) -> Result<()> {
    control_plane::kill_workloads()?;
    for name in ["kube-scheduler", "kube-controller-manager"] {
        control_plane::end(name)?;
    }
    for path in leaders_leases(&api.get(LEASES)?, &cluster.pods) {
        // A webhook whose pod has just been stopped may refuse it.
        if let Err(error) = api.delete(&path) {
            log::warn!(target: "bake", "a lease stays in the image, and the next leader waits until it is over: {error}");
        }
    }
    Ok(())
}

/// A lease, of which only its holder matters here.
#[derive(serde::Deserialize)]
struct Lease {
    metadata: Metadata,
    #[serde(default)]
    spec: LeaseSpec,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct LeaseSpec {
    #[serde(rename = "holderIdentity")]
    holder: Option<String>,
}

/// The paths of the leases that pods hold to elect a leader: client-go names a holder `HOST_UUID`, and a pod's host name is
/// its own, or the node's. Other leases may be somebody's data, and nodes have theirs.
fn leaders_leases(leases: &List<Lease>, pods: &[BakedPod]) -> Vec<String> {
    let is_pod = |host: &str| host == NODE_NAME || pods.iter().any(|pod| pod.name.split_once('/').is_some_and(|(_, name)| name == host));
    let holds = |lease: &&Lease| lease.spec.holder.as_ref().is_some_and(|holder| is_pod(holder.split('_').next().unwrap_or_default()));
    let leases = leases.items.iter().filter(holds).map(|lease| &lease.metadata).filter(|lease| lease.namespace != NODE_LEASES);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaders_lease_goes_and_a_nodes_and_anybodys_data_stay() {
        let lease = |namespace: &str, name: &str, holder: Option<&str>| serde_json::json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"holderIdentity": holder}});
        let path = |namespace: &str, name: &str| format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}");
        let pods = [BakedPod { name: "cert-manager/controller-1".into(), is_static: false, owner: None }];
        for (leases, paths) in [
            (vec![], vec![]),
            (vec![lease("kube-node-lease", "kind", Some("kind"))], vec![]),
            (vec![lease("kube-system", "apiserver-1", Some("apiserver-1_2")), lease("cluster1", "managed-cluster-lease", None)], vec![]),
            (
                vec![
                    lease("kube-system", "kube-scheduler", Some("kind_1")),
                    lease("cert-manager", "controller", Some("controller-1_2")),
                    lease("cert-manager", "data", Some("controller-2_3")),
                ],
                vec![path("kube-system", "kube-scheduler"), path("cert-manager", "controller")],
            ),
        ] {
            let list = serde_json::from_value(serde_json::json!({"items": leases})).unwrap();
            assert_eq!(leaders_leases(&list, &pods), paths);
        }
    }
}
