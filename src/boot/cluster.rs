//! The cluster's half of the boot. It speaks for one cluster alone (`Init::begin_cluster`): when another one begins, whatever
//! was started here changes nothing any more, and ends.

use std::path::Path;
use std::sync::Arc;

use crate::boot::extensions;
use crate::cluster::api::Api;
use crate::cluster::{monitor, Cluster};
use crate::config::CREDENTIALS_DIR;
use crate::daemons::kubelet;
use crate::error::Result;
use crate::node::capacity;
use crate::node::iptables::{self, Iptables};
use crate::restore::start::Restore;
use crate::supervisor::daemon::Daemon;
use crate::supervisor::Init;

/// Brings the cluster up on a node whose containerd runs, and follows it until it is over. `start_docker` returns the Docker
/// to which the start of the cluster leaves the CPU.
pub fn bring_up(
    init: &Arc<Init>,
    cluster: &Cluster,
    restore: Restore,
    iptables: &Iptables,
    start_docker: impl FnOnce() -> Result<Arc<Daemon>>,
) -> Result<()> {
    let mut arguments = if init.config.enforce_capacity { capacity::kubelet_flags()? } else { vec![] };
    arguments.extend(init.config.kubelet_arguments.clone());
    let kubelet = kubelet::spec(cluster.static_ip, iptables.clone(), arguments);
    let api = Arc::new(Api::new(Path::new(CREDENTIALS_DIR), cluster.static_ip)?);
    restore.bring_up(kubelet, api.clone(), start_docker)?;
    if let Err(error) = iptables::redirect_api_service(iptables, cluster.static_ip, &cluster.network) {
        log::warn!(target: "network", "the first pods wait for kube-proxy: {error}");
    }
    extensions::start(init, api.clone(), cluster)?;
    monitor::run(init, &api, cluster)
}
