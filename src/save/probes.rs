//! Has kubelet probe saved pods every second, with as much patience as before.
//!
//! A kubelet that has just been started begins with each probe after a random part of its period (`run` in
//! pkg/kubelet/prober/worker.go): each start would wait for it, for five seconds on average with the default of ten. The probes
//! of a pod cannot be changed, so it is replaced by one that differs in nothing else, while kubelet and the controllers are
//! stopped. What its owner makes later has the owner's probes. Those that run a program are left alone, since it would take CPU.

use serde_json::{json, Value};

use crate::cluster::api::Api;
use crate::cluster::objects::List;
use crate::error::Result;

const READINESS: &str = "readinessProbe";
/// What keeps a pod from being Ready.
const PROBES: [&str; 2] = [READINESS, "startupProbe"];
const DELAY: &str = "initialDelaySeconds";
/// The API's default.
const FAILURE_THRESHOLD: u64 = 3;

pub fn quicken(api: &Api) -> Result<()> {
    let mut late = vec![];
    for mut pod in api.get::<List<Value>>("/api/v1/pods")?.items {
        let name = format!("{}/{}", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        if !is_replaceable(&pod) {
            continue;
        }
        let is_changed = quicken_probes(&mut pod["spec"]);
        if (is_changed && !replace(api, &pod)?) || has_slow_probe(&pod["spec"]) {
            late.push(name);
        }
    }
    if !late.is_empty() {
        log::info!(target: "save", "each start waits for the first readiness probe of {}, which may come late", late.join(", "));
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Not one of kubelet's own, nor one that has ended or whose end somebody waits for.
fn is_replaceable(pod: &Value) -> bool {
    let metadata = &pod["metadata"];
    let is_wanted = metadata["deletionTimestamp"].is_null() && metadata["finalizers"].as_array().is_none_or(Vec::is_empty);
    is_wanted && metadata["annotations"]["kubernetes.io/config.mirror"].is_null() && pod["status"]["phase"] == "Running"
}

fn number(probe: &Value, field: &str) -> u64 {
    probe[field].as_u64().unwrap_or_default()
}

fn is_slow(probe: &Value) -> bool {
    number(probe, "periodSeconds") > 1 || number(probe, DELAY) > 0
}

fn has_slow_probe(spec: &Value) -> bool {
    let containers = spec["containers"].as_array().into_iter().flatten();
    containers.flat_map(|container| PROBES.map(|name| &container[name])).any(is_slow)
}

/// Returns whether any was changed.
fn quicken_probes(spec: &mut Value) -> bool {
    let before = spec.clone();
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        for name in PROBES {
            let Some(probe) = container.get_mut(name).filter(|probe| is_slow(probe) && probe["exec"].is_null()) else { continue };
            let failures = probe["failureThreshold"].as_u64().unwrap_or(FAILURE_THRESHOLD);
            probe["failureThreshold"] = json!(failures * number(probe, "periodSeconds").max(1));
            probe["periodSeconds"] = json!(1);
            // Who answers a request knows whether it is ready; who only listens may be told to wait for a reason.
            if name == READINESS && probe["tcpSocket"].is_null() {
                probe[DELAY] = json!(0);
            }
        }
    }
    *spec != before
}

/// Replaces the pod of that name, unless the API server would not take it: a webhook may refuse it, for example.
fn replace(api: &Api, pod: &Value) -> Result<bool> {
    let metadata = &pod["metadata"];
    let (pods, name) = (format!("/api/v1/namespaces/{}/pods", text(&metadata["namespace"])), text(&metadata["name"]));
    let kept = ["name", "namespace", "generateName", "labels", "annotations", "ownerReferences"];
    let kept: serde_json::Map<_, _> = kept.iter().filter_map(|field| Some((field.to_string(), metadata.get(field)?.clone()))).collect();
    let new = json!({"metadata": kept, "spec": pod["spec"]});
    // It ends at the name, which is taken.
    if let Err(error) = api.create(&format!("{pods}?dryRun=All"), &new) {
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
        let of = |probe: &str, value: Value| json!({"containers": [{"name": "beside"}, {probe: value}]});
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
            let mut spec = of(name, before.clone());
            let is_changed = quicken_probes(&mut spec);
            let mut after = before.clone();
            if let Some((period, failures, delay)) = expected {
                after["periodSeconds"] = json!(period);
                after["failureThreshold"] = json!(failures);
                after[DELAY] = json!(delay);
            }
            assert_eq!((is_changed, spec), (expected.is_some(), of(name, after)), "{name} {before}");
        }
        assert!(has_slow_probe(&of(READINESS, exec)) && has_slow_probe(&of("startupProbe", tcp)));
        assert!(!has_slow_probe(&of(READINESS, fast)) && !has_slow_probe(&json!({"containers": [{"name": "a"}]})));
    }

    #[test]
    fn pods_that_run_and_may_go_are_replaced() {
        let pod = |metadata: Value, phase: &str| json!({"metadata": metadata, "status": {"phase": phase}});
        assert!(is_replaceable(&pod(json!({"name": "a"}), "Running")));
        assert!(!is_replaceable(&pod(json!({"name": "a"}), "Succeeded")));
        assert!(!is_replaceable(&pod(json!({"finalizers": ["batch.kubernetes.io/job-tracking"]}), "Running")));
        assert!(!is_replaceable(&pod(json!({"deletionTimestamp": "2026-11-30T16:00:00Z"}), "Running")));
        assert!(!is_replaceable(&pod(json!({"annotations": {"kubernetes.io/config.mirror": "x"}}), "Running")));
    }
}
