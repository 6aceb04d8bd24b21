//! The fields of the API's objects that we use. serde skips all others, so that a list of thousands of pods takes
//! little memory. Field names are those of the API.
//! <https://kubernetes.io/docs/reference/kubernetes-api/>

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Go encodes a nil slice or map as `null` unless the field is `omitempty`.
fn null_is_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub struct List<T> {
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default = "Vec::new", deserialize_with = "null_is_empty")]
    pub items: Vec<T>,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub struct Event<T> {
    #[serde(rename = "type")]
    pub kind: String,
    pub object: T,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub generation: u64,
    /// `null` in kubelet's own list of pods.
    #[serde(deserialize_with = "null_is_empty")]
    pub creation_timestamp: String,
    pub deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub owner_references: Vec<OwnerReference>,
}

impl Metadata {
    /// `namespace/name`
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct OwnerReference {
    pub kind: String,
    pub name: String,
    pub controller: bool,
}

/// An object of any kind.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Meta {
    pub metadata: Metadata,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: Metadata,
    pub status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    pub phase: String,
    pub reason: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(deserialize_with = "null_is_empty")]
    pub init_container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "null_is_empty")]
    pub container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerStatus {
    pub name: String,
    /// `containerd://ID`, or empty if there is no container yet.
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub state: ContainerState,
    pub last_state: ContainerState,
}

impl ContainerStatus {
    /// The container's id without the runtime's prefix, if there is a container.
    pub fn id(&self) -> Option<&str> {
        self.container_id.split("://").last().filter(|id| !id.is_empty())
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub running: Option<serde::de::IgnoredAny>,
    pub waiting: Option<Reason>,
    pub terminated: Option<Reason>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Reason {
    pub reason: String,
    pub message: String,
    /// Only for a container that has terminated.
    pub exit_code: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    pub status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    #[serde(deserialize_with = "null_is_empty")]
    pub conditions: Vec<Condition>,
}

/// A Deployment, StatefulSet or DaemonSet.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Workload {
    pub metadata: Metadata,
    pub spec: WorkloadSpec,
    pub status: WorkloadStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WorkloadSpec {
    pub replicas: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WorkloadStatus {
    pub observed_generation: u64,
    pub ready_replicas: u64,
    /// This and the next are set only for a DaemonSet.
    pub desired_number_scheduled: u64,
    pub number_ready: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    pub metadata: Metadata,
    pub spec: ServiceSpec,
    pub status: ServiceStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    pub load_balancer_class: Option<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ServicePort {
    #[serde(default = "tcp")]
    pub protocol: String,
    pub port: u16,
}

fn tcp() -> String {
    "TCP".into()
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus {
    pub load_balancer: LoadBalancerStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    #[serde(deserialize_with = "null_is_empty")]
    pub ingress: Vec<Ingress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ingress {
    pub ip: String,
    pub hostname: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_null_fields_are_empty_and_unknown_ones_are_skipped() {
        let list: List<Pod> = serde_json::from_str(r#"{"metadata": {"resourceVersion": "7"}, "items": null}"#).unwrap();
        assert_eq!((list.metadata.resource_version.as_str(), list.items.len()), ("7", 0));
        let pod = r#"{"metadata": {"name": "a", "creationTimestamp": null, "managedFields": [1]}, "status": {"conditions": null, "podIP": "1.2.3.4"}}"#;
        let pod: Pod = serde_json::from_str(pod).unwrap();
        assert_eq!((pod.metadata.full_name().as_str(), pod.status.conditions.len()), ("/a", 0));
        assert!(serde_json::from_str::<Pod>("7").is_err());
    }
}
