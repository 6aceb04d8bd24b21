//! Kills container processes that have lost their shim. The kernel (out of memory) or a user may kill a container's
//! shim. containerd then reports that the container has ended, and kubelet or dockerd starts another one, although
//! the old processes run on, as our children, and hold ports and locks. (Seen with containerd 2.1: an orphaned API
//! server that kept every new one from starting.)

use std::fs;

use nix::sys::signal::Signal;

use crate::node::cgroup;
use crate::supervisor::{descendants, reaper};

/// Kills the orphans. Called when a process has ended that we did not start, which may be a shim.
pub fn kill() {
    // Containers with a live shim are the shim's children.
    let children = descendants::children(std::process::id() as i32).unwrap_or_default();
    let orphans: Vec<i32> = children.into_iter().filter(|pid| cgroup::is_in_container(*pid)).collect();
    if !orphans.is_empty() {
        log::warn!(target: "containers", "killed {}, left by a shim that has died", describe(&orphans));
        reaper::signal_all(&orphans, Signal::SIGKILL);
    }
}

fn describe(pids: &[i32]) -> String {
    let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_string();
    pids.iter().map(name).collect::<Vec<_>>().join(", ")
}
