//! The orderly end of a cluster that is saved: what is saved must look as if nothing was interrupted.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::cluster::api::Api;
use crate::cluster::objects::{List, Metadata, Pod, Service};
use crate::cluster::{pods, BakedPod, Cluster, API_SERVER, CONTROLLERS, ETCD};
use crate::config::{DOCKER_SOCKET, NODE_NAME};
use crate::daemons::containerd;
use crate::error::{Error, Result};
use crate::files;
use crate::node::cgroup;
use crate::node::state_dir::StateDir;
use crate::save::etcd::{self, Etcd};
use crate::save::{control_plane, images, probes};
use crate::supervisor::reaper;

const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";
/// Where kubelet renews its own, which nobody waits for.
const NODE_LEASES: &str = "kube-node-lease";

/// Records what a start needs to find, in place of what `cluster` has of it.
pub fn describe(api: &Api, cluster: Cluster) -> Result<Cluster> {
    let list: Vec<Pod> = api.get::<List<Pod>>("/api/v1/pods")?.items;
    let baked = |pod: &Pod| BakedPod { name: pod.metadata.full_name(), is_static: pods::is_static(pod), owner: pods::owner(pod) };
    let dns: Option<Service> = api.get("/api/v1/namespaces/kube-system/services/kube-dns").ok();
    let bake = "/proc/sys/kernel/random/uuid";
    Ok(Cluster {
        bake: fs::read_to_string(bake).map_err(|cause| Error::io("read", bake, cause))?.trim().to_string(),
        dns: dns.and_then(|service| service.spec.cluster_ip.parse().ok()),
        pods: list.iter().map(baked).collect(),
        containers: list.iter().flat_map(pods::container_ids).chain(containerd::pod_containers(None)?).collect(),
        ..cluster
    })
}

/// Stops the pods, and prepares what is saved of them: without the leases that they and the controllers have left, since whoever
/// elects a leader would wait until they are over, without Events, and with probes for which no start waits. kubelet must have
/// stopped.
pub fn stop_workloads(api: &Api, cluster: &Cluster) -> Result<()> {
    control_plane::kill_workloads()?;
    for name in CONTROLLERS {
        control_plane::end(name)?;
    }
    // No controller sees it.
    probes::quicken(api)?;
    for path in leaders_leases(&api.get(LEASES)?, &cluster.pods) {
        // A webhook whose pod has just been stopped may refuse it.
        if let Err(error) = api.delete(&path) {
            log::warn!(target: "save", "a leader's lease cannot be deleted, so the next leader waits until it expires: {error}");
        }
    }
    delete_events(api);
    Ok(())
}

/// Deletes Events, which tell of this node and would be taken for the next one's. No save is worth failing for one.
pub fn delete_events(api: &Api) {
    /// An object, of which only this matters here.
    #[derive(serde::Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    let warn = |error| log::warn!(target: "save", "Events from before the save remain in the saved cluster: {error}");
    let events: List<Object> = match api.get("/api/v1/events") {
        Ok(events) => events,
        Err(error) => return warn(error),
    };
    let namespaces: BTreeSet<String> = events.items.into_iter().map(|event| event.metadata.namespace).collect();
    for namespace in namespaces {
        if let Err(error) = api.delete(&format!("/api/v1/namespaces/{namespace}/events")) {
            warn(error);
        }
    }
}

/// A lease, of which only this matters here.
#[derive(serde::Deserialize)]
struct Lease {
    metadata: Metadata,
    #[serde(default)]
    spec: LeaseSpec,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct LeaseSpec {
    #[serde(rename = "holderIdentity")]
    holder: Option<String>,
    acquire_time: Option<String>,
    lease_transitions: Option<u64>,
}

/// The paths of the leases that are held to elect a leader. Whatever the holder calls itself (client-go's own example takes a
/// bare UUID), client-go writes since when, and how often the leader has changed, which no lease has that only says that
/// somebody is alive: those of nodes, and of the clusters of a hub. Where that is missing, the holder is a pod if it is called
/// `HOST_UUID`, and a pod's host name is its own, or the node's. Other leases may be somebody's data.
fn leaders_leases(leases: &List<Lease>, pods: &[BakedPod]) -> Vec<String> {
    let is_pod = |host: &str| host == NODE_NAME || pods.iter().any(|pod| pod.name.split_once('/').is_some_and(|(_, name)| name == host));
    let elects = |lease: &&Lease| {
        let LeaseSpec { holder, acquire_time, lease_transitions } = &lease.spec;
        let holder = holder.as_deref().unwrap_or_default();
        let was_elected = acquire_time.is_some() && lease_transitions.is_some();
        !holder.is_empty() && (was_elected || is_pod(holder.split('_').next().unwrap_or_default()))
    };
    let leases = leases.items.iter().filter(elects).map(|lease| &lease.metadata).filter(|lease| lease.namespace != NODE_LEASES);
    leases.map(|lease| format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases/{}", lease.namespace, lease.name)).collect()
}

/// Stops the API server and etcd, whose data has then lost what was deleted. No client may run.
pub fn stop_control_plane() -> Result<()> {
    control_plane::kill(API_SERVER)?;
    Etcd::running()?.rewrite()?;
    // It closes its log, so the next start does not have to repair it.
    control_plane::end(ETCD)?;
    etcd::adopt()
}

/// Removes every container and sandbox, kubelet's and Docker's.
pub fn remove_containers() -> Result<()> {
    containerd::end_pod_containers()?;
    docker(&["ps", "--all", "--quiet"])?.lines().try_for_each(|id| docker(&["rm", "--force", id]).map(drop))
}

/// Removes images that lost their name to a newer build, which would only make the image larger.
pub fn prune_images() -> Result<()> {
    docker(&["image", "prune", "--force"]).map(drop)
}

/// Whatever root's own settings say of another Docker.
fn docker(arguments: &[&str]) -> Result<String> {
    reaper::run(Command::new("docker").args(["--host", &format!("unix://{DOCKER_SOCKET}")]).args(arguments))
}

/// Leaves in containerd what the image is to have: each image in a form that a commit can keep, and nothing else.
/// dockerd must have stopped, since it keeps BuildKit's cache with leases, which outlive it.
pub fn settle_images(state: &StateDir) -> Result<()> {
    containerd::delete_leases()?;
    images::remove_interrupted()?;
    containerd::collect_garbage()?;
    images::flatten()?;
    images::keep()?;
    images::save_names(state)
}

/// Fails if a pod has left processes behind, which would run on beside what is saved.
pub fn require_no_processes() -> Result<()> {
    match cgroup::processes_of_pods().as_slice() {
        [] => Ok(()),
        left => Err(Error::new(format!("processes of pods are still running: {left:?}"))),
    }
}

/// Writes the last file: there is a cluster if and only if there is this file.
pub fn write(state: &StateDir, cluster: &Cluster) -> Result<()> {
    files::write(state.cluster_file(), cluster.to_json() + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaders_lease_goes_and_a_nodes_and_anybodys_data_stay() {
        let lease = |namespace: &str, name: &str, holder: Option<&str>| serde_json::json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"holderIdentity": holder}});
        let elected = |mut lease: serde_json::Value| {
            lease["spec"]["acquireTime"] = "2026-11-30T06:00:00.000000Z".into();
            lease["spec"]["leaseTransitions"] = 0.into();
            lease
        };
        let heartbeat = |mut lease: serde_json::Value| {
            lease["spec"]["renewTime"] = "2026-11-30T06:00:00.000000Z".into();
            lease["spec"]["leaseDurationSeconds"] = 60.into();
            lease
        };
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
            (
                vec![
                    elected(lease("apps", "uuid", Some("0b0f9b0e-2f5e-4a52-9d6a-1f1b8f0c7a11"))),
                    elected(lease("apps", "released", Some(""))),
                    heartbeat(lease("karmada-cluster", "member1", Some("member1"))),
                ],
                vec![path("apps", "uuid")],
            ),
        ] {
            let list = serde_json::from_value(serde_json::json!({"items": leases})).unwrap();
            assert_eq!(leaders_leases(&list, &pods), paths);
        }
    }
}
