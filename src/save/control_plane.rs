//! The control plane's containers, as kubelet has started them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::PROGRAMS;
use crate::config::POLL;
use crate::daemons::containerd::{self, ctr, CRI_KIND};
use crate::error::{Error, Result};
use crate::supervisor::reaper;

/// The label that kubelet puts on its containers.
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// How long kubelet may take to start a container that is missing.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a container may take to end after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(15);

/// A container that runs.
#[derive(Debug, PartialEq)]
pub struct Task {
    pub id: String,
    pid: i32,
}

impl Task {
    /// The directory of its process in /proc.
    pub fn proc(&self) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string())
    }
}

/// The running containers of this name, such as `etcd`.
pub fn running(name: &str) -> Result<Vec<Task>> {
    let ids = containerd::pod_containers(Some((CONTAINER_NAME, name)))?;
    Ok(tasks_in(&ctr(&["tasks", "ls"])?).into_iter().filter(|task| ids.contains(&task.id)).collect())
}

/// Waits until each of the programs has its container, which kubelet starts last where they were restored.
///
/// # Errors
/// One of them has none.
pub fn wait_until_it_runs() -> Result<()> {
    let runs = |name: &&str| running(name).is_ok_and(|tasks| !tasks.is_empty());
    let all = reaper::poll(POLL, START_LIMIT, || PROGRAMS.iter().all(runs).then_some(()));
    all.ok_or_else(|| Error::new("not every program of the control plane has its container"))
}

/// The running container of this name.
pub fn one(name: &str) -> Result<Task> {
    running(name)?.into_iter().next().ok_or_else(|| Error::new(format!("{name} does not run")))
}

/// Asks a container's process to end, and waits until it has.
pub fn end(name: &str) -> Result<()> {
    signal(name, "SIGTERM")?;
    let ended = reaper::poll(POLL, END_LIMIT, || running(name).is_ok_and(|tasks| tasks.is_empty()).then_some(()));
    ended.ok_or_else(|| Error::new(format!("{name} did not end within {} s of SIGTERM", END_LIMIT.as_secs())))
}

/// Kills a container that has nothing to lose and would otherwise wait for its clients.
pub fn kill(name: &str) -> Result<()> {
    signal(name, "SIGKILL")
}

/// Kills every other container of a pod. kubelet, which would start them again, must have stopped.
pub fn kill_workloads() -> Result<()> {
    let workloads = containerd::pod_containers(Some((CRI_KIND, "container")))?;
    let programs: Vec<Task> = PROGRAMS.iter().map(|name| running(name)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    for task in tasks_in(&ctr(&["tasks", "ls"])?).iter().filter(|task| workloads.contains(&task.id) && !programs.contains(task)) {
        // One that has ended meanwhile cannot be killed.
        if let Err(error) = ctr(&["tasks", "kill", "--signal", "SIGKILL", &task.id]) {
            log::debug!(target: "save", "{error}");
        }
    }
    Ok(())
}

fn signal(name: &str, signal: &str) -> Result<()> {
    running(name)?.iter().try_for_each(|task| ctr(&["tasks", "kill", "--signal", signal, &task.id]).map(drop))
}

/// What runs, in the output of `ctr tasks ls`.
fn tasks_in(list: &str) -> Vec<Task> {
    let task = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [id, pid, "RUNNING"] => Some(Task { id: id.to_string(), pid: pid.parse().ok()? }),
        _ => None,
    };
    list.lines().filter_map(task).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_is_a_task() {
        let task = |id: &str, pid| Task { id: id.into(), pid };
        for (list, tasks) in [
            ("", vec![]),
            ("TASK    PID    STATUS    \n", vec![]),
            ("TASK  PID  STATUS\nab12  411  RUNNING\nab    412  RUNNING\n", vec![task("ab12", 411), task("ab", 412)]),
            ("TASK  PID  STATUS\nab12  411  STOPPED\ncd34  0  CREATED\nef56  x  RUNNING\n", vec![]),
        ] {
            assert_eq!(tasks_in(list), tasks, "{list}");
        }
    }
}
