//! Waiting until everything in the cluster is Ready: for the bake, for the manifests of a boot, and for
//! `kind status`.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::api::Api;
use crate::cluster::pods;
use crate::config::{CLUSTER_LIMIT, NODE_NAME, STATIC_POD_DIR};
use crate::error::{Error, Result};
use crate::supervisor::reaper;
use crate::supervisor::Init;

const POLL: Duration = Duration::from_millis(250);

pub fn for_api_server(init: &Init, api: &Api) -> Result<()> {
    until(init, || if api.is_ready() { vec![] } else { vec!["the API server".to_string()] })
}

/// Waits until the node, every workload and every pod is Ready.
pub fn for_everything(init: &Init, api: &Api) -> Result<()> {
    until(init, || unready(api, &BTreeSet::new()).unwrap_or_else(|error| vec![error.to_string()]))
}

fn until(init: &Init, mut unready: impl FnMut() -> Vec<String>) -> Result<()> {
    let mut last = vec![];
    let ready = reaper::poll(POLL, CLUSTER_LIMIT, || {
        // A daemon that was given up ends the wait; its failure was logged.
        if init.shutdown.stopping() || init.readiness.state().failure.is_some() {
            return Some(false);
        }
        last = unready();
        last.is_empty().then_some(true)
    });
    match ready {
        Some(true) => Ok(()),
        Some(false) => Err(Error::new("a daemon failed")),
        None => Err(Error::new(format!("not ready after {} s: {}", CLUSTER_LIMIT.as_secs(), last.join(", ")))),
    }
}

/// What is not Ready, and why; `baked` are ids of containers that count as not started.
pub fn unready(api: &Api, baked: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut unready = vec![];
    for node in items(&api.get("/api/v1/nodes")?) {
        let conditions = node.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
        if !conditions.into_iter().any(|condition| text(condition, "type") == "Ready" && text(condition, "status") == "True") {
            unready.push("the node".to_string());
        }
    }
    // A workload that was just applied has no pods yet.
    for (kind, wanted, ready) in [
        ("daemonsets", "/status/desiredNumberScheduled", "/status/numberReady"),
        ("deployments", "/spec/replicas", "/status/readyReplicas"),
        ("statefulsets", "/spec/replicas", "/status/readyReplicas"),
    ] {
        for item in items(&api.get(&format!("/apis/apps/v1/{kind}"))?) {
            let number = |path| item.pointer(path).and_then(Value::as_u64).unwrap_or(0);
            let observed = number("/status/observedGeneration") == number("/metadata/generation");
            if !observed || number(ready) < number(wanted) {
                unready.push(format!("{kind} {}", pods::name(item).unwrap_or_default()));
            }
        }
    }
    let pods = api.get("/api/v1/pods")?;
    // kubelet tells the API server of its static pods some time after it has started them.
    for name in static_pods()? {
        if !items(&pods).any(|pod| pods::name(pod).as_ref() == Some(&name)) {
            unready.push(format!("{name}: not there"));
        }
    }
    for pod in items(&pods) {
        if let Err(why) = pods::explain(pod, baked) {
            unready.push(format!("{}: {why}", pods::name(pod).unwrap_or_default()));
        }
    }
    Ok(unready)
}

/// `namespace/name` of the pods that kubeadm wrote manifests for.
fn static_pods() -> Result<Vec<String>> {
    let entries = std::fs::read_dir(STATIC_POD_DIR).map_err(|cause| Error::io("list", STATIC_POD_DIR, cause))?;
    let name = |path: std::path::PathBuf| Some(format!("kube-system/{}-{NODE_NAME}", path.file_stem()?.to_str()?));
    Ok(entries.flatten().filter_map(|entry| name(entry.path())).collect())
}

pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.get("items").and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}
