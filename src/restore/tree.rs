//! The restored processes, as this PID namespace sees them. They are no children of ours but of their parent, so they are
//! held by descriptors (pidfd_open(2)), which never mean another process.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::config::{KILL_POLL, POLL};
use crate::error::{Error, Result};
use crate::restore::parent;
use crate::restore::saved::{Program, Saved};
use crate::supervisor::descendants::{children, state_and_parent, visit};
use crate::supervisor::reaper::{self, Handle};
use crate::sys;

/// How long killed processes may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(2);
/// How long the parent may take to report an end that we see.
const REPORT_LIMIT: Duration = Duration::from_millis(500);
/// The status of a program whose parent was killed with it.
const KILLED: i32 = 128 + Signal::SIGKILL as i32;
/// What kubelet gives to critical pods; it is refused where CAP_SYS_RESOURCE is missing.
const OOM_SCORE: &str = "-997";

/// A process that runs, or ran.
pub struct Process {
    /// Its id in the programs' own namespace.
    inner: i32,
    pub fd: OwnedFd,
}

impl Process {
    #[cfg(test)]
    pub fn of_test(fd: OwnedFd) -> Process {
        Process { inner: 0, fd }
    }

    pub fn signal(&self, signal: i32) {
        sys::signal_descriptor(&self.fd, signal);
    }

    /// The status that its parent has reported, once it has ended.
    pub fn status(&self) -> i32 {
        let read = || fs::read_to_string(parent::status_file(self.inner)).ok()?.trim().parse().ok();
        reaper::poll(POLL, REPORT_LIMIT, read).unwrap_or(KILLED)
    }
}

/// Finds the saved programs below `root`, in the order of `saved`.
pub fn find(root: i32, saved: &Saved) -> Result<Vec<Process>> {
    let children = children(root)?;
    let find = |program: &Program| {
        let pid = children.iter().find(|pid| inner_pid(**pid) == Some(program.pid));
        let pid = pid.ok_or_else(|| Error::new(format!("{} is not among the restored processes", program.name)))?;
        let fd = sys::open_process(*pid).map_err(|cause| Error::new(format!("cannot watch {}: {cause}", program.name)))?;
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE);
        Ok(Process { inner: program.pid, fd })
    };
    saved.programs.iter().map(find).collect()
}

/// The id that a process has in its own PID namespace (`NSpid` of proc_pid_status(5)).
pub fn inner_pid(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// Kills a process and everything below it, and waits until all of them have ended.
pub fn kill(root: i32) {
    wait(&signal(root));
}

/// The same, if the process has not been reaped.
pub fn kill_if_it_runs(root: Handle) {
    let mut pids = vec![];
    root.while_it_runs(|root| pids = signal(root));
    wait(&pids);
}

fn signal(root: i32) -> Vec<i32> {
    let pids = visit(root, |_| {});
    reaper::signal_all(&pids, Signal::SIGKILL);
    pids
}

fn wait(pids: &[i32]) {
    reaper::poll(KILL_POLL, KILL_LIMIT, || pids.iter().all(|pid| has_ended(*pid)).then_some(()));
}

/// A process that nobody has reaped yet holds nothing any more.
fn has_ended(pid: i32) -> bool {
    state_and_parent(pid).is_none_or(|(state, _)| ['Z', 'X'].contains(&state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_and_knows_its_own_id() {
        let pid = std::process::id() as i32;
        assert_eq!(inner_pid(pid), Some(pid));
        assert!(!has_ended(pid) && has_ended(i32::MAX));
    }
}
