//! The IPv4 addresses under which others reach this container: one in each network that it is connected
//! to, including those that it joins later.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{bind, recv, socket, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

use crate::error::{Error, Result};
use crate::node::cluster_network::ClusterNetwork;
use crate::node::network::{self, Address};
use crate::readiness::Readiness;
use crate::subnet;
use crate::threads;

/// What we need to distinguish the container's own addresses from those that the cluster and Docker create.
#[derive(Clone)]
pub struct OwnAddresses {
    static_ip: Ipv4Addr,
    pod_subnet: String,
}

impl OwnAddresses {
    pub fn new(static_ip: Ipv4Addr, cluster: &ClusterNetwork) -> OwnAddresses {
        OwnAddresses { static_ip, pod_subnet: cluster.pod_subnet.clone() }
    }

    /// The current addresses, starting with the default route's interface; the static address if there is no other.
    pub fn now(&self) -> Result<Vec<Ipv4Addr>> {
        let is_bridge = |interface: &str| Path::new("/sys/class/net").join(interface).join("bridge").exists();
        Ok(self.choose(&network::all_addresses()?, network::default_interface().as_deref(), is_bridge))
    }

    fn choose(&self, all: &[Address], default: Option<&str>, is_bridge: impl Fn(&str) -> bool) -> Vec<Ipv4Addr> {
        let is_default = |address: &Address| Some(address.device()) == default;
        // Bridges in here belong to Docker or the pods, unless one is the machine's way out (--network=host).
        // An interface with an address from the pods' subnet belongs to a pod network that the user has installed.
        let is_own = |address: &&Address| {
            let inner = is_bridge(address.device()) || subnet::overlap(&self.pod_subnet, address.ip, u32::MAX);
            !address.loopback && address.ip != self.static_ip && !address.ip.is_link_local() && (is_default(address) || !inner)
        };
        let (mut own, others): (Vec<&Address>, _) = all.iter().filter(is_own).partition(|address| is_default(address));
        own.extend(others);
        let own: Vec<Ipv4Addr> = own.into_iter().map(|address| address.ip).collect();
        if own.is_empty() {
            return vec![self.static_ip];
        }
        own
    }
}

/// Calls `changed` whenever an IPv4 address may have been added or removed (rtnetlink(7)), in a thread that sleeps otherwise
/// and ends with the cluster.
pub fn watch(readiness: &Arc<Readiness>, mut changed: impl FnMut() + Send + 'static) -> Result<()> {
    let fail = |cause: Errno| Error::new(format!("cannot watch this container's addresses: {cause}"));
    let socket = subscribe().map_err(fail)?;
    let readiness = readiness.clone();
    threads::start("addresses", move || {
        // The contents do not matter: even an overrun (ENOBUFS) means that something has changed.
        let receive = || matches!(recv(socket.as_raw_fd(), &mut [0], MsgFlags::empty()), Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS));
        while readiness.wait_readable(socket.as_fd()).is_ok_and(|can| can) && receive() {
            changed();
        }
        if !readiness.is_over() {
            log::warn!(target: "network", "this container's addresses are no longer watched");
        }
    })
}

fn subscribe() -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, libc::RTMGRP_IPV4_IFADDR as u32))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(all: &[&str], default: Option<&str>) -> Vec<String> {
        let own = OwnAddresses { static_ip: Ipv4Addr::new(172, 99, 99, 1), pod_subnet: "10.244.0.0/16".into() };
        let address = |text: &&str| {
            let (interface, ip) = text.split_once(' ').unwrap();
            Address { interface: interface.into(), ip: ip.parse().unwrap(), mask: 0xffff_0000, loopback: interface == "lo", is_up: true }
        };
        let is_bridge = |name: &str| ["cni0", "docker0", "br-0123456789ab", "br0"].contains(&name);
        own.choose(&all.iter().map(address).collect::<Vec<_>>(), default, is_bridge).iter().map(Ipv4Addr::to_string).collect()
    }

    #[test]
    fn one_of_each_network_counts_that_of_the_default_route_first() {
        let all = ["lo 127.0.0.1", "aaa0 172.18.0.3", "eth0 172.17.0.2", "eth0:kind 172.99.99.1", "eth0 172.17.0.9"];
        assert_eq!(chosen(&all, Some("eth0")), ["172.17.0.2", "172.17.0.9", "172.18.0.3"]);
        assert_eq!(chosen(&all, None), ["172.18.0.3", "172.17.0.2", "172.17.0.9"]);
    }

    #[test]
    fn what_docker_and_the_cluster_make_in_here_does_not_count() {
        let inner = ["docker0 172.18.0.1", "cni0 10.244.0.1", "br-0123456789ab 172.19.0.1", "flannel.1 10.244.0.0", "tun0 169.254.20.10"];
        assert_eq!(chosen(&[&inner[..], &["eth0 172.17.0.2"]].concat(), Some("eth0")), ["172.17.0.2"]);
        assert_eq!(chosen(&[&inner[..], &["lo:kind 172.99.99.1"]].concat(), None), ["172.99.99.1"], "the last resort");
    }

    #[test]
    fn a_machine_may_be_behind_a_bridge_and_a_container_in_a_network_of_pods() {
        assert_eq!(chosen(&["br0 192.168.1.2", "docker0 172.17.0.1"], Some("br0")), ["192.168.1.2"]);
        assert_eq!(chosen(&["eth0 10.244.0.7"], Some("eth0")), ["10.244.0.7"]);
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn an_address_that_comes_or_goes_is_noticed() {
        // In a network namespace of its own for this thread, which takes root.
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
            return;
        }
        let (sender, changes) = std::sync::mpsc::channel();
        let node = Readiness::new(std::env::temp_dir().join(format!("kind-addresses-{}", std::process::id())));
        watch(&Arc::new(node.begin_cluster()), move || sender.send(()).unwrap_or_default()).unwrap();
        let mut add = std::process::Command::new("ip");
        // A test of the reaper's, in this process, may have had its status.
        let _ = add.args(["address", "add", "10.1.1.1/32", "dev", "lo"]).status();
        changes.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        // The thread ends, and what it has.
        node.begin_cluster();
        let end = || changes.recv_timeout(std::time::Duration::from_secs(10));
        assert!(std::iter::repeat_with(end).find(|end| end.is_err()) == Some(Err(std::sync::mpsc::RecvTimeoutError::Disconnected)));
    }
}
