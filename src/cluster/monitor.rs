//! Follows the cluster: polls until the API server answers, then keeps a watch open, so that `kubernetes-ready` is
//! always up to date with hardly any wakeups.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::alive::Alive;
use crate::cluster::api::Api;
use crate::cluster::objects::{List, Pod};
use crate::cluster::resync::Resync;
use crate::cluster::{control_plane, dns, etcd, load_balancer, network_policies, node, pods, Cluster};
use crate::config::{CREDENTIALS_DIR, STATIC_POD_DIR};
use crate::error::{Error, Result};
use crate::readiness::files::{CA_CERT, CLIENT_CERT, CLIENT_KEY, CONFIG};
use crate::supervisor::Init;

/// Often, so that no time is lost once the API server answers; a refused connection costs nothing.
const POLL: Duration = Duration::from_millis(50);

pub fn run(init: &Arc<Init>, api: &Arc<Api>, cluster: &Cluster) -> Result<()> {
    load_balancer::start(init, api.clone(), cluster.static_ip, &cluster.network)?;
    if cluster.network.has_bridge && !cluster.network.enforces_policies {
        network_policies::start(init, api.clone())?;
    }
    node::start(init, api.clone())?;
    if let Some(server) = cluster.dns {
        dns::follow(&init.readiness, server)?;
    }
    let alive = Alive::follow(&init.readiness, cluster)?;
    let resync = Resync::start(init, api.clone())?;
    // A restored start shows its manifests itself.
    let (mut served, mut hidden) = (false, init.readiness.state().restored.is_empty());
    while !init.shutdown.stopping() {
        let answer = api.readiness();
        if hidden && answer.is_some() {
            control_plane::show(Path::new(STATIC_POD_DIR))?;
            hidden = false;
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
            let alive = alive.clone();
            etcd::follow(init, api.clone(), move || alive.look())?;
            served = true;
        }
        // The server ends each watch after half an hour or so; then list the pods again. If it ended because the
        // server did, the next round finds out.
        if let Err(error) = follow(init, api, cluster, &alive, &resync) {
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

fn follow(init: &Init, api: &Api, cluster: &Cluster, alive: &Alive, resync: &Resync) -> Result<()> {
    let list: List<Pod> = api.get("/api/v1/pods")?;
    let mut known = pods::Known::new();
    list.items.iter().for_each(|pod| pods::update(&mut known, cluster, pod, false));
    let version = list.metadata.resource_version;
    // Free the list before the watch, which stays open.
    drop(list.items);
    resync.tell(&known);
    update_pods(init, cluster, &known, alive);
    for event in api.watch::<Pod>(&format!("/api/v1/pods?watch=1&allowWatchBookmarks=true&resourceVersion={version}"))? {
        let event = event?;
        if event.kind != "BOOKMARK" {
            pods::update(&mut known, cluster, &event.object, event.kind == "DELETED");
            resync.tell(&known);
            update_pods(init, cluster, &known, alive);
        }
    }
    Ok(())
}

fn update_pods(init: &Init, cluster: &Cluster, known: &pods::Known, alive: &Alive) {
    if !alive.tell(known) {
        return;
    }
    if !init.readiness.has_reached("pods") {
        log::info!(target: "cluster", "every baked pod is Ready");
        init.readiness.milestone("pods");
    }
    // Where there is no DNS, nothing has to be asked.
    init.readiness.update(|state| state.dns |= cluster.dns.is_none());
}
