//! Whether a pod runs in this boot, according to the API server, and which pods readiness depends on.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::objects::{Condition, ContainerStatus, Pod};
use crate::cluster::{BakedPod, Cluster};

/// A ReplicaSet's name is that of its Deployment, a hyphen and the value of this label.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// `Ok` if a pod is ready, otherwise why it is not.
pub type State = Result<(), String>;

/// What we remember of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub state: State,
    pub owner: Option<String>,
    /// Ids of the containers that run, of a pod that is Ready.
    pub containers: Vec<String>,
    pub lag: Option<Lag>,
}

/// What the start waits for in a pod that kubelet can be asked to look at again: it takes no changes to a static pod from
/// the API server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lag {
    /// Its containers run, but kubelet's probes have not found all of them ready.
    Unready,
    /// Not all of its containers have been started in this boot.
    NotStarted,
}

/// The pods that readiness depends on, by `namespace/name`.
pub type Known = BTreeMap<String, Seen>;

/// kubelet's annotation of what it reports of a pod that it made from a file.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// Whether kubelet made the pod from a file.
pub fn is_static(pod: &Pod) -> bool {
    pod.metadata.annotations.contains_key(MIRROR)
}

/// The same for a pod in kubelet's own list.
pub fn is_from_file(pod: &Pod) -> bool {
    pod.metadata.annotations.get("kubernetes.io/config.source").is_some_and(|source| source == "file")
}

/// The controller that replaces the pod when it is gone, such as `Deployment default/app`. Unlike the names of its
/// pods, its own name does not change.
pub fn owner(pod: &Pod) -> Option<String> {
    let owner = pod.metadata.owner_references.iter().find(|owner| owner.controller).filter(|_| !is_static(pod))?;
    let hash = pod.metadata.labels.get(TEMPLATE_HASH);
    let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-')).filter(|_| owner.kind == "ReplicaSet");
    let (kind, name) = deployment.map_or((owner.kind.as_str(), owner.name.as_str()), |name| ("Deployment", name));
    Some(format!("{kind} {}/{name}", pod.metadata.namespace))
}

/// Ids of the pod's containers, without the runtime's prefix.
pub fn container_ids(pod: &Pod) -> Vec<String> {
    statuses(pod).filter_map(ContainerStatus::id).map(str::to_string).collect()
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.init_container_statuses.iter().chain(&pod.status.container_statuses)
}

/// None of a pod that has done its work.
fn running_containers(pod: &Pod) -> Vec<String> {
    let containers = pod.status.container_statuses.iter().filter(|_| pod.status.phase == "Running");
    containers.filter_map(ContainerStatus::id).map(str::to_string).collect()
}

/// Whether a pod is ready, given the ids of the bake's containers.
///
/// The baked etcd still has Ready=True and Running from the build. When a container was started cannot tell the
/// two apart, since clocks may be wrong; its id can, since it is new in every boot.
pub fn state(pod: &Pod, baked: &BTreeSet<String>) -> State {
    match pod.status.phase.as_str() {
        "Succeeded" => return Ok(()),
        // Its owner, a Job for example, replaces it.
        "Failed" if owner(pod).is_some() => return Ok(()),
        _ => {}
    }
    if pod.status.container_statuses.is_empty() {
        return Err(reason(Some(&pod.status.reason)).unwrap_or("not started").to_string());
    }
    for container in &pod.status.container_statuses {
        if container.id().is_none_or(|id| baked.contains(id)) {
            let why = reason(container.state.waiting.as_ref().map(|waiting| &waiting.reason)).unwrap_or("not started in this boot");
            return Err(format!("container {}: {why}", container.name));
        }
    }
    match condition(pod, "Ready") {
        Some(ready) if ready.status == "True" => Ok(()),
        ready => Err(reason(ready.map(|ready| &ready.reason)).unwrap_or("not Ready").to_string()),
    }
}

fn lag(pod: &Pod, baked: &BTreeSet<String>) -> Option<Lag> {
    if is_static(pod) || ["Succeeded", "Failed"].contains(&pod.status.phase.as_str()) {
        return None;
    }
    let is_new = |container: &ContainerStatus| container.id().is_some_and(|id| !baked.contains(id));
    let containers = &pod.status.container_statuses;
    if containers.is_empty() || !containers.iter().all(is_new) {
        return Some(Lag::NotStarted);
    }
    let unready = condition(pod, "Ready").is_some_and(|ready| ready.status != "True" && ready.reason == "ContainersNotReady");
    let runs = containers.iter().all(|container| container.state.running.is_some());
    (unready && runs).then_some(Lag::Unready)
}

/// Why a pod is not ready: the reason of `state`, and the messages of kubelet and the scheduler.
pub fn explain(pod: &Pod, baked: &BTreeSet<String>) -> State {
    let Err(why) = state(pod, baked) else { return Ok(()) };
    let mut words = vec![why];
    for status in statuses(pod) {
        words.extend(status.state.waiting.as_ref().and_then(|waiting| first_line(&waiting.message)));
        if let Some(ended) = status.last_state.terminated.as_ref().or(status.state.terminated.as_ref()) {
            words.extend((ended.exit_code != 0).then(|| format!("it ended with status {}", ended.exit_code)));
            words.extend(first_line(&ended.message));
        }
    }
    words.extend(condition(pod, "PodScheduled").and_then(|condition| first_line(&condition.message)));
    words.dedup();
    Err(words.join("; "))
}

/// The start of a message's first line. `kubectl describe` shows the rest.
fn first_line(message: &str) -> Option<String> {
    const LONGEST: usize = 300;
    let text = message.lines().next()?;
    let cut = if text.chars().count() > LONGEST { "…" } else { "" };
    (!text.is_empty()).then(|| text.chars().take(LONGEST).chain(cut.chars()).collect())
}

/// Remembers a pod if readiness depends on it: if it was baked, or has replaced one that was. Returns whether that
/// changes anything.
pub fn update(known: &mut Known, cluster: &Cluster, pod: &Pod, is_deleted: bool) -> bool {
    let (name, owner) = (pod.metadata.full_name(), owner(pod));
    let matters = |baked: &BakedPod| match &owner {
        Some(owner) if baked.owner.is_some() => baked.owner.as_ref() == Some(owner),
        _ => baked.name == name,
    };
    if !cluster.pods.iter().any(matters) {
        return false;
    }
    // A pod with an owner that is being deleted is replaced, or no longer wanted.
    let is_terminating = owner.is_some() && pod.metadata.deletion_timestamp.is_some();
    if is_deleted || is_terminating {
        return known.remove(&name).is_some();
    }
    let (state, lag) = (explain(pod, &cluster.containers), lag(pod, &cluster.containers));
    let seen = Seen { state, owner, containers: running_containers(pod), lag };
    known.insert(name, seen.clone()) != Some(seen)
}

/// Which baked pods are not ready, and why. A pod that the user has deleted does not count. Of an owner's pods, as
/// many as were baked must be Ready, or all of them if there are fewer now. Static pods whose programs run `restored` do
/// not wait for their containers.
pub fn waiting(cluster: &Cluster, known: &Known, restored: &BTreeSet<String>) -> Vec<String> {
    let why = |name: &str, seen: &Seen| seen.state.as_ref().err().map(|why| format!("{name}: {why}"));
    let mut owners: BTreeMap<&str, usize> = BTreeMap::new();
    let mut waiting = vec![];
    for pod in &cluster.pods {
        match (&pod.owner, known.get(&pod.name)) {
            (Some(owner), _) => *owners.entry(owner).or_default() += 1,
            (None, _) if restored.contains(&pod.name) => {}
            (None, Some(seen)) => waiting.extend(why(&pod.name, seen)),
            (None, None) if pod.is_static => waiting.push(format!("{}: does not exist", pod.name)),
            (None, None) => {}
        }
    }
    for (owner, baked) in owners {
        let pods: Vec<_> = known.iter().filter(|(_, seen)| seen.owner.as_deref() == Some(owner)).collect();
        let ready = pods.iter().filter(|(_, seen)| seen.state.is_ok()).count();
        if ready < baked.min(pods.len()) {
            waiting.extend(pods.iter().filter_map(|(name, seen)| why(name, seen)));
        }
    }
    waiting
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a Condition> {
    pod.status.conditions.iter().find(|condition| condition.kind == kind)
}

fn reason(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|reason| !reason.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, Value};

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

    fn parsed(pod: &Value) -> Pod {
        serde_json::from_value(pod.clone()).unwrap()
    }

    fn baked() -> BTreeSet<String> {
        ["old".to_string()].into()
    }

    #[test]
    fn a_pod_that_was_ready_in_the_bake_is_not_ready() {
        assert_eq!(state(&parsed(&pod("old", "True")), &baked()), Err("container etcd: not started in this boot".into()));
        assert_eq!(state(&parsed(&pod("new", "True")), &baked()), Ok(()));
        assert_eq!(state(&parsed(&pod("new", "False")), &baked()), Err("not Ready".into()));
    }

    #[test]
    fn a_pod_lags_until_its_containers_run_and_then_until_it_is_ready() {
        let mut unready = pod("new", "False");
        assert_eq!(lag(&parsed(&unready), &baked()), None, "not Ready for another reason");
        unready["status"]["conditions"][1]["reason"] = json!("ContainersNotReady");
        assert_eq!(lag(&parsed(&unready), &baked()), None, "its container has ended");
        unready["status"]["containerStatuses"][0]["state"] = json!({"running": {"startedAt": "2026-11-26T02:00:37Z"}});
        assert_eq!(lag(&parsed(&unready), &baked()), Some(Lag::Unready));
        let of = |field: &str, value: Value| {
            let mut pod = unready.clone();
            *pod.pointer_mut(field).unwrap() = value;
            lag(&parsed(&pod), &baked())
        };
        assert_eq!(of("/status/conditions/1/status", json!("True")), None);
        assert_eq!(of("/status/containerStatuses/0/containerID", json!("containerd://old")), Some(Lag::NotStarted));
        assert_eq!(of("/status/containerStatuses", json!([])), Some(Lag::NotStarted));
        assert_eq!(of("/status", json!({"phase": "Succeeded"})), None);
        assert_eq!(of("/metadata", json!({"annotations": {"kubernetes.io/config.mirror": "x"}})), None);
    }

    #[test]
    fn a_completed_pod_is_ready() {
        assert_eq!(running_containers(&parsed(&pod("new", "True"))), ["new"]);
        let mut done = pod("old", "False");
        done["status"]["phase"] = json!("Succeeded");
        assert!(running_containers(&parsed(&done)).is_empty());
        assert_eq!(state(&parsed(&done), &baked()), Ok(()));
        done["status"]["phase"] = json!("Failed");
        assert!(state(&parsed(&done), &baked()).is_err());
        done["metadata"]["ownerReferences"] = json!([{"kind": "Job", "controller": true}]);
        assert_eq!(state(&parsed(&done), &baked()), Ok(()));
    }

    #[test]
    fn a_pod_without_containers_says_why() {
        let pending = json!({"status": {"phase": "Pending", "reason": "Evicted"}});
        assert_eq!(state(&parsed(&pending), &baked()), Err("Evicted".into()));
        assert_eq!(state(&parsed(&json!({})), &baked()), Err("not started".into()));
        let mut failing = pod("", "False");
        failing["status"]["containerStatuses"][0]["state"] = json!({"waiting": {"reason": "ImagePullBackOff"}});
        assert_eq!(state(&parsed(&failing), &baked()), Err("container etcd: ImagePullBackOff".into()));
    }

    fn cluster(pods: &[BakedPod]) -> Cluster {
        Cluster { pods: pods.to_vec(), containers: baked(), ..crate::cluster::tests::cluster() }
    }

    fn baked_pod(name: &str, is_static: bool, owner: Option<&str>) -> BakedPod {
        BakedPod { name: name.into(), is_static, owner: owner.map(String::from) }
    }

    fn seen(state: State, owner: Option<&str>) -> Seen {
        Seen { state, owner: owner.map(String::from), containers: vec![], lag: None }
    }

    #[test]
    fn a_static_pod_must_exist_and_others_may_be_deleted() {
        let cluster = cluster(&[baked_pod("kube-system/etcd-kind", true, None), baked_pod("default/app", false, None)]);
        let none = BTreeSet::new();
        let restored = ["kube-system/etcd-kind".to_string()].into();
        assert!(waiting(&cluster, &Known::new(), &restored).is_empty());
        assert_eq!(waiting(&cluster, &Known::new(), &none), ["kube-system/etcd-kind: does not exist"]);
        let etcd = ("kube-system/etcd-kind".to_string(), seen(Ok(()), None));
        assert!(waiting(&cluster, &Known::from([etcd.clone()]), &none).is_empty());
        let app = ("default/app".to_string(), seen(Err("not Ready".into()), None));
        assert_eq!(waiting(&cluster, &Known::from([etcd, app]), &none), ["default/app: not Ready"]);
    }

    #[test]
    fn readiness_follows_a_deployment_and_not_the_names_of_its_pods() {
        let app = "Deployment default/app";
        let cluster = cluster(&[baked_pod("default/app-1-a", false, Some(app)), baked_pod("default/app-1-b", false, Some(app))]);
        let (fine, failing) = (|| seen(Ok(()), Some(app)), || seen(Err("not Ready".into()), Some(app)));
        for (pods, expected) in [
            (vec![], vec![]),
            (vec![("a", fine()), ("b", fine())], vec![]),
            // The replacement of a baked pod fails.
            (vec![("a", fine()), ("c", failing())], vec!["c: not Ready"]),
            // A rollout, or more replicas than were baked.
            (vec![("a", fine()), ("b", fine()), ("c", failing())], vec![]),
            // Scaled down.
            (vec![("a", fine())], vec![]),
            (vec![("d", failing())], vec!["d: not Ready"]),
        ] {
            let known = pods.iter().map(|(name, seen)| (name.to_string(), seen.clone())).collect();
            assert_eq!(waiting(&cluster, &known, &BTreeSet::new()), expected, "{pods:?}");
        }
    }

    #[test]
    fn readiness_depends_on_replacements_of_baked_pods_and_not_on_the_users_own() {
        let mut pod = json!({"metadata": {"namespace": "default", "name": "app-2-c", "labels": {"pod-template-hash": "2"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "app-2", "controller": true}]}});
        assert_eq!(owner(&parsed(&pod)).as_deref(), Some("Deployment default/app"));
        let cluster = cluster(&[baked_pod("default/app-1-a", false, Some("Deployment default/app"))]);
        let mut known = Known::new();
        assert!(update(&mut known, &cluster, &parsed(&pod), false));
        assert!(known.contains_key("default/app-2-c"));
        assert!(!update(&mut known, &cluster, &parsed(&pod), false), "nothing has changed");
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(update(&mut known, &cluster, &parsed(&pod), false));
        assert!(known.is_empty(), "it is being deleted");
        pod["metadata"]["ownerReferences"][0]["name"] = json!("other-2");
        pod["metadata"]["deletionTimestamp"] = Value::Null;
        assert!(!update(&mut known, &cluster, &parsed(&pod), false));
        assert!(known.is_empty(), "it belongs to another Deployment");
    }

    #[test]
    fn the_owner_is_the_controller_that_makes_the_next_pod() {
        let owner = |kind: &str, name: &str, hash: Value| {
            let references = json!([{"kind": "Other", "name": "x"}, {"kind": kind, "name": name, "controller": true}]);
            owner(&parsed(
                &json!({"metadata": {"namespace": "n", "name": "p", "labels": {TEMPLATE_HASH: hash}, "ownerReferences": references}}),
            ))
        };
        assert_eq!(owner("DaemonSet", "proxy", json!("5")).as_deref(), Some("DaemonSet n/proxy"));
        assert_eq!(owner("ReplicaSet", "bare", json!("5")).as_deref(), Some("ReplicaSet n/bare"));
        assert_eq!(owner("ReplicaSet", "a-b-5", json!("5")).as_deref(), Some("Deployment n/a-b"));
        let mirror = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "1"},
            "ownerReferences": [{"kind": "Node", "name": "kind", "controller": true}]}});
        assert_eq!(super::owner(&parsed(&mirror)), None);
    }

    #[test]
    fn an_explanation_has_the_messages_of_kubelet_and_the_scheduler() {
        let unscheduled = json!({"status": {"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient memory."},
        ]}});
        assert_eq!(explain(&parsed(&unscheduled), &baked()), Err("not started; 0/1 nodes are available: 1 Insufficient memory.".into()));
        let mut crashing = pod("new", "False");
        crashing["status"]["containerStatuses"][0]["state"] =
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s\nx"}});
        crashing["status"]["containerStatuses"][0]["lastState"] = json!({"terminated": {"exitCode": 3, "reason": "Error"}});
        assert_eq!(explain(&parsed(&crashing), &baked()), Err("not Ready; back-off 10s; it ended with status 3".into()));
        assert_eq!(explain(&parsed(&pod("new", "True")), &baked()), Ok(()));
    }
}
