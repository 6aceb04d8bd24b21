//! The boot, readable from top to bottom: network → mounts and cgroups → store → containerd →
//! dockerd beside kubelet → readiness. `node` is what the bake shares with it.

pub mod extensions;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use crate::cluster::{monitor, postmortem, Cluster};
use crate::config::{
    subnet_contains, API_PORT, CLUSTER_LIMIT, DAEMON_LIMIT, DOCKER_SOCKET, LOG_DIR, POD_LOG_DIR, POD_SUBNET, SERVICE_SUBNET,
};
use crate::daemons::{self, containerd, dockerd, image_names, kubelet};
use crate::error::{Error, Result};
use crate::init::Init;
use crate::node::network::Network;
use crate::node::registry::Registries;
use crate::node::store::{self, Volume};
use crate::node::{cgroup, cni, hostpath, mounts, network, resolver, scratch};
use crate::readiness::{FAILED, KUBERNETES_READY};

/// Starts Docker alone, in an image that no cluster was baked into.
pub fn docker_alone(init: &Arc<Init>, flags: Vec<String>) -> Result<()> {
    log::info!(target: "boot", "no cluster is baked into this image: starting Docker alone");
    if let Some(ip) = init.config.static_ip {
        network::set_static_ip(ip)?;
    }
    let registries = Registries::from_env(|name| std::env::var(name).ok())?;
    registries.prepare(&init.config.path("/"), false)?;
    let flags = [registries.dockerd_flags(&init.config.path("/")), flags].concat();
    mounts::prepare()?;
    cgroup::prepare()?;
    daemons::supervise(init, dockerd::spec_alone(flags, init.config.path(DOCKER_SOCKET))?)?;
    Ok(())
}

/// Starts Docker and the baked cluster, and follows the cluster until the container stops.
pub fn with_cluster(init: &Arc<Init>, cluster: &Cluster, flags: Vec<String>) -> Result<()> {
    log::info!(target: "boot", "Docker and Kubernetes {}", cluster.kubernetes_version);
    refuse_another_static_ip(init, cluster)?;
    refuse_taken_port()?;
    let registries = Registries::from_env(|name| std::env::var(name).ok())?;
    let network = prepare_node(cluster.static_ip)?;
    warn_of_shared_subnets(cluster.static_ip)?;
    registries.prepare(Path::new("/"), true)?;
    let flags = [registries.dockerd_flags(Path::new("/")), flags].concat();
    let dockerd = dockerd::spec_for_cluster(flags, init.config.path(DOCKER_SOCKET), network)?;
    let volume = store::prepare(&cluster.bake)?;
    init.readiness.milestone("store");
    if !start_containerd(init, &cluster.pause_image)? {
        return Ok(());
    }
    if volume == Volume::Returned {
        let removed = containerd::remove_pod_containers()?;
        log::info!(target: "store", "{removed} containers of the earlier start's cluster removed");
    }
    daemons::supervise(init, dockerd)?;
    daemons::supervise(init, kubelet::spec(cluster.static_ip, init.config.kubelet_arguments.clone()))?;
    image_names::keep(init)?;
    give_up_in_time(init);
    monitor::run(init, cluster)
}

/// What bake and run have in common before any daemon starts.
pub fn prepare_node(static_ip: Ipv4Addr) -> Result<Network> {
    let interface = network::set_static_ip(static_ip)?;
    network::enable_forwarding()?;
    network::route_services(&interface)?;
    mounts::prepare()?;
    mounts::prepare_for_cluster()?;
    cgroup::prepare()?;
    scratch::mount_all()?;
    hostpath::watch()?;
    let mtu = network::mtu(&interface);
    cni::write(mtu)?;
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

/// In a pod of a cluster with kubeadm's or flannel's default, our own address is one of our pods' too.
fn warn_of_shared_subnets(static_ip: Ipv4Addr) -> Result<()> {
    let own = network::own_address(static_ip)?;
    for subnet in [POD_SUBNET, SERVICE_SUBNET].into_iter().filter(|subnet| subnet_contains(subnet, own)) {
        log::warn!(target: "network", "this container's address {own} lies in {subnet}, which the cluster inside uses itself: its pods may not be reachable");
    }
    Ok(())
}

/// The API server runs in a pod and would only say so in its log.
fn refuse_taken_port() -> Result<()> {
    std::net::TcpListener::bind(("0.0.0.0", API_PORT)).map(drop).map_err(|cause| {
        Error::new(format!("port {API_PORT}, on which the API server listens, cannot be used: {cause}"))
            .advise("With --network=host, stop what uses it; otherwise use a network of the container's own")
    })
}

/// A client that waits must hear of a cluster that will not come up.
fn give_up_in_time(init: &Arc<Init>) {
    let init = init.clone();
    std::thread::spawn(move || {
        init.pause(CLUSTER_LIMIT);
        if !init.stopping()
            && ![KUBERNETES_READY, extensions::CLUSTER_UP].iter().any(|name| init.readiness.has_reached(name))
            && !init.readiness.exists(FAILED)
        {
            postmortem::log_tails(&init.config.path(POD_LOG_DIR), &init.config.path(LOG_DIR));
            let waiting = init.waiting().join(", ");
            init.fail(&Error::new(format!("the cluster is not ready after {} s, waiting for {waiting}", CLUSTER_LIMIT.as_secs())), 1);
        }
    });
}
