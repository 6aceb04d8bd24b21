//! The baked cluster: what the bake wrote down of it, and what its API server says now.

pub mod api;
pub mod control_plane;
pub mod dns;
pub mod etcd;
pub mod kubeconfig;
pub mod load_balancer;
pub mod monitor;
pub mod pods;
pub mod postmortem;
pub mod wait;

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{json, Value};

use crate::error::{Error, Result};

/// What the image holds, as written to `/kind/cluster.json` by the bake.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// A name for this bake alone, to recognise a volume that comes back.
    pub bake: String,
    pub kubernetes_version: String,
    pub static_ip: Ipv4Addr,
    pub pause_image: String,
    /// Every name and address in the API server's certificate.
    pub certificate_names: Vec<String>,
    /// Where pods ask for names, when the cluster has a DNS.
    pub dns: Option<Ipv4Addr>,
    pub pods: Vec<Pod>,
    /// Ids of the bake's containers: a pod with one of these was not started in this boot.
    pub containers: BTreeSet<String>,
}

/// A pod that the bake left in etcd.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// `namespace/name`
    pub name: String,
    /// Made by kubelet from a file: it has the same name in every boot.
    pub is_static: bool,
}

impl Cluster {
    /// Reads the description, or `None` in an image without a cluster.
    pub fn load(path: &Path) -> Result<Option<Cluster>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::io("read", path, cause)),
        };
        let broken = |what: &str| {
            Error::new(format!("{} is broken: {what}", path.display())).advise("Bake the image anew with this version of kind")
        };
        let value: Value = serde_json::from_str(&text).map_err(|cause| broken(&cause.to_string()))?;
        Cluster::from_json(&value).map(Some).ok_or_else(|| broken("a field is missing"))
    }

    fn from_json(value: &Value) -> Option<Cluster> {
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_string());
        let list = |name: &str| value.get(name)?.as_array().map(|items| items.iter().filter_map(|item| Some(item.as_str()?.to_string())));
        let pod = |item: &Value| Some(Pod { name: item.get("name")?.as_str()?.into(), is_static: item.get("static")?.as_bool()? });
        Some(Cluster {
            bake: text("bake")?,
            kubernetes_version: text("kubernetesVersion")?,
            static_ip: text("staticIP")?.parse().ok()?,
            pause_image: text("pauseImage")?,
            certificate_names: list("certificateNames")?.collect(),
            dns: text("dns").and_then(|address| address.parse().ok()),
            pods: value.get("pods")?.as_array()?.iter().map(pod).collect::<Option<_>>()?,
            containers: list("containers")?.collect(),
        })
    }

    pub fn to_json(&self) -> Value {
        json!({
            "bake": self.bake,
            "kubernetesVersion": self.kubernetes_version,
            "staticIP": self.static_ip.to_string(),
            "pauseImage": self.pause_image,
            "certificateNames": self.certificate_names,
            "dns": self.dns.map(|address| address.to_string()),
            "pods": self.pods.iter().map(|pod| json!({"name": pod.name, "static": pod.is_static})).collect::<Vec<_>>(),
            "containers": self.containers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_survives_being_written_and_read() {
        let cluster = Cluster {
            bake: "b1".into(),
            kubernetes_version: "v1.36.2".into(),
            static_ip: Ipv4Addr::new(172, 99, 99, 1),
            pause_image: "registry.k8s.io/pause:3.10".into(),
            certificate_names: vec!["localhost".into(), "kind".into()],
            dns: Some(Ipv4Addr::new(10, 96, 0, 10)),
            pods: vec![Pod { name: "kube-system/etcd-kind".into(), is_static: true }],
            containers: ["a".to_string()].into(),
        };
        assert_eq!(Cluster::from_json(&cluster.to_json()), Some(cluster.clone()));
        let without_dns = Cluster { dns: None, ..cluster };
        assert_eq!(Cluster::from_json(&without_dns.to_json()), Some(without_dns));
        assert_eq!(Cluster::from_json(&json!({"bake": "b1"})), None);
    }
}
