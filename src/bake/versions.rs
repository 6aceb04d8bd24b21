//! The differences between Kubernetes versions. No other code depends on the version.

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
}

const TABLE: [Dialect; 2] = [
    Dialect { minors: (20, 20), api: "kubeadm.k8s.io/v1beta2", ecdsa: "featureGates: {PublicKeysECDSA: true}", fail_cgroup_v1: false },
    Dialect { minors: (31, 36), api: "kubeadm.k8s.io/v1beta4", ecdsa: "encryptionAlgorithm: ECDSA-P256", fail_cgroup_v1: true },
];

/// The row for a version such as `v1.36.2`.
pub fn dialect(version: &str) -> Result<&'static Dialect> {
    let minor = version.trim_start_matches('v').strip_prefix("1.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    minor.and_then(|minor| TABLE.iter().find(|row| (row.minors.0..=row.minors.1).contains(&minor))).ok_or_else(|| {
        Error::new(format!("Kubernetes {version} is not supported"))
            .advise("Supported versions are 1.31 to 1.36, and 1.20 for builds from Debian packages")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_supported_version_has_a_dialect() {
        for (version, api) in [("v1.20.2", "v1beta2"), ("v1.31.0", "v1beta4"), ("1.36.2", "v1beta4")] {
            assert!(dialect(version).unwrap().api.ends_with(api), "{version}");
        }
        for version in ["v1.19.9", "v1.30.1", "v1.37.0", "v2.0.0", "latest", ""] {
            assert!(dialect(version).unwrap_err().to_string().contains("1.31 to 1.36"), "{version}");
        }
    }
}
