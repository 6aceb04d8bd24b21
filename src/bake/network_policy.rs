//! NetworkPolicies, which our bridge does not enforce: with `KIND_NETWORK_POLICY`, the firewall of kube-router does, as
//! in k3s.

use crate::config::INIT;
use crate::error::{Error, Result};
use crate::node::cluster_network::ClusterNetwork;

pub const VARIABLE: &str = "KIND_NETWORK_POLICY";
const IMAGE: &str = "docker.io/cloudnativelabs/kube-router:v2.9.0";
const MANIFEST: &str = include_str!("network_policy.yaml");

/// What to apply, if the variable is set: to 1, or to an image of kube-router.
///
/// # Errors
/// It is not the name of an image, or another network is to be installed.
pub fn manifest(value: Option<&str>, network: &ClusterNetwork) -> Result<Option<String>> {
    let image = match value {
        None | Some("0") => return Ok(None),
        Some("1") => IMAGE,
        Some(image) if is_image(image) => image,
        Some(other) => {
            return Err(Error::new(format!("invalid {VARIABLE}={other}: use 1 (for {IMAGE}), or an image with a tag or digest")))
        }
    };
    if !network.has_bridge {
        return Err(Error::new(format!("{VARIABLE} needs the cluster's own bridge, which KIND_CNI=none leaves out"))
            .advise("Set only one of them: other networks enforce policies themselves"));
    }
    Ok(Some(MANIFEST.replace("IMAGE", image).replace("INIT", INIT).replace("SERVICES", &network.service_subnet)))
}

/// With a tag or digest, because for `latest` kubelet would ask a registry at every start.
fn is_image(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/:@".contains(&byte);
    let name = text.rsplit('/').next().unwrap_or_default();
    text.bytes().all(allowed) && name.contains([':', '@']) && !name.ends_with(":latest") && !name.ends_with([':', '@'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firewall_is_installed_only_where_it_is_asked_for() {
        let network = ClusterNetwork { service_subnet: "10.43.0.0/16".into(), ..ClusterNetwork::default() };
        for value in [None, Some("0")] {
            assert_eq!(manifest(value, &network).unwrap(), None);
        }
        for (value, image) in [("1", IMAGE), ("localhost:5000/router@sha256:aa", "localhost:5000/router@sha256:aa")] {
            let text = manifest(Some(value), &network).unwrap().unwrap();
            assert!(text.contains(&format!("image: \"{image}\"")) && text.contains("range=10.43.0.0/16"), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_installed_is_refused_by_name() {
        for value in ["yes", "kube-router", "kube-router:latest", "a:1 b", "localhost:5000/router", "a:"] {
            let message = manifest(Some(value), &ClusterNetwork::default()).unwrap_err().to_string();
            assert!(message.starts_with(&format!("invalid KIND_NETWORK_POLICY={value}: use 1")), "{message}");
        }
        let other = ClusterNetwork { has_bridge: false, ..ClusterNetwork::default() };
        assert!(manifest(Some("1"), &other).unwrap_err().to_string().contains("KIND_CNI=none"));
    }
}
