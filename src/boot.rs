//! The boot, readable from top to bottom: network → mounts and cgroups → store → containerd →
//! dockerd beside kubelet → readiness. `node` is what the bake shares with it.

pub mod extensions;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use crate::cluster::{control_plane, monitor, postmortem, Cluster};
use crate::config::{Config, API_PORT, CLUSTER_LIMIT, DAEMON_LIMIT, LOG_DIR, POD_LOG_DIR, STATIC_POD_DIR};
use crate::daemons::port::Port;
use crate::daemons::settings::CommandLine;
use crate::daemons::{self, containerd, dockerd, image_names, kubelet};
use crate::error::{Error, Result};
use crate::init::Init;
use crate::node::capacity::Capacity;
use crate::node::network::Network;
use crate::node::registry::Registries;
use crate::node::store::{self, Volume};
use crate::node::{cgroup, cni, hostpath, iptables, limits, mounts, network, resolver, scratch};
use crate::readiness::FAILED;

/// Starts Docker alone, in an image that no cluster was baked into.
pub fn docker_alone(init: &Arc<Init>, line: CommandLine) -> Result<()> {
    log::info!(target: "boot", "no cluster is baked into this image: starting Docker alone");
    if let Some(ip) = init.config.static_ip {
        network::set_static_ip(ip)?;
    }
    let registries = Registries::from_env(|name| std::env::var(name).ok())?;
    registries.prepare(&init.config.path("/"), false)?;
    let line = line.after(registries.dockerd_flags(&init.config.path("/")));
    mounts::prepare()?;
    cgroup::prepare()?;
    init.readiness.update(|conditions| conditions.containerd = true);
    limits::raise(&init.config);
    daemons::supervise(init, dockerd::spec_alone(line, &init.config)?)?;
    Ok(())
}

/// Starts Docker and the baked cluster, and follows the cluster until the container stops.
pub fn with_cluster(init: &Arc<Init>, cluster: &Cluster, line: CommandLine) -> Result<()> {
    log::info!(target: "boot", "Docker and Kubernetes {}", cluster.kubernetes_version);
    refuse_another_static_ip(init, cluster)?;
    refuse_taken_port()?;
    // Before the node's directories on it are made anew: a volume that is refused is left as it is.
    let volume = store::inspect(&cluster.bake)?;
    let registries = Registries::from_env(|name| std::env::var(name).ok())?;
    let network = prepare_node(&init.config, cluster.static_ip)?;
    registries.prepare(Path::new("/"), true)?;
    let line = line.after(registries.dockerd_flags(Path::new("/")));
    let port = Port::open(&line)?;
    let certificates = port.make_certificates()?;
    let dockerd = dockerd::spec_for_cluster(line, &init.config, network, port)?;
    if volume == Volume::Fresh {
        store::make(&cluster.bake)?;
    }
    init.readiness.milestone("store");
    if !start_containerd(init, &cluster.pause_image)? {
        return Ok(());
    }
    if volume == Volume::Returned {
        let removed = containerd::remove_pod_containers()?;
        log::info!(target: "store", "{removed} containers of the earlier start's cluster removed");
    }
    if let Err(error) = control_plane::hold_back(Path::new(STATIC_POD_DIR)) {
        // A manifest that the user has mounted, for example.
        log::warn!(target: "boot", "the whole control plane starts at once: {error}");
    }
    daemons::supervise(init, kubelet::spec(cluster.static_ip, Capacity::prepare()?, init.config.kubelet_arguments.clone()))?;
    if let Some(certificates) = certificates {
        certificates.finish()?;
        init.readiness.milestone("certificates");
    }
    daemons::supervise(init, dockerd)?;
    if let Err(error) = iptables::lead_to_api_server(cluster.static_ip) {
        log::warn!(target: "network", "the first pods wait for kube-proxy: {error}");
    }
    image_names::keep(init)?;
    give_up_in_time(init)?;
    monitor::run(init, cluster)
}

/// What bake and run have in common before any daemon starts.
pub fn prepare_node(config: &Config, static_ip: Ipv4Addr) -> Result<Network> {
    let interface = network::set_static_ip(static_ip)?;
    network::enable_forwarding()?;
    network::route_services(&interface)?;
    mounts::prepare()?;
    mounts::prepare_for_cluster()?;
    iptables::choose(config)?;
    limits::raise(config);
    cgroup::prepare()?;
    scratch::mount_all()?;
    hostpath::watch()?;
    let mtu = network::mtu(&interface);
    cni::write(mtu, network::pod_subnet()?)?;
    Ok(Network { mtu, dns: resolver::prepare(static_ip)? })
}

/// Whether containerd answers. When it does not, the boot has failed and says so.
pub fn start_containerd(init: &Arc<Init>, pause_image: &str) -> Result<bool> {
    let containerd = daemons::supervise(init, containerd::spec(pause_image.to_string()))?;
    let answers = containerd.wait_until_answers(2 * DAEMON_LIMIT);
    if !answers {
        // One that keeps dying was given up with the end of its log; this is one that hangs.
        init.fail(&Error::new("containerd does not answer").advise(format!("Its log is {LOG_DIR}/containerd.log in the container")), 1);
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

/// The API server runs in a pod and would only say so in its log.
fn refuse_taken_port() -> Result<()> {
    std::net::TcpListener::bind(("0.0.0.0", API_PORT)).map(drop).map_err(|cause| {
        Error::new(format!("port {API_PORT}, on which the API server listens, cannot be used: {cause}"))
            .advise("With --network=host, stop what uses it; otherwise use a network of the container's own")
    })
}

/// A client that waits must hear of a cluster that does not come up, or does not come back.
fn give_up_in_time(init: &Arc<Init>) -> Result<()> {
    let init = init.clone();
    let watch = move || {
        while !init.stopping() {
            let unready = init.readiness.unready_for();
            // What the user's own scripts wait for is theirs to limit.
            let late = unready >= CLUSTER_LIMIT && !init.readiness.conditions().cluster();
            if late && !init.readiness.exists(FAILED) {
                postmortem::log_tails(&init.config.path(POD_LOG_DIR), &init.config.path(LOG_DIR));
                let seconds = unready.as_secs();
                init.fail(&Error::new(format!("the cluster has not been ready for {seconds} s, waiting for {}", missing(&init))), 1);
            }
            let left = CLUSTER_LIMIT.saturating_sub(unready);
            // While it is ready, or given up, once in this long.
            init.pause(if left.is_zero() { CLUSTER_LIMIT } else { left });
        }
    };
    let started = std::thread::Builder::new().name("limit".into()).spawn(watch);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the thread that watches the time: {cause}")))
}

/// What the cluster is not ready for want of.
fn missing(init: &Init) -> String {
    let conditions = init.readiness.conditions();
    let first = [
        (conditions.containerd, "containerd"),
        (conditions.docker, "dockerd"),
        (conditions.kubelet, "kubelet"),
        (conditions.api_server, "the API server"),
        (conditions.etcd, "etcd"),
    ];
    let first = first.into_iter().find(|(there, _)| !there).map(|(_, name)| name.to_string());
    let pods = init.waiting();
    first.unwrap_or_else(|| if pods.is_empty() { "the DNS".into() } else { pods.join(", ") })
}
