//! Prepares the machine for the daemons.

pub mod browser;
pub mod capacity;
pub mod cgroup;
pub mod cluster_network;
pub mod cni;
pub mod directories;
pub mod dns_forwarder;
pub mod hostpath;
pub mod hosts;
pub mod iptables;
pub mod limits;
pub mod mounts;
pub mod names;
pub mod network;
pub mod orphans;
pub mod own_addresses;
pub mod pull_hosts;
pub mod reach;
pub mod registry;
pub mod state_dir;
pub mod store;

use std::fs::{self, File};
use std::path::Path;

use crate::error::{Error, Result};
use crate::files;

/// linux/capability.h
pub const CAP_NET_ADMIN: u32 = 12;
pub const CAP_SYS_PTRACE: u32 = 19;
pub const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_NICE: u32 = 23;
const CAP_SYS_RESOURCE: u32 = 24;

/// Fails unless the container has the privileges that Docker and Kubernetes need.
pub fn require_privileges() -> Result<()> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !is_initial_user_namespace(&map) {
        return Err(Error::new("this engine is rootless or gives its containers other users (userns-remap, hostUsers: false), and its root may not do what Docker and Kubernetes inside need")
            .advise("Use an engine that runs as root; with userns-remap: docker run --privileged --userns=host"));
    }
    if has_capability(CAP_SYS_ADMIN) && has_capability(CAP_NET_ADMIN) {
        return Ok(());
    }
    Err(Error::new("this container is not privileged, and cannot run Docker or Kubernetes inside")
        .advise("Start it with `docker run --privileged` (in a Kubernetes pod: securityContext.privileged: true)"))
}

/// Fails if another init runs in the container that has this root directory: each would take the other's daemons and files for its
/// own.
pub fn require_no_other(root: &Path) -> Result<()> {
    match File::open(root).and_then(files::lock) {
        Ok(false) => {
            Err(Error::new("kind runs in this container already")
                .advise("`kind status` shows its state; to start it again: docker restart"))
        }
        Ok(true) => Ok(()),
        // Nothing else depends on it.
        Err(cause) => {
            log::debug!(target: "kind", "cannot lock {}: {cause}", root.display());
            Ok(())
        }
    }
}

/// Whether every user is itself, as user_namespaces(7) shows it; a kernel without such namespaces shows nothing.
fn is_initial_user_namespace(uid_map: &str) -> bool {
    let fields: Vec<&str> = uid_map.split_whitespace().collect();
    fields.is_empty() || fields == ["0", "0", "4294967295"]
}

/// Some hosts withhold CAP_SYS_RESOURCE even from privileged containers, which then cannot lower an oom_score_adj.
pub fn can_lower_oom_score() -> bool {
    has_capability(CAP_SYS_RESOURCE)
}

/// The oom_score_adj below which a process here cannot go: that of the init. `None` where it may set any.
pub fn lowest_oom_score() -> Option<i32> {
    let own = || fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok();
    (!can_lower_oom_score()).then(own)?
}

/// Without it, a process that was made to wait for others might not get its share of the CPU back.
pub fn can_raise_priority() -> bool {
    has_capability(CAP_SYS_NICE)
}

fn has_capability(capability: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_capabilities(&status) & (1 << capability) != 0
}

/// The `CapEff` line of proc_pid_status(5).
pub fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_without_root_is_known_by_its_users() {
        for (map, is_initial) in [
            ("         0          0 4294967295\n", true),
            ("", true),
            // Rootless, userns-remap, and a container in a container.
            ("         0       1000          1\n         1     100000      65536\n", false),
            ("         0     100000      65536\n", false),
            ("         0          0      65536\n", false),
        ] {
            assert_eq!(is_initial_user_namespace(map), is_initial, "{map}");
        }
    }

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        let status = "Name:\tkind\nCapPrm:\t000001ffffffffff\nCapEff:\t000001fffeffffff\n";
        let set = effective_capabilities(status);
        assert!(set & (1 << CAP_SYS_ADMIN) != 0 && set & (1 << CAP_NET_ADMIN) != 0);
        assert_eq!(set & (1 << CAP_SYS_RESOURCE), 0);
        assert_eq!(effective_capabilities("Name:\tkind\n"), 0);
    }
}
