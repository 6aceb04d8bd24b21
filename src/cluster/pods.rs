//! Whether a pod runs in this boot, from what the API server says of it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::cluster::{Cluster, Pod};

/// Why a pod is not ready, or nothing when it is.
pub type State = Result<(), String>;

/// `namespace/name` of a pod.
pub fn name(pod: &Value) -> Option<String> {
    let metadata = pod.get("metadata")?;
    Some(format!("{}/{}", metadata.get("namespace")?.as_str()?, metadata.get("name")?.as_str()?))
}

/// Whether kubelet made the pod from a file.
pub fn is_static(pod: &Value) -> bool {
    pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some()
}

/// Ids of the pod's containers, without the runtime's prefix.
pub fn container_ids(pod: &Value) -> Vec<String> {
    ["initContainerStatuses", "containerStatuses"].iter().flat_map(|list| statuses(pod, list)).filter_map(container_id).collect()
}

/// What the API server says of a pod, given the ids of the bake's containers.
///
/// The baked etcd remembers Ready=True and Running from the build. Clocks may lie about when a
/// container started, but its id is new in every boot.
pub fn state(pod: &Value, baked: &BTreeSet<String>) -> State {
    match pod.pointer("/status/phase").and_then(Value::as_str) {
        Some("Succeeded") => return Ok(()),
        // Its owner, a Job for example, has another one in its place.
        Some("Failed") if pod.pointer("/metadata/ownerReferences/0").is_some() && !is_static(pod) => return Ok(()),
        _ => {}
    }
    let containers: Vec<&Value> = statuses(pod, "containerStatuses").collect();
    if containers.is_empty() {
        return Err(reason(pod.pointer("/status")).unwrap_or("not started").to_string());
    }
    for container in containers {
        let id = container_id(container);
        if id.is_none_or(|id| baked.contains(&id)) {
            let why = reason(container.pointer("/state/waiting")).unwrap_or("not started in this boot");
            return Err(format!("container {}: {why}", container.get("name").and_then(Value::as_str).unwrap_or("?")));
        }
    }
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let is = |condition: &&Value, field: &str, value: &str| condition.get(field).and_then(Value::as_str) == Some(value);
    match conditions.into_iter().find(|condition| is(condition, "type", "Ready")) {
        Some(ready) if is(&ready, "status", "True") => Ok(()),
        ready => Err(reason(ready).unwrap_or("not Ready").to_string()),
    }
}

/// Which of the baked pods are not ready, and why. One that the user deleted is not waited for.
pub fn waiting(cluster: &Cluster, states: &BTreeMap<String, State>) -> Vec<String> {
    let why = |pod: &Pod| match states.get(&pod.name) {
        Some(Ok(())) => None,
        Some(Err(why)) => Some(format!("{}: {why}", pod.name)),
        None => pod.is_static.then(|| format!("{}: not there", pod.name)),
    };
    cluster.pods.iter().filter_map(why).collect()
}

fn statuses<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    pod.pointer(&format!("/status/{list}")).and_then(Value::as_array).into_iter().flatten()
}

/// `containerd://ID`, where there is a container.
fn container_id(status: &Value) -> Option<String> {
    let id = status.get("containerID")?.as_str()?.split("://").last()?;
    (!id.is_empty()).then(|| id.to_string())
}

fn reason(of: Option<&Value>) -> Option<&str> {
    of?.get("reason")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(id: &str, ready: &str) -> Value {
        json!({
            "metadata": {"namespace": "kube-system", "name": "etcd-kind"},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": ready}],
                "containerStatuses": [{"name": "etcd", "containerID": format!("containerd://{id}")}],
            }
        })
    }

    fn baked() -> BTreeSet<String> {
        ["old".to_string()].into()
    }

    #[test]
    fn ready_from_the_bake_is_not_ready() {
        assert_eq!(state(&pod("old", "True"), &baked()), Err("container etcd: not started in this boot".into()));
        assert_eq!(state(&pod("new", "True"), &baked()), Ok(()));
        assert_eq!(state(&pod("new", "False"), &baked()), Err("not Ready".into()));
    }

    #[test]
    fn a_pod_that_has_done_its_work_is_not_waited_for() {
        let mut done = pod("old", "False");
        done["status"]["phase"] = json!("Succeeded");
        assert_eq!(state(&done, &baked()), Ok(()));
        done["status"]["phase"] = json!("Failed");
        assert!(state(&done, &baked()).is_err());
        done["metadata"]["ownerReferences"] = json!([{"kind": "Job", "controller": true}]);
        assert_eq!(state(&done, &baked()), Ok(()));
    }

    #[test]
    fn a_pod_without_containers_says_why() {
        let pending = json!({"status": {"phase": "Pending", "reason": "Evicted"}});
        assert_eq!(state(&pending, &baked()), Err("Evicted".into()));
        assert_eq!(state(&json!({}), &baked()), Err("not started".into()));
        let mut failing = pod("", "False");
        failing["status"]["containerStatuses"][0]["state"] = json!({"waiting": {"reason": "ImagePullBackOff"}});
        assert_eq!(state(&failing, &baked()), Err("container etcd: ImagePullBackOff".into()));
    }

    #[test]
    fn a_static_pod_must_be_there_and_another_may_be_gone() {
        let cluster = Cluster {
            bake: "b".into(),
            kubernetes_version: "v1".into(),
            static_ip: [172, 99, 99, 1].into(),
            pause_image: "pause".into(),
            certificate_names: vec![],
            dns: None,
            pods: vec![Pod { name: "kube-system/etcd-kind".into(), is_static: true }, Pod { name: "default/app".into(), is_static: false }],
            containers: baked(),
        };
        assert_eq!(waiting(&cluster, &BTreeMap::new()), ["kube-system/etcd-kind: not there"]);
        let fine = BTreeMap::from([("kube-system/etcd-kind".to_string(), Ok(()))]);
        assert!(waiting(&cluster, &fine).is_empty());
        let broken =
            BTreeMap::from([("kube-system/etcd-kind".to_string(), Ok(())), ("default/app".to_string(), Err("not Ready".to_string()))]);
        assert_eq!(waiting(&cluster, &broken), ["default/app: not Ready"]);
    }
}
