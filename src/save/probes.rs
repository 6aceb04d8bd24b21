//! Has kubelet probe saved pods every second.
//!
//! A kubelet that has just been started begins with each probe after a random part of its period (`run` in
//! pkg/kubelet/prober/worker.go): each start would wait for it, for five seconds on average with the default of ten. The probes
//! of a pod cannot be changed, so it is replaced by one with the same name, labels, owner and specification, while kubelet and
//! the controllers are stopped; its UID is new. What its owner makes later has the owner's probes. A probe that runs a program
//! is left as it is, since it would take CPU.

use serde_json::{json, Value};

use crate::cluster::api::Api;
use crate::cluster::objects::List;
use crate::cluster::pods::MIRROR;
use crate::error::Result;

const READINESS: &str = "readinessProbe";
/// What keeps a pod from being Ready.
const PROBES: [&str; 2] = [READINESS, "startupProbe"];
const DELAY: &str = "initialDelaySeconds";
/// Those that make pods, and never compare them with what they would make now.
const OWNERS: [&str; 3] = ["ReplicaSet", "StatefulSet", "DaemonSet"];
/// Sidecars are among the latter.
const CONTAINERS: [&str; 2] = ["containers", "initContainers"];
/// The API's default.
const FAILURE_THRESHOLD: u64 = 3;

pub fn quicken(api: &Api) -> Result<()> {
    let mut late = vec![];
    for mut pod in api.get::<List<Value>>("/api/v1/pods")?.items {
        // One that has ended is never Ready, and kubelet's own are as the bake has made them.
        if pod["status"]["phase"] != "Running" || !pod["metadata"]["annotations"][MIRROR].is_null() {
            continue;
        }
        let is_replaceable = is_replaceable(&pod);
        let is_quick = !quicken_probes(&mut pod) || (is_replaceable && replace(api, &pod)?);
        if !is_quick || has_slow_probe(&pod["spec"]) {
            late.push(format!("{}/{}", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"])));
        }
    }
    if !late.is_empty() {
        log::info!(
            target: "save",
            "each start may wait for the first readiness probe of {} as long as its period is: set periodSeconds: 1 (\"Readiness probes\" in docs/cluster.md)",
            late.join(", ")
        );
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whether its owner does not look at the probes, and nothing depends on its UID or its status. Whoever has made a pod by hand may
/// apply it again, and an operator may find that it differs.
fn is_replaceable(pod: &Value) -> bool {
    let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
    let is_owner =
        |owner: &Value| owner["controller"] == true && owner["apiVersion"] == "apps/v1" && OWNERS.contains(&text(&owner["kind"]));
    let any = |list: &Value, is: &dyn Fn(&Value) -> bool| list.as_array().into_iter().flatten().any(is);
    let depends_on_more = any(&spec["readinessGates"], &|_| true)
        || any(&spec["resourceClaims"], &|_| true)
        || any(&spec["volumes"], &|volume| !volume["ephemeral"].is_null());
    let may_go = metadata["deletionTimestamp"].is_null() && !any(&metadata["finalizers"], &|_| true);
    any(&metadata["ownerReferences"], &is_owner) && may_go && !depends_on_more
}

fn number(probe: &Value, field: &str) -> u64 {
    probe[field].as_u64().unwrap_or_default()
}

fn is_slow(probe: &Value) -> bool {
    number(probe, "periodSeconds") > 1 || number(probe, DELAY) > 0
}

fn has_slow_probe(spec: &Value) -> bool {
    let containers = CONTAINERS.iter().flat_map(|kind| spec[*kind].as_array()).flatten();
    containers.flat_map(|container| PROBES.map(|name| &container[name])).any(is_slow)
}

/// Returns whether any was changed.
fn quicken_probes(pod: &mut Value) -> bool {
    let before = pod["spec"].clone();
    let is_dns = pod["metadata"]["namespace"] == "kube-system" && pod["metadata"]["labels"]["k8s-app"] == "kube-dns";
    for kind in CONTAINERS {
        for container in pod["spec"].get_mut(kind).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
            // A start asks the DNS itself (`cluster/dns.rs`).
            if is_dns {
                container.remove(READINESS);
            }
            for name in PROBES {
                if let Some(probe) = container.get_mut(name).filter(|probe| is_slow(probe) && probe["exec"].is_null()) {
                    quicken_probe(name, probe);
                }
            }
        }
    }
    pod["spec"] != before
}

fn quicken_probe(name: &str, probe: &mut Value) {
    let failures = probe["failureThreshold"].as_u64().unwrap_or(FAILURE_THRESHOLD) * number(probe, "periodSeconds").max(1);
    probe["failureThreshold"] = json!(failures.min(i32::MAX as u64));
    probe["periodSeconds"] = json!(1);
    // A program that answers requests knows whether it is ready; for one that only listens, the delay may be there for a reason.
    if name == READINESS && probe["tcpSocket"].is_null() {
        probe[DELAY] = json!(0);
    }
}

/// Replaces the pod of that name, unless the API server would not take it: a webhook may refuse it, for example.
fn replace(api: &Api, pod: &Value) -> Result<bool> {
    let metadata = &pod["metadata"];
    let (pods, name) = (format!("/api/v1/namespaces/{}/pods", text(&metadata["namespace"])), text(&metadata["name"]));
    let kept = ["name", "namespace", "generateName", "labels", "annotations", "ownerReferences"];
    let kept: serde_json::Map<_, _> = kept.iter().filter_map(|field| Some((field.to_string(), metadata.get(field)?.clone()))).collect();
    let new = json!({"metadata": kept, "spec": pod["spec"]});
    // That the name is taken is found last, after admission and validation, and counts as success.
    let trial = api.create(&format!("{pods}?dryRun=All"), &new);
    if let Err(error) = trial.and_then(|()| api.delete(&format!("{pods}/{name}?gracePeriodSeconds=0&dryRun=All"))) {
        log::debug!(target: "save", "{error}");
        return Ok(false);
    }
    api.delete(&format!("{pods}/{name}?gracePeriodSeconds=0"))?;
    api.create(&pods, &new)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_asked_every_second_and_may_fail_for_as_long() {
        let of = |probe: &str, value: Value| json!({"spec": {"containers": [{"name": "beside"}], "initContainers": [{probe: value}]}});
        let http = json!({"httpGet": {"port": 80}, "periodSeconds": 10, "failureThreshold": 3, "initialDelaySeconds": 5});
        let tcp = json!({"tcpSocket": {"port": 80}, "periodSeconds": 5, "failureThreshold": 60, "initialDelaySeconds": 5});
        let exec = json!({"exec": {"command": ["pg_isready"]}, "periodSeconds": 10});
        let fast = json!({"httpGet": {"port": 80}, "periodSeconds": 1, "failureThreshold": 3});
        for (name, before, expected) in [
            (READINESS, &http, Some((1, 30, 0))),
            ("startupProbe", &http, Some((1, 30, 5))),
            (READINESS, &tcp, Some((1, 300, 5))),
            (READINESS, &exec, None),
            (READINESS, &fast, None),
            ("livenessProbe", &http, None),
        ] {
            let mut pod = of(name, before.clone());
            let is_changed = quicken_probes(&mut pod);
            let mut after = before.clone();
            if let Some((period, failures, delay)) = expected {
                after["periodSeconds"] = json!(period);
                after["failureThreshold"] = json!(failures);
                after[DELAY] = json!(delay);
            }
            assert_eq!((is_changed, pod), (expected.is_some(), of(name, after)), "{name} {before}");
        }
        let is_slow = |probe: &str, value: &Value| has_slow_probe(&of(probe, value.clone())["spec"]);
        assert!(is_slow(READINESS, &exec) && is_slow("startupProbe", &tcp));
        assert!(!is_slow(READINESS, &fast) && !is_slow("livenessProbe", &http));
    }

    #[test]
    fn the_dns_has_no_readiness_probe_since_each_start_asks_it() {
        let container = |probes: Value| json!({"spec": {"containers": [probes]}, "metadata": {"namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}});
        let mut pod = container(json!({"readinessProbe": {"periodSeconds": 1}, "livenessProbe": {"periodSeconds": 10}}));
        assert!(quicken_probes(&mut pod));
        assert_eq!(pod, container(json!({"livenessProbe": {"periodSeconds": 10}})));
    }

    #[test]
    fn pods_of_the_apis_own_controllers_are_replaced() {
        let pod = |change: fn(&mut Value)| {
            let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "controller": true});
            let volumes = json!([{"name": "scratch", "emptyDir": {}}]);
            let mut pod = json!({"metadata": {"name": "a", "ownerReferences": [owner]}, "spec": {"volumes": volumes}});
            change(&mut pod);
            is_replaceable(&pod)
        };
        assert!(pod(|_| {}));
        assert!(!pod(|pod| pod["metadata"]["finalizers"] = json!(["batch.kubernetes.io/job-tracking"])));
        assert!(!pod(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-11-30T16:00:00Z")));
        assert!(!pod(|pod| pod["metadata"]["ownerReferences"] = json!(null)));
        assert!(!pod(|pod| pod["metadata"]["ownerReferences"][0]["kind"] = json!("Cluster")));
        assert!(!pod(|pod| pod["metadata"]["ownerReferences"][0]["controller"] = json!(false)));
        assert!(!pod(|pod| pod["spec"]["readinessGates"] = json!([{"conditionType": "example.com/is-registered"}])));
        assert!(!pod(|pod| pod["spec"]["resourceClaims"] = json!([{"name": "gpu"}])));
        assert!(!pod(|pod| pod["spec"]["volumes"][0] = json!({"name": "scratch", "ephemeral": {}})));
    }
}
