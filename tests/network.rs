//! STATIC_IP: on which interface it lands, that nothing else changes, and when it is refused.
// No reaper runs in this process, so std's own wait calls steal nothing.
#![allow(clippy::disallowed_methods)]

mod common;

use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};

use common::dockerd::Dockerd;
use common::network::{addresses, ip, Network};
use common::node::{Container, Running, FILES_PORT};
use common::LIMIT;
use nix::sys::signal::Signal;

const STATIC_IP: &str = "172.99.99.1";
const OWN: &str = "10.77.0.2/24";
const DOCKER_PORT: u16 = 2375;

/// A container with this address to set, and a cable from eth0 to nowhere.
fn container(static_ip: &str, setup: &[&str]) -> Option<Container> {
    let mut container = Container::new()?;
    container.set("STATIC_IP", static_ip);
    for line in setup {
        ip(line);
    }
    Some(container)
}

const ETH0: [&str; 4] =
    ["link add eth0 type veth peer name far0", "link set far0 up", "link set eth0 up", "address add 10.77.0.2/24 dev eth0"];

fn booted(container: &Container) -> Running {
    let kind = container.start(&["run"]);
    // The daemon comes after the network.
    common::wait_for("the network is set", LIMIT, || container.root.join("var/log/kind/dockerd.log").exists().then_some(()));
    kind
}

/// Whether the static address is on the interface as /32, and the interface has kept its own.
fn is_right(interface: &str, own: &str) -> bool {
    let addresses = addresses();
    addresses.contains(&format!("{interface} {STATIC_IP}/32")) && addresses.contains(&format!("{interface} {own}"))
}

/// The container does not start, and says this in one error line.
fn refused(container: &Container, words: &[&str]) {
    let before = addresses();
    let mut kind = container.start(&["run"]);
    assert_eq!(kind.wait(LIMIT), 1);
    let errors: Vec<String> = kind.stderr().lines().filter(|line| line.starts_with("ERROR")).map(str::to_string).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    for word in words {
        assert!(errors[0].contains(word), "{word:?} is not in {:?}", errors[0]);
    }
    assert_eq!(addresses(), before);
}

#[test]
fn it_is_set_on_the_interface_of_the_default_route_beside_the_own_address() {
    let Some(container) = container(STATIC_IP, &ETH0) else { return };
    for line in ["link add aaa0 type veth peer name aaa1", "link set aaa0 up", "address add 10.78.0.2/24 dev aaa0"] {
        ip(line);
    }
    ip("route add default via 10.77.0.1 dev eth0");
    let _kind = booted(&container);
    assert!(is_right("eth0", OWN), "{:?}", addresses());
    assert_eq!(addresses().len(), 4, "loopback, two of eth0, one of aaa0: {:?}", addresses());
}

/// The negative control of this file: what SIOCSIFADDR does on the bare name is noticed.
#[test]
fn an_address_that_was_replaced_is_noticed() {
    let Some(_container) = container(STATIC_IP, &ETH0) else { return };
    assert!(!is_right("eth0", OWN));
    ip("address add 172.99.99.1/32 dev eth0");
    assert!(is_right("eth0", OWN));
    ip("address del 10.77.0.2/24 dev eth0");
    assert!(!is_right("eth0", OWN));
    ip("address flush dev eth0");
    ip("address add 10.77.0.2/24 dev eth0");
    ip("address add 172.99.99.1/24 dev eth0");
    assert!(!is_right("eth0", OWN));
}

#[test]
fn the_lowest_metric_decides_between_default_routes() {
    let Some(container) = container(STATIC_IP, &ETH0) else { return };
    for line in ["link add aaa0 type veth peer name aaa1", "link set aaa0 up", "link set aaa1 up", "address add 10.78.0.2/24 dev aaa0"] {
        ip(line);
    }
    ip("route add default via 10.78.0.1 dev aaa0 metric 200");
    ip("route add default via 10.77.0.1 dev eth0 metric 100");
    let _kind = booted(&container);
    assert!(is_right("eth0", OWN), "{:?}", addresses());
}

#[test]
fn without_a_default_route_it_is_set_on_the_first_interface() {
    let Some(container) = container(STATIC_IP, &ETH0) else { return };
    let _kind = booted(&container);
    assert!(is_right("eth0", OWN), "{:?}", addresses());
}

#[test]
fn without_any_interface_it_is_set_on_loopback() {
    let Some(container) = container(STATIC_IP, &[]) else { return };
    let _kind = booted(&container);
    assert!(is_right("lo", "127.0.0.1/8"), "{:?}", addresses());
}

#[test]
fn a_name_too_long_for_the_ioctl_is_no_obstacle() {
    let name = "a-long-name-012";
    let add = format!("link add {name} type veth peer name far0");
    let (up, address) = (format!("link set {name} up"), format!("address add {OWN} dev {name}"));
    let Some(container) = container(STATIC_IP, &[&add, "link set far0 up", &up, &address]) else { return };
    let _kind = booted(&container);
    assert!(is_right(name, OWN), "{:?}", addresses());
}

#[test]
fn a_restart_finds_it_there_and_changes_nothing() {
    let Some(container) = container(STATIC_IP, &ETH0) else { return };
    ip("route add default via 10.77.0.1 dev eth0");
    let mut kind = booted(&container);
    kind.signal(Signal::SIGTERM);
    assert_eq!(kind.wait(LIMIT), 0);
    let before = addresses();
    let again = container.start(&["run"]);
    again.wait_for_line("is on eth0");
    assert_eq!(addresses(), before);
    assert!(is_right("eth0", OWN), "{:?}", addresses());
}

#[test]
fn docker_alone_sets_no_address_that_was_not_asked_for() {
    let Some(container) = container("", &ETH0) else { return };
    let before = addresses();
    let _kind = booted(&container);
    assert_eq!(addresses(), before);
}

#[test]
fn the_gateways_own_address_is_refused() {
    let Some(container) = container("10.77.0.1", &ETH0) else { return };
    ip("route add default via 10.77.0.1 dev eth0");
    refused(&container, &["10.77.0.1", "gateway", "eth0", "STATIC_IP"]);
}

#[test]
fn an_address_that_a_neighbour_has_is_refused() {
    let Some(container) = container("10.77.0.9", &ETH0) else { return };
    let neighbour = Network::enter_new();
    let name = neighbour.name();
    container.network.within(|| ip(&format!("link set far0 netns {name}")));
    neighbour.within(|| {
        ip("link set far0 up");
        ip("address add 10.77.0.9/24 dev far0");
    });
    container.network.within(|| refused(&container, &["10.77.0.9", "another machine", "eth0", "STATIC_IP"]));
}

#[test]
fn a_free_address_of_the_own_network_is_taken() {
    let Some(container) = container("10.77.0.9", &ETH0) else { return };
    let _kind = booted(&container);
    assert!(addresses().contains(&"eth0 10.77.0.9/32".to_string()), "{:?}", addresses());
}

#[test]
fn what_cannot_be_a_nodes_address_is_refused_by_name() {
    for (value, why) in [
        ("nonsense", "not an IPv4 address"),
        ("127.0.0.1", "cannot be a node's address"),
        ("10.96.0.1", "10.96.0.0/12"),
        ("10.244.1.1", "10.244.0.0/16"),
    ] {
        let Some(container) = container(value, &ETH0) else { return };
        refused(&container, &[&format!("STATIC_IP={value}"), why]);
    }
}

/// Not a test: what the script `dockerd` of the tests below becomes.
#[test]
#[ignore = "the stand-in for dockerd, which the other tests start"]
fn the_stand_in_for_dockerd() {
    common::dockerd::run_if_asked();
}

/// Writes a setting of the thread's network namespace, for all of its interfaces.
fn set(setting: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/{setting}"), value).unwrap();
}

#[test]
fn the_files_and_docker_are_served_on_ipv6_and_ipv4_whatever_sockets_are_by_default() {
    for only_ipv6_by_default in ["0", "1"] {
        let Some(container) = Container::new() else { return };
        set("bindv6only", only_ipv6_by_default);
        Dockerd::install(&container);
        let _kind = container.start(&["run"]);
        container.wait_for_status("docker-ready", 200);
        for port in [FILES_PORT, DOCKER_PORT] {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        }
    }
}

#[test]
fn where_ipv6_is_disabled_the_files_and_docker_are_served_on_ipv4() {
    let Some(container) = Container::new() else { return };
    set("conf/all/disable_ipv6", "1");
    Dockerd::install(&container);
    let _kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 200);
    TcpStream::connect((Ipv6Addr::LOCALHOST, FILES_PORT)).expect_err("the test is void");
    TcpStream::connect((Ipv4Addr::LOCALHOST, DOCKER_PORT)).unwrap();
}
