//! The boot, readable from top to bottom: the node's half is here (network → mounts and cgroups → store → containerd →
//! dockerd), and happens once; the cluster's half is in `cluster` (control plane and kubelet → readiness), and is repeated
//! by a reset. `prepare_node` and `start_containerd` are what the bake shares with it.

mod cluster;
pub mod extensions;
mod image_archives;
mod save;
pub mod scripts;
mod stop_order;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use crate::boot::cluster::Node;
pub use crate::boot::save::unfit as unfit_to_save;
pub use crate::boot::stop_order::{stop_daemon, STOP_ORDER};
use crate::cluster::certificates::ApiCertificate;
use crate::cluster::{postmortem, Cluster};
use crate::config::{Config, API_PORT, DAEMON_LIMIT, DOCKER_DIR, LOG_DIR, POD_LOG_DIR};
use crate::daemons::containerd;
use crate::daemons::containerd_config::Form;
use crate::daemons::docker_socket;
use crate::daemons::dockerd::{self, DOCKERD};
use crate::daemons::earlier_start;
use crate::daemons::port::Port;
use crate::daemons::settings::CommandLine;
use crate::daemons::{image_names, local_registry};
use crate::error::{Error, Result};
use crate::listen;
use crate::node::cluster_network::ClusterNetwork;
use crate::node::iptables::Iptables;
use crate::node::network::Network;
use crate::node::registry::Registries;
use crate::node::state_dir::StateDir;
use crate::node::store::{self, Volume};
use crate::node::{cgroup, cni, directories, dns_forwarder, hostpath, iptables, limits, mounts, network, orphans, pull_hosts};
use crate::readiness::{Failure, State};
use crate::restore;
use crate::supervisor::signals::Plan;
use crate::supervisor::Init;

/// SIGHUP would kill kubelet; dockerd reloads its configuration on it, and dumps its stacks on SIGUSR1.
pub const SIGNALS: Plan = Plan { stop: &STOP_ORDER, forwards_to: DOCKERD, orphan_ended: orphans::kill };

/// The user's settings for this start besides `Config`. They are read before anything is started, because this
/// removes passwords and variables for clients from the environment.
pub struct Settings {
    pub line: CommandLine,
    pub registries: Registries,
    /// Variables that have no effect with a cluster.
    pub ignored: Vec<String>,
}

/// Starts Docker alone, in an image without a baked cluster.
pub fn docker_alone(init: &Arc<Init>, settings: Settings) -> Result<()> {
    log::info!(target: "boot", "no cluster is baked into this image: starting Docker alone");
    limit_readiness(init)?;
    docker_socket::refuse(&init.config)?;
    let Settings { line, registries, .. } = settings;
    // Two dockerds in one directory would fail too, but with a less clear error, and only after the second has written.
    store::lock(&dockerd::data_root(&line, &init.config))?;
    if let Some(ip) = init.config.static_ip {
        network::set_static_ip(ip)?;
    }
    registries.prepare(&init.config.path("/"), false)?;
    let line = dockerd::with_mirror(line, registries.mirror());
    mounts::prepare()?;
    cgroup::prepare()?;
    // Here dockerd manages containerd itself.
    init.readiness.update(|state| state.containerd = true);
    limits::raise(&init.config);
    init.supervise(dockerd::spec_alone(line, &init.config)?)?;
    Ok(())
}

/// Starts Docker and the baked cluster, and resets the cluster when asked to, until the container stops.
pub fn with_cluster(
    init: &Arc<Init>,
    state: &StateDir,
    cluster: &Cluster,
    certificate: Arc<ApiCertificate>,
    settings: Settings,
) -> Result<()> {
    log::info!(target: "boot", "Docker and Kubernetes {}", cluster.kubernetes_version);
    limit_readiness(init)?;
    refuse_another_static_ip(init, cluster)?;
    refuse_taken_port()?;
    docker_socket::refuse(&init.config)?;
    let Settings { line, registries, ignored } = settings;
    // Before the node's directories on it are recreated: a volume that we refuse must stay as it is.
    store::lock(Path::new(DOCKER_DIR))?;
    let volume = store::inspect(state, &cluster.bake)?;
    let cluster_network = network::in_this_container(&cluster.network, cluster.static_ip)?;
    let network = prepare_node(&init.config, cluster.static_ip, &cluster_network)?;
    registries.prepare(Path::new("/"), true)?;
    if !ignored.is_empty() {
        log::warn!(target: "dockerd", "not passed on to dockerd: {}", ignored.join(", "));
    }
    let line = dockerd::with_mirror(line, registries.mirror());
    // The cluster's half begins here: a restore takes as long as the rest of the node's.
    let ours = init.begin_cluster();
    let restore = restore::start::begin(&ours, cluster)?;
    let iptables = network.iptables.clone();
    let port = Port::open(&line)?;
    let certificates = port.make_certificates()?;
    let dockerd = dockerd::spec_for_cluster(line, &init.config, network, port)?;
    match volume {
        Volume::Fresh => {
            // That of the image can be gone back to.
            let of_image = Cluster::load(&state.of_image().cluster_file())?.map(|cluster| cluster.bake);
            store::make(state, &of_image.into_iter().chain([cluster.bake.clone()]).collect::<Vec<_>>())?;
        }
        Volume::Returned => {
            let removed = earlier_start::remove_pods(cluster.containerd_form, &iptables)?;
            log::info!(target: "store", "{removed} containers of the earlier start's cluster removed");
        }
    }
    init.readiness.milestone("store");
    if !start_containerd(init, cluster.containerd_form, &cluster.pause_image, &iptables)? {
        return Ok(());
    }
    // Before Docker answers, because from then on names can be lost.
    let given = local_registry::start();
    image_names::keep(init, image_names::baked(), given.clone())?;
    let start_docker = || {
        if let Some(certificates) = certificates {
            certificates.finish()?;
            init.readiness.milestone("certificates");
        }
        init.supervise(dockerd)
    };
    let node = Node { init: init.clone(), cluster: cluster.clone(), network: cluster_network, iptables, certificate, given };
    node.bring_up(&ours, &restore, false, start_docker)?;
    node.serve_operations(restore)
}

/// The steps before any daemon starts, shared by bake and run.
pub fn prepare_node(config: &Config, static_ip: Ipv4Addr, cluster: &ClusterNetwork) -> Result<Network> {
    let interface = network::set_static_ip(static_ip)?;
    network::enable_forwarding()?;
    network::route_services(&interface, cluster)?;
    mounts::prepare()?;
    mounts::prepare_for_cluster()?;
    let iptables = iptables::choose(config)?;
    limits::raise(config);
    if !config.sysctls {
        limits::keep_from_kubelet()?;
    }
    cgroup::prepare()?;
    directories::mount_all()?;
    hostpath::watch()?;
    if let Err(error) = pull_hosts::watch() {
        log::warn!(target: "registry", "registry certificates that a job adds apply to Docker alone, not to pods: {error}");
    }
    let mtu = network::mtu(&interface);
    if cluster.has_bridge {
        cni::write(mtu, &cluster.pod_subnet)?;
        iptables::prepare_for_pods(&iptables, &cluster.pod_subnet)?;
    } else {
        cni::forget_addresses()?;
    }
    Ok(Network { mtu, dns: dns_forwarder::prepare(static_ip, cluster, &iptables)?, iptables })
}

/// Returns whether containerd answers. If it does not, the boot fails.
pub fn start_containerd(init: &Init, form: Form, pause_image: &str, iptables: &Iptables) -> Result<bool> {
    let containerd = init.supervise(containerd::spec(form, pause_image.to_string(), iptables.clone()))?;
    let answers = containerd.wait_until_answers(2 * DAEMON_LIMIT);
    if !answers {
        // If it kept dying, the supervisor has already failed the boot with the end of its log; here it hangs.
        init.fail(&containerd::error("containerd does not answer"));
    }
    Ok(answers)
}

fn refuse_another_static_ip(init: &Init, cluster: &Cluster) -> Result<()> {
    match init.config.static_ip {
        Some(asked) if asked != cluster.static_ip => {
            Err(Error::new(format!("STATIC_IP={asked}, but this image was baked with {}", cluster.static_ip))
                .advise("Leave STATIC_IP out, or bake an image with it: STATIC_IP=... ./build.sh IMAGE"))
        }
        _ => Ok(()),
    }
}

/// The API server runs in a pod and would report this only in its own log.
fn refuse_taken_port() -> Result<()> {
    listen::check_free(API_PORT).map_err(|cause| {
        Error::new(format!("port {API_PORT}, on which the API server listens, cannot be used: {cause}"))
            .advise("With --network=host, stop what uses it; otherwise use a network of the container's own")
    })
}

/// A waiting client must learn that the cluster does not come up, or does not come back.
fn limit_readiness(init: &Init) -> Result<()> {
    let (pod_logs, logs) = (init.config.path(POD_LOG_DIR), init.config.path(LOG_DIR));
    let limit = init.config.ready_timeout;
    init.readiness.watch(limit, move |state: &State| {
        postmortem::log_tails(&pod_logs, &logs);
        let (seconds, waiting) = (limit.as_secs(), state.waiting().join(", "));
        Failure::new(format!("the cluster has not been ready for {seconds} s, waiting for {waiting}"), 1)
    })
}
