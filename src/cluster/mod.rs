//! The baked cluster: its description from the bake, and what its API server reports now.

mod alive;
pub mod api;
pub mod certificates;
mod dns;
mod events;
mod handshake;
pub mod kubeconfig;
pub mod kubectl;
pub mod load_balancer;
pub mod monitor;
mod network_policies;
mod node;
pub mod objects;
pub mod pods;
pub mod postmortem;
mod resync;
pub mod wait;
mod watcher;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::daemons::containerd_config::Form;
use crate::error::{Error, Result};
use crate::files;
use crate::node::cluster_network::ClusterNetwork;

pub const ETCD: &str = "etcd";
pub const API_SERVER: &str = "kube-apiserver";
pub const CONTROLLER_MANAGER: &str = "kube-controller-manager";
pub const SCHEDULER: &str = "kube-scheduler";
/// The programs that need the API server.
pub const CONTROLLERS: [&str; 2] = [CONTROLLER_MANAGER, SCHEDULER];
/// The programs of the control plane, in the order in which they start. Each is also the name of its static pod.
pub const PROGRAMS: [&str; 4] = [ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER];

/// The cluster in the image, as the bake describes it in `/kind/cluster.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// A unique name of this bake, by which a volume from an earlier start is recognised.
    pub bake: String,
    pub kubernetes_version: String,
    #[serde(rename = "staticIP")]
    pub static_ip: Ipv4Addr,
    pub pause_image: String,
    /// The form of the configuration that the image's containerd wants. Asking it at each start would take time.
    #[serde(default)]
    pub containerd_form: Form,
    pub network: ClusterNetwork,
    /// Every name and address in the API server's baked certificate.
    pub certificate_names: Vec<String>,
    /// The address of the cluster's DNS Service, if it has one.
    pub dns: Option<Ipv4Addr>,
    pub pods: Vec<BakedPod>,
    /// Ids of the bake's containers: a pod with one of them has not been started in this boot.
    pub containers: BTreeSet<String>,
}

/// A pod that the bake has left in etcd.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct BakedPod {
    /// `namespace/name`
    pub name: String,
    /// Whether kubelet makes it from a file, under the same name in every boot.
    #[serde(rename = "static")]
    pub is_static: bool,
    /// The controller that replaces the pod when it is gone (`pods::owner`).
    #[serde(default)]
    pub owner: Option<String>,
}

impl Cluster {
    /// Reads the description. `None` in an image without a cluster.
    pub fn load(path: &Path) -> Result<Option<Cluster>> {
        let Some(text) = files::read_if_there(path)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|cause| {
            Error::new(format!("{} is not valid: {cause}", path.display())).advise("Bake the image again with this version of kind")
        })
    }

    /// Whether a start brings up a pod of that name.
    pub fn has_baked(&self, name: &str) -> bool {
        self.pods.iter().any(|pod| pod.name == name)
    }

    /// The text that `load` reads.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings, numbers and lists can always be written as JSON")
    }
}

#[cfg(test)]
pub mod tests {
    use std::fs;

    use super::*;

    pub fn cluster() -> Cluster {
        Cluster {
            bake: "b1".into(),
            kubernetes_version: "v1.36.2".into(),
            static_ip: Ipv4Addr::new(172, 99, 99, 1),
            pause_image: "registry.k8s.io/pause:3.10".into(),
            containerd_form: Form::V3,
            network: ClusterNetwork::default(),
            certificate_names: vec!["localhost".into(), "kind".into()],
            dns: Some(Ipv4Addr::new(10, 96, 0, 10)),
            pods: vec![
                BakedPod { name: "kube-system/etcd-kind".into(), is_static: true, owner: None },
                BakedPod { name: "default/app-1".into(), is_static: false, owner: Some("Deployment default/app".into()) },
            ],
            containers: ["a".to_string()].into(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let path = std::env::temp_dir().join(format!("kind-cluster-{}.json", std::process::id()));
        for cluster in [cluster(), Cluster { dns: None, ..cluster() }] {
            fs::write(&path, cluster.to_json()).unwrap();
            assert_eq!(Cluster::load(&path).unwrap(), Some(cluster));
        }
        fs::write(&path, r#"{"bake": "b1"}"#).unwrap();
        let message = Cluster::load(&path).unwrap_err().to_string();
        assert!(message.contains("missing field") && message.contains("Bake the image again"), "{message}");
        fs::remove_file(&path).unwrap();
        assert_eq!(Cluster::load(&path).unwrap(), None);
    }
}
