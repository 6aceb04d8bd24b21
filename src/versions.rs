//! What depends on Kubernetes' version, in one place: nothing else asks for the version of a cluster.
//!
//! What to try with a new minor: `scripts/versions` lists it, `tests/kubeadm` gets the manifests that its kubeadm writes,
//! and an image is baked and run through the end-to-end tests, restored and with `KIND_RESTORE=0`. Where a new minor
//! differs, the place is one of these:
//! - `TABLE` below, when kubeadm or kubelet refuses its configuration, or kubelet its containerd;
//! - `SAVED_GODEBUG` below, when the bake says that CRIU cannot save the control plane: a newer Go;
//! - `ASKS_FOR_NODE`, a line of kubelet's log, when a restored start has become slower;
//! - `save::manifest` and `bake::kubeadm`, when the static pods are not as kubeadm wrote them before;
//! - `save::probes`, when pods of the bake are Ready later: probes that it makes more frequent;
//! - `cluster::resync`, when a pod that could not be started is tried again late: kubelet must act on a changed annotation;
//! - `restore::manifests`, when the control plane's containers begin late or all at once: when kubelet looks into its directory;
//! - `node::limits`, when kubelet asks for other kernel settings.
//!
//! containerd has versions of its own, and forms of its configuration (`daemons::containerd_config`). etcd's tools are
//! looked for in its image (`save::etcd`).

use crate::daemons::containerd;
use crate::error::{Error, Result};

/// The first minor version whose API server notices at once that its certificate's file has changed, through inotify.
/// Older ones look once a minute.
const NOTICES_CERTIFICATES: u32 = 23;

/// Settings of Go's runtime for the control plane that is saved; a Go that does not know one ignores it. Go 1.24 and later
/// listen with MPTCP, which CRIU cannot save; Go 1.25 and later keep a file of the cgroup open, whose path another container
/// may not have.
pub const SAVED_GODEBUG: &str = "multipathtcp=0,containermaxprocs=0";

/// How to configure kubeadm and kubelet for a range of versions.
#[derive(Debug, PartialEq)]
pub struct Dialect {
    /// First and last minor version of 1.x.
    minors: (u32, u32),
    /// The API version of kubeadm's configuration file.
    pub api: &'static str,
    /// The line of ClusterConfiguration that makes kubeadm's keys ECDSA (P-256) instead of RSA.
    pub ecdsa: &'static str,
    /// The line of KubeletConfiguration that allows cgroup v1, which 1.35 and later refuse by default. The field is there
    /// since 1.31.
    pub cgroup_v1: &'static str,
    /// The oldest containerd, as major and minor version, that kubelet accepts. From 1.38 on, kubelet asks the runtime for
    /// its cgroup driver, and containerd 1.7 does not have that call.
    containerd: (u32, u32),
}

const V1BETA4: Dialect = Dialect {
    minors: (31, 37),
    api: "kubeadm.k8s.io/v1beta4",
    ecdsa: "encryptionAlgorithm: ECDSA-P256",
    cgroup_v1: "failCgroupV1: false",
    containerd: (1, 7),
};

/// A version that is newer than all of these is baked like the last.
const TABLE: [Dialect; 3] = [
    Dialect {
        minors: (20, 20),
        api: "kubeadm.k8s.io/v1beta2",
        ecdsa: "featureGates: {PublicKeysECDSA: true}",
        cgroup_v1: "",
        containerd: (1, 7),
    },
    V1BETA4,
    Dialect { minors: (38, u32::MAX), containerd: (2, 0), ..V1BETA4 },
];

/// The 36 of a version such as `v1.36.5`. `None` if it is no version of 1.x.
fn minor(version: &str) -> Option<u32> {
    version.trim_start_matches('v').strip_prefix("1.")?.split('.').next()?.parse().ok()
}

/// The row for a version such as `v1.36.5`.
pub fn dialect(version: &str) -> Result<&'static Dialect> {
    minor(version).and_then(|minor| TABLE.iter().find(|row| (row.minors.0..=row.minors.1).contains(&minor))).ok_or_else(|| {
        Error::new(format!("Kubernetes {version} is not supported"))
            .advise("Supported versions: 1.31 and newer, and 1.20 for builds from Debian packages")
    })
}

/// Whether a running API server notices at once that its certificate has changed. A start signs it for the names of this
/// container, and a restored API server runs by then.
pub fn notices_certificates(version: &str) -> bool {
    minor(version).is_none_or(|minor| minor >= NOTICES_CERTIFICATES)
}

/// Fails if this Kubernetes does not run on the containerd that comes with this Docker.
pub fn require_containerd(version: &str, have: &containerd::Version) -> Result<()> {
    let (major, minor) = dialect(version)?.containerd;
    if (have.major, have.minor) >= (major, minor) {
        return Ok(());
    }
    Err(Error::new(format!("Kubernetes {version} needs containerd {major}.{minor} or newer, but this is {}.{}", have.major, have.minor))
        .advise("Set DOCKER_IMAGE to a tag of docker with a newer containerd, such as 29-dind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_version_is_read() {
        for (version, expected) in [("v1.20.2", Some(20)), ("1.36", Some(36)), ("v1.40.0-rc.1", Some(40)), ("v2.0.0", None), ("", None)] {
            assert_eq!(minor(version), expected, "{version}");
        }
        assert!(!notices_certificates("v1.20.2") && notices_certificates("v1.23.0") && notices_certificates("v1.36.5"));
    }

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
        let listed: Vec<&str> = include_str!("../scripts/versions").lines().filter(|line| line.starts_with('v')).collect();
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
        for words in ["Kubernetes v1.38.0 needs containerd 2.0 or newer, but this is 1.7", "29-dind"] {
            assert!(refusal.contains(words), "{words} is not in: {refusal}");
        }
    }
}
