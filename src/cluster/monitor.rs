//! The thread that follows the cluster: polls until the API server answers, then holds a watch open,
//! so that `kubernetes-ready` comes and goes with the truth at almost no wakeups.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::api::Api;
use crate::cluster::{control_plane, dns, etcd, load_balancer, pods, Cluster};
use crate::config::{CREDENTIALS_DIR, STATIC_POD_DIR};
use crate::error::{Error, Result};
use crate::readiness::files::{CA_CERT, CLIENT_CERT, CLIENT_KEY, CONFIG};
use crate::readiness::Pods;
use crate::supervisor::Init;

/// A refused connection costs nothing; an API server that starts is asked often to be caught at once.
const POLL: Duration = Duration::from_millis(50);

pub fn run(init: &Arc<Init>, api: &Arc<Api>, cluster: &Cluster) -> Result<()> {
    load_balancer::start(init, api.clone(), cluster.static_ip)?;
    if let Some(server) = cluster.dns {
        dns::follow(&init.readiness, server)?;
    }
    let (mut served, mut held_back) = (false, true);
    while !init.shutdown.stopping() {
        let answer = api.readiness();
        if held_back && answer.is_some() {
            control_plane::let_go(Path::new(STATIC_POD_DIR))?;
            held_back = false;
        }
        if answer != Some(200) {
            init.readiness.update(|state| state.api_server = false);
            init.shutdown.pause(POLL);
            continue;
        }
        init.readiness.update(|state| state.api_server = true);
        if !served {
            init.readiness.milestone("api-server");
            log::info!(target: "cluster", "the API server answers");
            serve_credentials(init)?;
            etcd::follow(init, api.clone())?;
            served = true;
        }
        // A watch that ends in order wants the list asked again, every half hour or so; or the server
        // has ended, and the next round finds out.
        if let Err(error) = follow(init, api, cluster) {
            log::debug!(target: "cluster", "{error}");
            init.readiness.update(|state| state.api_server = false);
            init.shutdown.pause(POLL);
        }
    }
    Ok(())
}

fn serve_credentials(init: &Init) -> Result<()> {
    for name in [CA_CERT, CLIENT_CERT, CLIENT_KEY, CONFIG] {
        let path = Path::new(CREDENTIALS_DIR).join(name);
        let contents = std::fs::read(&path).map_err(|cause| Error::io("read", &path, cause))?;
        init.readiness.publish(name, &contents);
    }
    Ok(())
}

fn follow(init: &Init, api: &Api, cluster: &Cluster) -> Result<()> {
    let mut states = BTreeMap::new();
    let version = list(api, cluster, &mut states)?;
    update_pods(init, cluster, &states);
    for line in api.watch(&format!("/api/v1/pods?watch=1&allowWatchBookmarks=true&resourceVersion={version}"))? {
        let line = line.map_err(|cause| Error::new(format!("the watch on pods ended: {cause}")))?;
        let event: Value = serde_json::from_str(&line).map_err(|cause| Error::new(format!("a broken event: {cause}")))?;
        match (event.get("type").and_then(Value::as_str), event.get("object")) {
            (Some("ADDED" | "MODIFIED"), Some(pod)) => update_pod(&mut states, cluster, pod, false),
            (Some("DELETED"), Some(pod)) => update_pod(&mut states, cluster, pod, true),
            (Some("BOOKMARK"), _) => continue,
            _ => return Err(Error::new(format!("the API server ended the watch on pods: {line}"))),
        }
        update_pods(init, cluster, &states);
    }
    Ok(())
}

/// Notes every pod. Returns the version of the list, for a watch to go on from; the list itself, half
/// a megabyte with a few pods, is not kept.
fn list(api: &Api, cluster: &Cluster, states: &mut BTreeMap<String, pods::State>) -> Result<String> {
    let list = api.get("/api/v1/pods")?;
    for pod in list.get("items").and_then(Value::as_array).into_iter().flatten() {
        update_pod(states, cluster, pod, false);
    }
    Ok(list.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or("0").to_string())
}

/// Keeps the state of a baked pod; the user's own are none of our business.
fn update_pod(states: &mut BTreeMap<String, pods::State>, cluster: &Cluster, pod: &Value, deleted: bool) {
    let Some(name) = pods::name(pod).filter(|name| cluster.pods.iter().any(|baked| baked.name == *name)) else { return };
    if deleted {
        states.remove(&name);
    } else {
        states.insert(name, pods::explain(pod, &cluster.containers));
    }
}

fn update_pods(init: &Init, cluster: &Cluster, states: &BTreeMap<String, pods::State>) {
    let waiting = pods::waiting(cluster, states);
    if !waiting.is_empty() {
        return init.readiness.update(|state| state.pods = Pods::Waiting(waiting));
    }
    if !init.readiness.has_reached("pods") {
        log::info!(target: "cluster", "every baked pod was started and is Ready");
        init.readiness.milestone("pods");
    }
    init.readiness.update(|state| {
        state.pods = Pods::Ready;
        // Where there is no DNS, nothing has to be asked.
        state.dns |= cluster.dns.is_none();
    });
}
