//! Processes of containers that nobody looks after any more. A container's shim may be killed, by the kernel
//! for want of memory or by a user: then containerd says that the container has ended, and kubelet or dockerd
//! starts another one, beside processes that run on, as children of ours, and hold ports and locks. (Seen
//! with containerd 2.1: an API server in whose place none could ever start.)

use std::fs;

use nix::sys::signal::Signal;

use crate::node::cgroup;
use crate::supervisor::reaper;

/// Kills them. Called when a process has ended that was not started by us, as shims are not.
pub fn kill() {
    let orphans: Vec<i32> = children().into_iter().filter(|pid| cgroup::is_in_container(*pid)).collect();
    if !orphans.is_empty() {
        log::warn!(target: "containers", "{} left by a shim that has died: killed", describe(&orphans));
        reaper::signal_all(&orphans, Signal::SIGKILL);
    }
}

/// Our children (proc_pid_task_tid_children(5)); a shim that lives is the parent of its own containers.
fn children() -> Vec<i32> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

fn describe(pids: &[i32]) -> String {
    let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_string();
    pids.iter().map(name).collect::<Vec<_>>().join(", ")
}
