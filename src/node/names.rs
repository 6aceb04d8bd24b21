//! The names and addresses under which others reach this container.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;

use crate::error::{Error, Result};

/// Longest host name, and its longest label (RFC 1035, 2.3.4).
const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

/// Every address of every interface, except link-local IPv6 ones, and the host name with its aliases; sorted,
/// without duplicates.
pub fn own() -> Result<Vec<String>> {
    let all = getifaddrs().map_err(|cause| Error::new(format!("cannot list the network interfaces: {cause}")))?;
    let address = |entry: nix::ifaddrs::InterfaceAddress| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let host = read("/proc/sys/kernel/hostname");
    Ok(join(&all.filter_map(address).collect::<Vec<_>>(), host.trim(), &read("/etc/hosts")))
}

fn join(addresses: &[IpAddr], host: &str, hosts: &str) -> Vec<String> {
    // Every pod's and container's veth has one, and nobody can connect to it without naming the interface.
    let is_link_local = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let addresses = addresses.iter().filter(|address| !is_link_local(address)).map(IpAddr::to_string);
    let short = host.split('.').next().unwrap_or(host);
    // Where `hostname --fqdn` finds them: the lines of /etc/hosts that contain the host name.
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or("").split_whitespace().skip(1).collect::<Vec<_>>());
    let aliases = lines.filter(|names| names.contains(&host)).flatten();
    let names = [host, short].into_iter().chain(aliases).filter(|name| is_host_name(name)).map(String::from);
    addresses.chain(names).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Allows underscores: no standard does, but many names have them, such as GitLab's aliases.
pub fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LONGEST_LABEL).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= LONGEST_NAME && name.trim_end_matches('.').split('.').all(is_label)
}

/// The host in a Host header, without the port; IPv6 addresses keep their brackets.
pub fn in_host_header(header: &str) -> Option<&str> {
    if header.starts_with('[') {
        let end = header.find(']')?;
        let (name, port) = header.split_at(end + 1);
        name[1..end].parse::<Ipv6Addr>().ok()?;
        return (port.is_empty() || is_port(port.strip_prefix(':')?)).then_some(name);
    }
    let (name, port) = match header.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (header, None),
    };
    let valid = name.parse::<IpAddr>().is_ok() || is_host_name(name);
    (valid && port.is_none_or(is_port)).then_some(name)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_header_gives_its_name_or_nothing() {
        for (header, name) in [
            ("localhost:10080", Some("localhost")),
            ("docker", Some("docker")),
            ("my-kind.ci.example:80", Some("my-kind.ci.example")),
            ("group__project", Some("group__project")),
            ("172.17.0.2:10080", Some("172.17.0.2")),
            ("[::1]:10080", Some("[::1]")),
            ("[fd00::2]", Some("[fd00::2]")),
            ("", None),
            (":10080", None),
            ("a b", None),
            ("a\nserver: https://evil", None),
            ("host:port", None),
            ("host:99999", None),
            ("user@host", None),
            ("-x", None),
            ("[::1", None),
            ("[x]:1", None),
            ("[::1]x", None),
        ] {
            assert_eq!(in_host_header(header), name, "{header:?}");
        }
    }

    #[test]
    fn addresses_of_all_interfaces_and_the_host_name_with_its_aliases_are_our_own() {
        let addresses = ["127.0.0.1", "172.17.0.2", "fe80::42:1", "::1", "fd00::2", "172.17.0.2"].map(|text| text.parse().unwrap());
        let hosts = "127.0.0.1 localhost\n172.17.0.2\tci.example.com ci a,b # ours\n172.17.0.3 other\n";
        assert_eq!(join(&addresses, "ci", hosts), ["127.0.0.1", "172.17.0.2", "::1", "ci", "ci.example.com", "fd00::2"]);
        assert_eq!(join(&[], "a.b", ""), ["a", "a.b"]);
        assert_eq!(join(&[], "", ""), Vec::<String>::new());
        assert_eq!(join(&[], "bad name,IP:1.2.3.4", ""), Vec::<String>::new());
    }

    #[test]
    fn a_host_name_has_labels_of_at_most_63_characters() {
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        for (name, expected) in [
            ("kind", true),
            ("group__project.example.", true),
            (longest.as_str(), true),
            (&format!("{longest}d"), false),
            (&"a".repeat(64), false),
            ("", false),
            ("a..b", false),
            ("-a", false),
            ("a-", false),
            ("a b", false),
            ("a,b", false),
            ("é", false),
        ] {
            assert_eq!(is_host_name(name), expected, "{name:?}");
        }
    }
}
