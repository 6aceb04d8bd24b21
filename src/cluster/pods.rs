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

/// Why a pod is not ready in words for people: `state`, and what kubelet and the scheduler say besides.
pub fn explain(pod: &Value, baked: &BTreeSet<String>) -> State {
    let Err(why) = state(pod, baked) else { return Ok(()) };
    let mut words = vec![why];
    for status in ["initContainerStatuses", "containerStatuses"].iter().flat_map(|list| statuses(pod, list)) {
        words.extend(message(status.pointer("/state/waiting")));
        if let Some(ended) = status.pointer("/lastState/terminated").or_else(|| status.pointer("/state/terminated")) {
            let code = ended.get("exitCode").and_then(Value::as_i64).filter(|code| *code != 0);
            words.extend(code.map(|code| format!("it ended with status {code}")));
            words.extend(message(Some(ended)));
        }
    }
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let unscheduled = |condition: &&Value| condition.get("type").and_then(Value::as_str) == Some("PodScheduled");
    words.extend(conditions.filter(unscheduled).filter_map(|condition| message(Some(condition))));
    words.dedup();
    Err(words.join("; "))
}

/// The first line of a message; the rest of a long one is for `kubectl describe`.
fn message(of: Option<&Value>) -> Option<String> {
    const LONGEST: usize = 300;
    let text = of?.get("message")?.as_str()?.lines().next()?;
    (!text.is_empty()).then(|| text.chars().take(LONGEST).collect())
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

    #[test]
    fn a_pod_is_explained_with_the_words_of_those_who_know() {
        let unscheduled = json!({"status": {"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient memory."},
        ]}});
        assert_eq!(explain(&unscheduled, &baked()), Err("not started; 0/1 nodes are available: 1 Insufficient memory.".into()));
        let mut crashing = pod("new", "False");
        crashing["status"]["containerStatuses"][0]["state"] =
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s\nx"}});
        crashing["status"]["containerStatuses"][0]["lastState"] = json!({"terminated": {"exitCode": 3, "reason": "Error"}});
        assert_eq!(explain(&crashing, &baked()), Err("not Ready; back-off 10s; it ended with status 3".into()));
        assert_eq!(explain(&pod("new", "True"), &baked()), Ok(()));
    }
}
