//! The cluster's network, as it was baked or as this container has it (`network::in_this_container`): the subnets of pods
//! and Services, and whether the pods' bridge is ours.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::config::{POD_SUBNET, SERVICE_SUBNET};
use crate::error::{Error, Result};
use crate::subnet;

/// A bake's variable for who provides the pods' network: `bridge` (ours) or `none`.
pub const CNI: &str = "KIND_CNI";
/// A subnet of Services must have room for the API server's and the DNS server's addresses, which kubeadm chooses (the
/// first and the tenth), and one of pods for more than those of the cluster itself.
const LONGEST_PREFIX: u32 = 24;
const SHORTEST_PREFIX: u32 = 8;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetwork {
    pub pod_subnet: String,
    pub service_subnet: String,
    /// Whether pods are on our own bridge, or on a network that a hook has installed.
    pub has_bridge: bool,
    /// Whether something that the bake has installed on our bridge enforces NetworkPolicies.
    pub enforces_policies: bool,
}

impl Default for ClusterNetwork {
    fn default() -> ClusterNetwork {
        ClusterNetwork { pod_subnet: POD_SUBNET.into(), service_subnet: SERVICE_SUBNET.into(), has_bridge: true, enforces_policies: false }
    }
}

impl ClusterNetwork {
    /// For a bake, with subnets other than the default ones if they are given.
    ///
    /// # Errors
    /// A subnet is not one of IPv4, is too small or too large, or contains an address that is used otherwise.
    pub fn new(pods: Option<String>, services: Option<String>, static_ip: Ipv4Addr, cni: Option<String>) -> Result<ClusterNetwork> {
        let default = ClusterNetwork::default();
        let has_bridge = match cni.as_deref() {
            None | Some("bridge") => true,
            Some("none") => false,
            Some(other) => {
                return Err(Error::new(format!("{CNI}={other} is neither bridge nor none"))
                    .advise(format!("For another network, give {CNI}=none and install it in hooks/after-cluster.sh")))
            }
        };
        let network = ClusterNetwork {
            pod_subnet: pods.unwrap_or(default.pod_subnet),
            service_subnet: services.unwrap_or(default.service_subnet),
            has_bridge,
            enforces_policies: false,
        };
        let pods = check("podSubnet", &network.pod_subnet, static_ip)?;
        check("serviceSubnet", &network.service_subnet, static_ip)?;
        if subnet::overlap(&network.service_subnet, pods.0, pods.1) {
            let (pods, services) = (&network.pod_subnet, &network.service_subnet);
            return Err(Error::new(format!("networking.podSubnet {pods} and networking.serviceSubnet {services} overlap")));
        }
        Ok(network)
    }

    /// The address of the API server's Service: the first of the subnet.
    pub fn api_service_ip(&self) -> Ipv4Addr {
        let (network, mask) = subnet::parse(&self.service_subnet).expect("it was checked when the cluster was baked");
        Ipv4Addr::from((u32::from(network) & mask) + 1)
    }
}

fn check(name: &str, subnet: &str, static_ip: Ipv4Addr) -> Result<(Ipv4Addr, u32)> {
    let bad = |why: &str| {
        Error::new(format!("networking.{name} {subnet} {why}")).advise(format!("Give a subnet such as {POD_SUBNET} or {SERVICE_SUBNET}"))
    };
    let (network, mask) = subnet::parse(subnet).ok_or_else(|| bad("is not an IPv4 subnet, and only IPv4 is supported"))?;
    if !(SHORTEST_PREFIX..=LONGEST_PREFIX).contains(&mask.count_ones()) {
        return Err(bad(&format!("is too large or too small: its prefix must be /{SHORTEST_PREFIX} to /{LONGEST_PREFIX}")));
    }
    if u32::from(network) & !mask != 0 {
        return Err(bad("has host bits set"));
    }
    if subnet::overlap(subnet, static_ip, u32::MAX) {
        return Err(bad(&format!("contains the node's own address {static_ip}")));
    }
    if network.is_loopback() || network.is_multicast() || network.is_link_local() {
        return Err(bad("cannot be used"));
    }
    Ok((network, mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Ipv4Addr = Ipv4Addr::new(172, 99, 99, 1);

    fn network(pods: &str, services: &str, cni: &str) -> Result<ClusterNetwork> {
        let given = |text: &str| Some(text.to_string()).filter(|text| !text.is_empty());
        ClusterNetwork::new(given(pods), given(services), NODE, given(cni))
    }

    #[test]
    fn what_is_not_given_is_the_default() {
        assert_eq!(network("", "", "").unwrap(), ClusterNetwork::default());
        assert_eq!(ClusterNetwork::default().api_service_ip(), Ipv4Addr::new(10, 96, 0, 1));
        let other = network("10.200.0.0/16", "10.43.0.0/16", "none").unwrap();
        assert_eq!((other.pod_subnet.as_str(), other.has_bridge), ("10.200.0.0/16", false));
        assert_eq!(other.api_service_ip(), Ipv4Addr::new(10, 43, 0, 1));
    }

    #[test]
    fn what_cannot_be_a_network_is_refused_by_name() {
        for (pods, services, cni, why) in [
            ("fd00::/64", "", "", "networking.podSubnet fd00::/64 is not an IPv4 subnet"),
            ("10.244.0.0/16,fd00::/64", "", "", "is not an IPv4 subnet"),
            ("10.244.0.0", "", "", "is not an IPv4 subnet"),
            ("10.244.0.0/33", "", "", "is not an IPv4 subnet"),
            ("10.244.0.0/28", "", "", "prefix"),
            ("0.0.0.0/0", "", "", "prefix"),
            ("", "10.96.0.1/12", "", "networking.serviceSubnet 10.96.0.1/12 has host bits set"),
            ("172.99.0.0/16", "", "", "contains the node's own address 172.99.99.1"),
            ("127.0.0.0/16", "", "", "cannot be used"),
            ("10.100.0.0/16", "", "", "overlap"),
            ("", "10.244.0.0/20", "", "overlap"),
            ("", "", "calico", "KIND_CNI=calico is neither bridge nor none"),
        ] {
            let message = network(pods, services, cni).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        }
    }
}
