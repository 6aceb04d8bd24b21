//! Whether a registry can be reached: its name is known, and it accepts a connection. What it would answer is not asked.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::node::pull_hosts;
use crate::supervisor::reaper;

/// How long it may take.
struct Limits {
    /// A registry to accept a connection.
    connect: Duration,
    /// A name server (seconds).
    name: u64,
    all: Duration,
}

/// Whoever is told that there is no way asks the registry all the same.
const HASTY: Limits = Limits { connect: Duration::from_secs(1), name: 2, all: Duration::from_secs(3) };
/// Or an older image is taken. A name server that does not answer costs 5 s (resolv.conf(5)) until the next is asked, and
/// a lost SYN 1 s, and 2 s more (RFC 6298).
const PATIENT: Limits = Limits { connect: Duration::from_millis(3500), name: 7, all: Duration::from_secs(15) };
/// With one of these containerd goes through a proxy, which may know a way where we do not.
const PROXIES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];

/// Tries to connect to the servers of a registry (`HOST` or `HOST:PORT`). An error says why none can be reached.
pub fn registry(host: &str, is_patient: bool) -> Result<(), String> {
    if PROXIES.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) {
        return Ok(());
    }
    let limits = if is_patient { PATIENT } else { HASTY };
    let end = Instant::now() + limits.all;
    let mut last = Err("no server is named".to_string());
    for server in pull_hosts::servers(host) {
        last = connect(&server, &limits, end);
        if last.is_ok() || Instant::now() >= end {
            break;
        }
    }
    last
}

/// Connects to `HOST:PORT`.
fn connect(server: &str, limits: &Limits, end: Instant) -> Result<(), String> {
    let (host, port) = server.rsplit_once(':').ok_or_else(|| format!("{server} has no port"))?;
    let port = port.parse().map_err(|_| format!("{server} has no port"))?;
    let addresses = addresses(host.trim_start_matches('[').trim_end_matches(']'), limits.name);
    let mut last = Err(format!("cannot resolve {host}: no name server knows it, or none answers"));
    for address in addresses {
        let left = end.saturating_duration_since(Instant::now()).min(limits.connect);
        let connected = if left.is_zero() {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            TcpStream::connect_timeout(&SocketAddr::new(address, port), left)
        };
        last = connected.map(drop).map_err(|cause| format!("{server}: {cause}"));
        if last.is_ok() {
            break;
        }
    }
    last
}

/// The addresses of a name, from another program: in a static one, libc's own resolver depends on what else it loads.
fn addresses(host: &str, limit: u64) -> Vec<IpAddr> {
    if let Ok(address) = host.parse() {
        return vec![address];
    }
    let list = reaper::run(&mut reaper::within(limit, Command::new("getent").args(["ahosts", host]))).unwrap_or_default();
    from_list(&list)
}

/// Each address is there for several types of sockets.
fn from_list(list: &str) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = list.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    addresses.dedup();
    // IPv6 that leads nowhere is common.
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_address_is_reached_if_somebody_listens() {
        let end = || Instant::now() + HASTY.all;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        assert_eq!(connect(&server, &HASTY, end()), Ok(()));
        assert!(connect(&server, &HASTY, Instant::now()).unwrap_err().contains("timed out"));
        drop(listener);
        assert!(connect(&server, &HASTY, end()).unwrap_err().starts_with(&format!("{server}: ")));
        assert!(connect("no-port", &HASTY, end()).is_err() && connect("127.0.0.1:port", &HASTY, end()).is_err());
    }

    #[test]
    fn addresses_are_read_from_the_list_of_getent() {
        let list = "::1             STREAM localhost\n::1             DGRAM  \n::1             RAW    \n127.0.0.1       STREAM \n127.0.0.1       DGRAM  \n";
        assert_eq!(from_list(list), ["127.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        assert_eq!((from_list(""), addresses("::1", HASTY.name)), (vec![], vec!["::1".parse::<IpAddr>().unwrap()]));
    }
}
