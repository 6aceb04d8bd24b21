//! The static address: the baked cluster's certificates, manifests and etcd all name it.
//!
//! netdevice(7): `SIOCSIFADDR` on the bare interface name would *replace* the container's own
//! address, so the static address gets a label (`eth0:kind`).

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::config::{POD_SUBNET, POD_SUBNETS, POLL};
use crate::error::{Error, Result};
use crate::files;
use crate::node::cluster_network::ClusterNetwork;
use crate::node::cni::BRIDGE;
use crate::node::iptables::{self, Iptables};
use crate::subnet;
use crate::supervisor::reaper;
use crate::sys;

/// How long a neighbour may take to answer ARP before the address counts as free.
const ARP_LIMIT: Duration = Duration::from_millis(300);

/// An interface's usual MTU, and Docker's default (bytes).
pub const ETHERNET_MTU: u32 = 1500;

/// One address of one interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Address {
    /// With its label, if it has one: `eth0:kind`.
    pub interface: String,
    pub ip: Ipv4Addr,
    pub mask: u32,
    pub loopback: bool,
    pub is_up: bool,
}

impl Address {
    /// The interface without the label.
    pub fn device(&self) -> &str {
        self.interface.split(':').next().unwrap_or_default()
    }
}

/// What the daemons need to know about the container's network.
#[derive(Clone, Debug)]
pub struct Network {
    /// Largest packet (bytes) that the container's own interface accepts.
    pub mtu: u32,
    /// The name server for Docker's containers, if there is a forwarder for them.
    pub dns: Option<Ipv4Addr>,
    pub iptables: Iptables,
}

/// Adds `ip` to the interface of the default route, or does nothing if an interface has it already.
/// Returns the interface.
///
/// # Errors
/// Another machine has the address, or neither the ioctl nor `ip` could set it.
pub fn set_static_ip(ip: Ipv4Addr) -> Result<String> {
    let addresses = addresses()?;
    if let Some(device) = device_of(ip, &addresses) {
        log::info!(target: "network", "{ip} is on {device} already");
        return Ok(device);
    }
    let default = current_default_route();
    refuse_collision(ip, default.as_ref().map(|(_, gateway)| *gateway), &addresses)?;
    let interface = choose_interface(default.map(|(interface, _)| interface), &addresses);
    match sys::set_interface_address(&format!("{interface}:kind"), ip) {
        Ok(()) => log::info!(target: "network", "{ip}/32 set on {interface}"),
        Err(cause) => {
            reaper::run(Command::new("ip").args(["address", "add", &format!("{ip}/32"), "dev", &interface]))
                .map_err(|error| Error::new(format!("cannot set {ip} on {interface}: by ioctl: {cause}; {error}")))?;
            log::info!(target: "network", "{ip}/32 set on {interface} by ip, since the ioctl failed: {cause}");
        }
    }
    Ok(interface)
}

/// Without a default route, the node itself could not reach Services: kube-proxy's rules rewrite their addresses
/// only after the kernel has found a route to them.
pub fn route_services(interface: &str, cluster: &ClusterNetwork) -> Result<()> {
    if current_default_route().is_some() {
        return Ok(());
    }
    log::info!(target: "network", "no route leads out of this container: nothing can be pulled");
    reaper::run(Command::new("ip").args(["route", "replace", &cluster.service_subnet, "dev", interface])).map(drop)
}

/// The baked cluster's network in this container: pods have the baked subnet, unless it is the default one; then the first that
/// does not overlap with a network of the container.
pub fn in_this_container(baked: &ClusterNetwork, static_ip: Ipv4Addr) -> Result<ClusterNetwork> {
    if baked.pod_subnet != POD_SUBNET || !baked.has_bridge {
        return Ok(baked.clone());
    }
    let addresses = addresses()?;
    let (subnet, taken) = choose_pod_subnet(&addresses, static_ip);
    if let Some(by) = taken {
        log::info!(target: "network", "pods get addresses of {subnet}, since {} is in {POD_SUBNET} itself", by.interface);
    }
    Ok(ClusterNetwork { pod_subnet: subnet.into(), ..baked.clone() })
}

/// The subnet, and the address that conflicts with the default one. If the container's network is so large that it
/// contains all of them, the default one is used: its route is more specific, and hides few addresses.
fn choose_pod_subnet(addresses: &[Address], static_ip: Ipv4Addr) -> (&'static str, Option<&Address>) {
    let taken = |subnet: &str| {
        // The pods' own bridge may be left over from an earlier start, in a pod whose container was restarted.
        let mut others = addresses.iter().filter(|address| address.interface != BRIDGE);
        others.find(|address| subnet::overlap(subnet, address.ip, address.mask))
    };
    let is_free = |subnet: &&str| taken(subnet).is_none() && !subnet::overlap(subnet, static_ip, u32::MAX);
    match POD_SUBNETS.into_iter().find(is_free) {
        Some(free) => (free, taken(POD_SUBNET)),
        None => (POD_SUBNET, None),
    }
}

pub fn mtu(interface: &str) -> u32 {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/mtu")).unwrap_or_default();
    text.trim().parse().map_or(ETHERNET_MTU, |mtu: u32| mtu.min(ETHERNET_MTU))
}

/// Has the kernel forget the connections of pods that are gone: it would send on what belongs to them, to an address that is
/// nobody's or another pod's by now (conntrack(8)).
pub fn forget_connections_of_pods(cluster: &ClusterNetwork) {
    for end in ["--src", "--reply-src"] {
        // It fails if there are none.
        let _ = reaper::run(Command::new("conntrack").args(["--delete", end, &cluster.pod_subnet]));
    }
}

/// Lets the kernel route between pods, Docker's bridge and the outside.
///
/// Must run before dockerd starts, which sets the FORWARD chain to DROP if it has to enable forwarding itself.
pub fn enable_forwarding() -> Result<()> {
    files::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    // Without it, a pod's reply to another pod bypasses conntrack on the bridge, and Services fail.
    let bridge = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if fs::write(bridge, "1").is_err() {
        iptables::load_modules(&["br_netfilter"]);
        if let Err(error) = files::write(bridge, "1") {
            log::warn!(target: "network", "{error}: Services may not reach pods; load br_netfilter on the host");
        }
    }
    Ok(())
}

/// The addresses of interfaces that are up.
fn addresses() -> Result<Vec<Address>> {
    Ok(all_addresses()?.into_iter().filter(|address| address.is_up).collect())
}

/// The addresses of all interfaces, including those that are down, as Docker's are for a moment after it has set them.
pub fn all_addresses() -> Result<Vec<Address>> {
    let all = getifaddrs().map_err(|cause| Error::new(format!("cannot list the network interfaces: {cause}")))?;
    Ok(all
        .filter_map(|entry| {
            Some(Address {
                ip: entry.address?.as_sockaddr_in()?.ip(),
                mask: entry.netmask.and_then(|mask| Some(mask.as_sockaddr_in()?.ip().into())).unwrap_or(u32::MAX),
                loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
                is_up: entry.flags.contains(InterfaceFlags::IFF_UP),
                interface: entry.interface_name,
            })
        })
        .collect())
}

/// The interface of the default route, if there is one.
pub fn default_interface() -> Option<String> {
    current_default_route().map(|(interface, _)| interface)
}

fn current_default_route() -> Option<(String, Ipv4Addr)> {
    default_route(&fs::read_to_string("/proc/net/route").unwrap_or_default())
}

/// Interface and gateway of the default route with the lowest metric, from `/proc/net/route`.
fn default_route(table: &str) -> Option<(String, Ipv4Addr)> {
    const RTF_UP: u32 = 1;
    /// An unreachable route, on the interface `*`.
    const RTF_REJECT: u32 = 0x200;
    let mut best: Option<(u32, String, Ipv4Addr)> = None;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [interface, destination, gateway, flags, _, _, metric, mask, ..] = fields[..] else { continue };
        let up = u32::from_str_radix(flags, 16).unwrap_or(0) & (RTF_UP | RTF_REJECT) == RTF_UP;
        let metric = metric.parse().unwrap_or(u32::MAX);
        if destination == "00000000" && mask == "00000000" && up && best.as_ref().is_none_or(|(least, ..)| metric < *least) {
            // The kernel prints the address in the machine's byte order.
            let gateway = u32::from_str_radix(gateway, 16).unwrap_or(0);
            best = Some((metric, interface.to_string(), Ipv4Addr::from(gateway.to_ne_bytes())));
        }
    }
    best.map(|(_, interface, gateway)| (interface, gateway))
}

/// The interface that has an address already, as in a pod whose container is started again.
fn device_of(ip: Ipv4Addr, addresses: &[Address]) -> Option<String> {
    addresses.iter().find(|address| address.ip == ip).map(|address| address.device().to_string())
}

/// The default route's interface, else the first that is up and not loopback, else loopback.
fn choose_interface(default: Option<String>, addresses: &[Address]) -> String {
    default
        .or_else(|| addresses.iter().find(|address| !address.loopback).map(|address| address.device().to_string()))
        .unwrap_or_else(|| "lo".to_string())
}

fn refuse_collision(ip: Ipv4Addr, gateway: Option<Ipv4Addr>, addresses: &[Address]) -> Result<()> {
    let Some(network) = addresses.iter().find(|address| subnet::is_same(address.ip, ip, address.mask)) else {
        return Ok(());
    };
    let owner = if gateway == Some(ip) {
        "the gateway"
    } else if answers_arp(ip) {
        "another machine"
    } else {
        return Ok(());
    };
    Err(Error::new(format!("the static address {ip} belongs to {owner} in the network of {}", network.interface))
        .advise("Run the container in another network, or bake an image with another STATIC_IP"))
}

/// Whether a machine on the local network has the address: sending a datagram makes the kernel ask by ARP.
fn answers_arp(ip: Ipv4Addr) -> bool {
    const DISCARD_PORT: u16 = 9;
    let Ok(socket) = UdpSocket::bind("0.0.0.0:0") else { return false };
    if socket.send_to(&[], (ip, DISCARD_PORT)).is_err() {
        return false;
    }
    reaper::poll(POLL, ARP_LIMIT, || arp_complete(&fs::read_to_string("/proc/net/arp").ok()?, ip).then_some(())).is_some()
}

/// Whether the ARP table (arp(7)) has a hardware address for `ip`.
fn arp_complete(table: &str, ip: Ipv4Addr) -> bool {
    const ATF_COM: u32 = 2;
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.first() == Some(&ip.to_string().as_str())
            && fields.get(2).and_then(|flags| u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()).unwrap_or(0) & ATF_COM != 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth1\t00000000\t010014AC\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
";

    fn address(interface: &str, ip: &str) -> Address {
        Address { interface: interface.into(), ip: ip.parse().unwrap(), mask: 0xffff_0000, loopback: interface == "lo", is_up: true }
    }

    #[test]
    fn the_default_route_of_the_lowest_metric_wins() {
        assert_eq!(default_route(ROUTES), Some(("eth0".into(), Ipv4Addr::new(172, 17, 0, 1))));
        assert_eq!(default_route(ROUTES.lines().next().unwrap()), None);
        assert_eq!(default_route(&ROUTES.replace("\t0003\t", "\t0000\t")), None);
        assert_eq!(default_route(&ROUTES.replace("\t0003\t", "\t0201\t")), None);
    }

    #[test]
    fn without_a_default_route_the_first_real_interface_or_loopback_serves() {
        let both = [address("lo", "127.0.0.1"), address("eth0", "172.18.0.2")];
        assert_eq!(choose_interface(Some("wlan0".into()), &both), "wlan0");
        assert_eq!(choose_interface(None, &both), "eth0");
        assert_eq!(choose_interface(None, &both[..1]), "lo");
    }

    #[test]
    fn a_label_is_no_interface() {
        let labelled = [address("lo", "127.0.0.1"), address("eth0:kind", "172.99.99.1")];
        assert_eq!(device_of(Ipv4Addr::new(172, 99, 99, 1), &labelled), Some("eth0".into()));
        assert_eq!(choose_interface(None, &labelled), "eth0");
    }

    #[test]
    fn pods_get_a_subnet_that_the_container_is_not_in() {
        let chosen = |addresses: &[Address]| choose_pod_subnet(addresses, Ipv4Addr::new(172, 99, 99, 1)).0;
        assert_eq!(chosen(&[address("lo", "127.0.0.1"), address("eth0", "172.17.0.2")]), POD_SUBNET);
        assert_eq!(chosen(&[address("eth0", "10.244.0.4")]), "10.245.0.0/16");
        assert_eq!(chosen(&[address("eth0", "10.244.0.4"), address("eth1", "10.245.9.1")]), "10.246.0.0/16");
        assert_eq!(chosen(&[address(BRIDGE, "10.244.0.1")]), POD_SUBNET, "our own bridge is not in the way");
        let wide = Address { mask: 0xff00_0000, ..address("eth0", "10.1.2.3") };
        assert_eq!(chosen(&[wide]), POD_SUBNET, "all of them are as bad");
        let narrow = Address { mask: u32::MAX, ..address("eth0", "10.244.0.4") };
        assert_eq!(chosen(std::slice::from_ref(&narrow)), "10.245.0.0/16");
        assert_eq!(choose_pod_subnet(&[narrow], Ipv4Addr::new(10, 245, 0, 5)).0, "10.246.0.0/16", "the node's own address is in it");
    }

    #[test]
    fn the_gateways_address_is_refused_and_a_foreign_network_is_not() {
        let addresses = [address("eth0", "172.99.0.2")];
        let ip = Ipv4Addr::new(172, 99, 99, 1);
        let message = refuse_collision(ip, Some(ip), &addresses).unwrap_err().to_string();
        assert!(message.contains("172.99.99.1 belongs to the gateway in the network of eth0"), "{message}");
        assert!(refuse_collision(ip, None, &[address("eth0", "172.18.0.2")]).is_ok());
    }

    #[test]
    fn only_a_complete_arp_entry_is_an_answer() {
        let table = "IP address  HW type  Flags  HW address  Mask  Device
172.99.99.1  0x1  0x2  02:42:ac:11:00:03  *  eth0
172.99.99.2  0x1  0x0  00:00:00:00:00:00  *  eth0
";
        assert!(arp_complete(table, Ipv4Addr::new(172, 99, 99, 1)));
        assert!(!arp_complete(table, Ipv4Addr::new(172, 99, 99, 2)));
        assert!(!arp_complete(table, Ipv4Addr::new(172, 99, 99, 3)));
    }
}
