//! The differences between Kubernetes versions. No other code depends on the version.

use crate::cluster::minor;
use crate::daemons::containerd;
use crate::error::{Error, Result};

/// How to configure kubeadm and kubelet for a range of versions.
#[derive(Debug, PartialEq)]
pub struct Dialect {
    /// First and last minor version of 1.x.
    minors: (u32, u32),
    /// The API version of kubeadm's configuration file.
    pub api: &'static str,
    /// The line of ClusterConfiguration that makes kubeadm's keys ECDSA (P-256) instead of RSA.
    pub ecdsa: &'static str,
    /// Whether KubeletConfiguration has `failCgroupV1` (since 1.31). Without it, 1.35 and later refuse cgroup v1.
    pub fail_cgroup_v1: bool,
    /// The oldest containerd, as major and minor version, that kubelet accepts.
    containerd: (u32, u32),
}

/// A version that is newer than all of these is baked like the last.
const TABLE: [Dialect; 3] = [
    Dialect {
        minors: (20, 20),
        api: "kubeadm.k8s.io/v1beta2",
        ecdsa: "featureGates: {PublicKeysECDSA: true}",
        fail_cgroup_v1: false,
        containerd: (1, 7),
    },
    Dialect {
        minors: (31, 37),
        api: "kubeadm.k8s.io/v1beta4",
        ecdsa: "encryptionAlgorithm: ECDSA-P256",
        fail_cgroup_v1: true,
        containerd: (1, 7),
    },
    // From 1.38 on, kubelet asks the runtime for its cgroup driver, which containerd 1.7 cannot tell.
    Dialect {
        minors: (38, u32::MAX),
        api: "kubeadm.k8s.io/v1beta4",
        ecdsa: "encryptionAlgorithm: ECDSA-P256",
        fail_cgroup_v1: true,
        containerd: (2, 0),
    },
];

/// The row for a version such as `v1.36.5`.
pub fn dialect(version: &str) -> Result<&'static Dialect> {
    minor(version).and_then(|minor| TABLE.iter().find(|row| (row.minors.0..=row.minors.1).contains(&minor))).ok_or_else(|| {
        Error::new(format!("Kubernetes {version} is not supported"))
            .advise("Supported are 1.31 and newer versions, and 1.20 for builds from Debian packages")
    })
}

/// Fails if this Kubernetes does not run on the containerd that comes with this Docker.
pub fn require_containerd(version: &str, have: &containerd::Version) -> Result<()> {
    let (major, minor) = dialect(version)?.containerd;
    if (have.major, have.minor) >= (major, minor) {
        return Ok(());
    }
    let why = if major == 2 { ": kubelet asks it for its cgroup driver, which older ones cannot tell" } else { "" };
    Err(Error::new(format!(
        "Kubernetes {version} needs containerd {major}.{minor} or newer{why}, and this is {}.{}",
        have.major, have.minor
    ))
    .advise("DOCKER_IMAGE names where Docker and its containerd come from: take a tag of docker such as 29-dind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_supported_version_has_a_dialect_and_so_has_every_newer_one() {
        for (version, api) in [("v1.20.2", "v1beta2"), ("v1.31.0", "v1beta4"), ("1.36.5", "v1beta4"), ("v1.37.1", "v1beta4")] {
            assert!(dialect(version).unwrap().api.ends_with(api), "{version}");
        }
        for version in ["v1.38.0", "v1.39.0", "v1.100.7"] {
            assert_eq!(dialect(version).unwrap(), TABLE.last().unwrap(), "{version}");
        }
        for version in ["v1.19.9", "v1.30.1", "v2.0.0", "latest", ""] {
            assert!(dialect(version).unwrap_err().to_string().contains("1.31 and newer"), "{version}");
        }
    }

    #[test]
    fn every_version_that_the_checkout_lists_has_a_dialect() {
        let listed: Vec<&str> = include_str!("../../scripts/versions").lines().filter(|line| line.starts_with('v')).collect();
        assert!(listed.len() > 5);
        for version in listed {
            dialect(version).unwrap();
        }
    }

    #[test]
    fn from_1_38_on_an_old_containerd_is_refused_with_the_reason() {
        let (old, new) = (containerd::Version { major: 1, minor: 7 }, containerd::Version { major: 2, minor: 0 });
        for version in ["v1.20.2", "v1.31.14", "v1.37.1"] {
            require_containerd(version, &old).unwrap();
        }
        for version in ["v1.37.1", "v1.38.0", "v1.41.2"] {
            require_containerd(version, &new).unwrap();
        }
        let refusal = require_containerd("v1.38.0", &old).unwrap_err().to_string();
        for words in ["Kubernetes v1.38.0 needs containerd 2.0 or newer", "cgroup driver", "this is 1.7", "29-dind"] {
            assert!(refusal.contains(words), "{words} is not in: {refusal}");
        }
    }
}
