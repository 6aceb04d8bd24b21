//! The thread that follows the cluster: polls until the API server answers, then holds a watch open,
//! so that `kubernetes-ready` comes and goes with the truth at almost no wakeups.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::api::Api;
use crate::cluster::objects::{List, Pod};
use crate::cluster::{control_plane, dns, etcd, load_balancer, network_policies, pods, Cluster};
use crate::config::{CREDENTIALS_DIR, STATIC_POD_DIR};
use crate::error::{Error, Result};
use crate::readiness::files::{CA_CERT, CLIENT_CERT, CLIENT_KEY, CONFIG};
use crate::readiness::Pods;
use crate::supervisor::Init;

/// A refused connection costs nothing; an API server that starts is asked often to be caught at once.
const POLL: Duration = Duration::from_millis(50);

pub fn run(init: &Arc<Init>, api: &Arc<Api>, cluster: &Cluster) -> Result<()> {
    load_balancer::start(init, api.clone(), cluster.static_ip)?;
    network_policies::start(init, api.clone())?;
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
    let list: List<Pod> = api.get("/api/v1/pods")?;
    let mut known = pods::Known::new();
    list.items.iter().for_each(|pod| pods::update(&mut known, cluster, pod, false));
    let version = list.metadata.resource_version;
    // Not kept for as long as the watch is open.
    drop(list.items);
    update_pods(init, cluster, &known);
    for event in api.watch::<Pod>(&format!("/api/v1/pods?watch=1&allowWatchBookmarks=true&resourceVersion={version}"))? {
        let event = event?;
        if event.kind != "BOOKMARK" {
            pods::update(&mut known, cluster, &event.object, event.kind == "DELETED");
            update_pods(init, cluster, &known);
        }
    }
    Ok(())
}

fn update_pods(init: &Init, cluster: &Cluster, known: &pods::Known) {
    let waiting = pods::waiting(cluster, known);
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
