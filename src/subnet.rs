//! Subnets of IPv4, such as `10.244.0.0/16` (RFC 4632).

use std::net::Ipv4Addr;

/// Whether a subnet such as `10.244.0.0/16` overlaps with the subnet of `ip` and a netmask.
pub fn overlap(subnet: &str, ip: Ipv4Addr, mask: u32) -> bool {
    parse(subnet).is_some_and(|(network, bits)| is_same(network, ip, mask & bits))
}

/// Network and netmask of a subnet such as `10.244.0.0/16`.
pub fn parse(subnet: &str) -> Option<(Ipv4Addr, u32)> {
    let (network, bits) = subnet.split_once('/')?;
    let bits: u32 = bits.parse().ok().filter(|bits| *bits <= u32::BITS)?;
    Some((network.parse().ok()?, u32::MAX.checked_shl(u32::BITS - bits).unwrap_or(0)))
}

/// Whether two addresses agree in the bits of a netmask.
pub fn is_same(a: Ipv4Addr, b: Ipv4Addr, mask: u32) -> bool {
    u32::from(a) & mask == u32::from(b) & mask
}
