//! Whether the containers of the baked pods still run, as the kernel has it.
//!
//! What the API server says of a pod is what kubelet told it last. While etcd or the API server itself is
//! gone kubelet can tell nothing, and afterwards every pod is listed Ready with the containers of before,
//! the dead ones among them. And kubelet may have started a pod anew before it tells anything of it: then the
//! pod was Ready all the while (seen with 1.31, when a shim was killed). So a container that was found running
//! and does not run any more counts against its pod at once, until kubelet names another one.
//!
//! Of each container we hold a process by a descriptor (pidfd_open(2)), whose end wakes us. The cgroups cannot
//! do that: those of version 1 have no events, and nobody is told when one is removed, since a cgroup's inode
//! still has links then, without which there is no IN_DELETE_SELF.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::cluster::pods::{self, Known};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::node::cgroup;
use crate::readiness::{Pods, Readiness};
use crate::sys;

pub struct Alive {
    readiness: Arc<Readiness>,
    cluster: Cluster,
    /// The processes that are held: it tells of the end of each, once.
    ends: Epoll,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// The pods, as the API server told of them last.
    known: Known,
    /// Those of their containers that have been found running. Where the cgroups are laid out in another
    /// way, or Linux is older than 5.3, there are none, and kubelet's word is all there is.
    found: BTreeMap<String, Container>,
}

struct Container {
    cgroup: PathBuf,
    /// One of its processes. `None` when the last one has ended.
    process: Option<OwnedFd>,
}

impl Alive {
    /// Watches the containers in a thread that sleeps until one of them ends.
    pub fn follow(readiness: &Arc<Readiness>, cluster: &Cluster) -> Result<Arc<Alive>> {
        let fail = |cause: &dyn std::fmt::Display| Error::new(format!("cannot follow the containers of pods: {cause}"));
        let ends = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|cause| fail(&cause))?;
        let alive = Arc::new(Alive { readiness: readiness.clone(), cluster: cluster.clone(), ends, told: Mutex::default() });
        let ours = alive.clone();
        let watch = move || loop {
            match ours.ends.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE) {
                Ok(_) => ours.look(),
                Err(Errno::EINTR) => {}
                Err(cause) => return log::warn!(target: "cluster", "cannot follow the containers of pods: {cause}"),
            }
        };
        let started = thread::Builder::new().name("alive".into()).spawn(watch);
        started.map(|_| alive).map_err(|cause| fail(&cause))
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the API server says of the pods. Returns whether they are Ready, and run.
    pub fn tell(&self, known: &Known) -> bool {
        self.tell_beside(known, cgroup::containers_of_pods)
    }

    /// The same, given the containers in which something runs, and the cgroup of each.
    fn tell_beside(&self, known: &Known, running: impl FnOnce() -> BTreeMap<String, PathBuf>) -> bool {
        // Held until the state has changed: a look at what was told before must not come after it.
        let mut told = self.told();
        told.known.clone_from(known);
        // From now on these are as every other pod.
        let has_container = |name: &String| known.get(name).is_some_and(|pod| pod.state.is_ok());
        self.readiness.update(|state| state.restored.retain(|name| !has_container(name)));
        let restored = self.readiness.state().restored;
        let mut waiting = pods::waiting(&self.cluster, known, &restored);
        if waiting.is_empty() {
            self.find(&mut told, running());
            waiting = told.waiting(&self.cluster, &restored);
        }
        let is_ready = waiting.is_empty();
        self.readiness.update(|state| state.pods = if is_ready { Pods::Ready } else { Pods::Waiting(waiting) });
        is_ready
    }

    /// Takes readiness away where a container has ended. It comes back with what kubelet tells alone.
    pub fn look(&self) {
        let mut told = self.told();
        told.found.retain(|_, container| {
            if container.process.as_ref().is_some_and(has_ended) {
                // Another process of it may run on. If we cannot know, kubelet's word is all there is.
                let Ok(process) = self.hold(&container.cgroup) else { return false };
                container.process = process;
            }
            true
        });
        let waiting = told.waiting(&self.cluster, &self.readiness.state().restored);
        self.readiness.update(|state| {
            if state.pods == Pods::Ready && !waiting.is_empty() {
                state.pods = Pods::Waiting(waiting);
            }
        });
    }

    /// Notes which of the containers run, and hears of their end from then on.
    fn find(&self, told: &mut Told, running: BTreeMap<String, PathBuf>) {
        let Told { known, found } = told;
        let is_current = |id: &String| known.values().any(|pod| pod.containers.contains(id));
        found.retain(|id, _| is_current(id));
        let new: Vec<_> = running.into_iter().filter(|(id, _)| is_current(id) && !found.contains_key(id)).collect();
        for (id, cgroup) in new {
            if let Ok(process) = self.hold(&cgroup) {
                found.insert(id, Container { cgroup, process });
            }
        }
    }

    /// Holds a process of a container that has not ended, if there is one.
    ///
    /// # Errors
    /// Processes cannot be held: Linux is too old, or there are too many open files.
    fn hold(&self, cgroup: &Path) -> Result<Option<OwnedFd>> {
        let mut pids = cgroup::processes_in(cgroup);
        // The first one is the container's own, most likely, and lives as long as it does.
        pids.sort_unstable();
        for pid in pids {
            let fail = |cause: &dyn std::fmt::Display| Error::new(format!("cannot hold the process {pid}: {cause}"));
            let process = match sys::open_process(pid) {
                Ok(process) => process,
                Err(cause) if cause.raw_os_error() == Some(libc::ESRCH) => continue,
                Err(cause) => return Err(fail(&cause)),
            };
            // Its number may be another one's by now.
            if has_ended(&process) || !cgroup::processes_in(cgroup).contains(&pid) {
                continue;
            }
            let once = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, 0);
            self.ends.add(&process, once).map_err(|cause| fail(&cause))?;
            return Ok(Some(process));
        }
        Ok(None)
    }
}

/// A process's descriptor can be read when it has ended.
fn has_ended(process: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

impl Told {
    /// What is not ready: in kubelet's words, or because a container has run and does not any more.
    fn waiting(&self, cluster: &Cluster, restored: &BTreeSet<String>) -> Vec<String> {
        let has_ended = |id: &String| self.found.get(id).is_some_and(|container| container.process.is_none());
        let mut known = self.known.clone();
        for pod in known.values_mut().filter(|pod| pod.state.is_ok() && pod.containers.iter().any(has_ended)) {
            pod.state = Err("a container has ended".into());
        }
        pods::waiting(cluster, &known, restored)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;
    use std::time::Duration;

    use nix::sys::signal::Signal;

    use super::*;
    use crate::cluster::pods::Seen;
    use crate::cluster::BakedPod;
    use crate::config::POLL;
    use crate::supervisor::reaper;

    const POD: &str = "kube-system/etcd-kind";
    const LIMIT: Duration = Duration::from_secs(10);

    fn cluster() -> Cluster {
        Cluster { pods: vec![BakedPod { name: POD.into(), is_static: true, owner: None }], ..crate::cluster::tests::cluster() }
    }

    /// What kubelet says of a pod that is Ready with these containers.
    fn known(containers: &[&str]) -> Known {
        let containers = containers.iter().map(|id| id.to_string()).collect();
        [(POD.to_string(), Seen { state: Ok(()), owner: None, containers, lag: None })].into()
    }

    /// A directory with a cgroup's list of processes, which, as version 1 has it, says nothing when one ends.
    fn cgroup(test: &str, processes: &[&reaper::Child]) -> PathBuf {
        let cgroup = std::env::temp_dir().join(format!("kind-alive-{}-{test}", std::process::id()));
        fs::create_dir_all(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.procs"), processes.iter().map(|child| format!("{}\n", child.handle().pid())).collect::<String>())
            .unwrap();
        cgroup
    }

    fn alive(test: &str) -> Arc<Alive> {
        let readiness = Readiness::new(std::env::temp_dir().join(format!("kind-alive-{}-{test}-files", std::process::id())));
        readiness.clear().unwrap();
        readiness.update(|state| (state.has_cluster, state.api_server) = (true, true));
        Alive::follow(&Arc::new(readiness), &cluster()).unwrap()
    }

    fn sleep() -> reaper::Child {
        reaper::spawn(Command::new("sleep").arg("60")).unwrap()
    }

    fn kill(child: &reaper::Child) {
        child.handle().signal(Signal::SIGKILL);
        assert!(reaper::poll(POLL, LIMIT, || {
            reaper::drain_ours();
            child.wait_timeout(Duration::ZERO)
        })
        .is_some());
    }

    #[test]
    fn the_end_of_a_containers_last_process_is_noticed_at_once_and_another_containers_start_makes_up_for_it() {
        let (alive, processes) = (alive("end"), [sleep(), sleep()]);
        let cgroup = cgroup("end", &[&processes[0], &processes[1]]);
        let running = || [("a".to_string(), cgroup.clone())].into();
        assert!(alive.tell_beside(&known(&["a", "never-found"]), running));
        kill(&processes[0]);
        alive.look();
        assert_eq!(alive.readiness.state().pods, Pods::Ready, "another process of it runs");
        kill(&processes[1]);
        // Nobody looks: the kernel wakes the thread.
        let waiting = Pods::Waiting(vec![format!("{POD}: a container has ended")]);
        assert!(reaper::poll(POLL, LIMIT, || (alive.readiness.state().pods == waiting).then_some(())).is_some());
        assert!(!alive.tell_beside(&known(&["a"]), BTreeMap::new), "kubelet has not noticed yet");
        assert!(alive.tell_beside(&known(&["b"]), BTreeMap::new), "kubelet names another container");
        fs::remove_dir_all(cgroup).unwrap();
    }

    #[test]
    fn a_container_that_ends_while_it_is_found_counts_as_ended() {
        let (alive, process) = (alive("found"), sleep());
        let cgroup = cgroup("found", &[&process]);
        kill(&process);
        assert!(!alive.tell_beside(&known(&["a"]), || [("a".to_string(), cgroup.clone())].into()));
        fs::remove_dir_all(cgroup).unwrap();
    }
}
