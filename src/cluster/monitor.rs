//! Follows the cluster: polls until the API server answers, then keeps a watch open, so that `kubernetes-ready` is
//! always up to date with hardly any wakeups.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::alive::Alive;
use crate::cluster::api::Api;
use crate::cluster::{load_balancer, network_policies, node, resync, Cluster};
use crate::config::CREDENTIALS_DIR;
use crate::error::{Error, Result};
use crate::node::cluster_network::ClusterNetwork;
use crate::readiness::files::{CA_CERT, CLIENT_CERT, CLIENT_KEY, CONFIG};
use crate::supervisor::Init;
use crate::threads;

/// Often, so that no time is lost once the API server answers; a refused connection costs nothing.
const POLL: Duration = Duration::from_millis(50);

/// Starts the threads that follow the cluster until it is over.
pub fn start(init: &Arc<Init>, api: Arc<Api>, cluster: &Cluster, network: &ClusterNetwork) -> Result<()> {
    load_balancer::start(init, api.clone(), cluster.static_ip, network)?;
    if network.has_bridge && !network.enforces_policies {
        network_policies::start(init, api.clone())?;
    }
    node::start(init, api.clone(), cluster)?;
    let alive = Alive::follow(&init.readiness, cluster)?;
    resync::start(init, api.clone(), alive.clone())?;
    let init = init.clone();
    threads::start("cluster", move || follow(&init, &api, &alive).unwrap_or_else(|error| init.fail(&error)))
}

fn follow(init: &Init, api: &Api, alive: &Alive) -> Result<()> {
    let mut served = false;
    while !init.readiness.is_over() {
        if !api.is_ready() {
            init.readiness.update(|state| state.api_server = false);
            init.readiness.pause(POLL);
            continue;
        }
        init.readiness.update(|state| state.api_server = true);
        if !served {
            init.readiness.milestone("api-server");
            log::info!(target: "cluster", "the API server answers");
            serve_credentials(init)?;
            served = true;
        }
        let followed = api.follow("/api/v1/pods", |change| {
            alive.report(change);
            Ok(())
        });
        // If the watch ended because the server did, the next round finds out.
        if let Err(error) = followed {
            log::debug!(target: "cluster", "{error}");
            init.readiness.update(|state| state.api_server = false);
            init.readiness.pause(POLL);
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
