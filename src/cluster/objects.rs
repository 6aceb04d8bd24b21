//! The fields of the API's objects that we use. serde skips all others, so that a list of thousands of pods takes
//! little memory. Field names are those of the API.
//! <https://kubernetes.io/docs/reference/kubernetes-api/>

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

/// Go encodes a nil slice or map as `null` unless the field is `omitempty`.
fn null_is_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Declares objects, each of whose fields may be missing or `null`, and is empty then.
macro_rules! objects {
    ($($(#[$about:meta])* $name:ident { $($(#[$of_field:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub struct $name {
            $($(#[$of_field])* #[serde(deserialize_with = "null_is_empty")] pub $field: $type,)*
        }
    )*};
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

objects! {
    Metadata {
        namespace: String,
        name: String,
        uid: String,
        resource_version: String,
        generation: u64,
        creation_timestamp: String,
        deletion_timestamp: Option<String>,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        owner_references: Vec<OwnerReference>,
    }

    OwnerReference {
        kind: String,
        name: String,
        controller: bool,
    }

    /// An object of any kind.
    Meta {
        metadata: Metadata,
    }

    Pod {
        metadata: Metadata,
        status: PodStatus,
    }

    PodStatus {
        phase: String,
        reason: String,
        conditions: Vec<Condition>,
        init_container_statuses: Vec<ContainerStatus>,
        container_statuses: Vec<ContainerStatus>,
    }

    Condition {
        #[serde(rename = "type")]
        kind: String,
        status: String,
        reason: String,
        message: String,
    }

    ContainerStatus {
        name: String,
        /// `containerd://ID`, or empty if there is no container yet.
        #[serde(rename = "containerID")]
        container_id: String,
        state: ContainerState,
        last_state: ContainerState,
    }

    ContainerState {
        running: Option<IgnoredAny>,
        waiting: Option<Reason>,
        terminated: Option<Reason>,
    }

    Reason {
        reason: String,
        message: String,
        /// Only for a container that has terminated.
        exit_code: i64,
    }

    Node {
        status: NodeStatus,
    }

    NodeStatus {
        conditions: Vec<Condition>,
    }

    /// A Deployment, StatefulSet or DaemonSet.
    Workload {
        metadata: Metadata,
        spec: WorkloadSpec,
        status: WorkloadStatus,
    }

    WorkloadSpec {
        replicas: u64,
    }

    WorkloadStatus {
        observed_generation: u64,
        ready_replicas: u64,
        /// This and the next are set only for a DaemonSet.
        desired_number_scheduled: u64,
        number_ready: u64,
    }

    Service {
        metadata: Metadata,
        spec: ServiceSpec,
        status: ServiceStatus,
    }

    ServiceSpec {
        #[serde(rename = "type")]
        kind: String,
        #[serde(rename = "clusterIP")]
        cluster_ip: String,
        load_balancer_class: Option<String>,
        ports: Vec<ServicePort>,
    }

    ServicePort {
        protocol: String,
        port: u16,
    }

    ServiceStatus {
        load_balancer: LoadBalancerStatus,
    }

    LoadBalancerStatus {
        ingress: Vec<Ingress>,
    }

    Ingress {
        ip: String,
        hostname: String,
    }
}

impl Metadata {
    /// `namespace/name`
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl ContainerStatus {
    /// The container's id without the runtime's prefix, if there is a container.
    pub fn id(&self) -> Option<&str> {
        self.container_id.split("://").last().filter(|id| !id.is_empty())
    }
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
