//! Whether the containers of the baked pods still run, as the kernel has it.
//!
//! What the API server says of a pod is what kubelet reported to it last. While etcd or the API server itself is
//! gone kubelet can report nothing, and the watch stays open; afterwards every pod is listed Ready with the containers of before,
//! the dead ones among them. And kubelet may have started a pod anew before it reports anything of it: then the
//! pod was Ready all the while (seen with 1.31, when a shim was killed). So a container that was found running
//! and does not run any more counts against its pod at once, until kubelet names another one.
//!
//! Of each container we keep a descriptor of a process (pidfd_open(2)), whose end wakes us. The cgroups cannot
//! do that: those of version 1 have no events, and nobody is told when one is removed, since a cgroup's inode
//! still has links then, without which there is no IN_DELETE_SELF.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::cluster::api::Change;
use crate::cluster::objects::Pod;
use crate::cluster::pods::{self, Known, Lag};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::node::cgroup;
use crate::readiness::{Pods, Readiness};
use crate::{sys, threads};

pub struct Alive {
    readiness: Arc<Readiness>,
    cluster: Cluster,
    /// Reports the end of each process that is watched, once.
    ends: Epoll,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    /// The pods, as the API server reported them last.
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
    pub fn start(readiness: &Arc<Readiness>, cluster: &Cluster) -> Result<Arc<Alive>> {
        let ends = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|cause| Error::new(format!("cannot watch the containers of pods: {cause}")))?;
        let alive = Arc::new(Alive { readiness: readiness.clone(), cluster: cluster.clone(), ends, watched: Mutex::default() });
        let ours = alive.clone();
        threads::start("alive", move || {
            let wait = || -> std::io::Result<bool> {
                let goes_on = ours.readiness.wait_readable(ours.ends.0.as_fd())?;
                ours.ends.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO)?;
                Ok(goes_on)
            };
            loop {
                match wait() {
                    Ok(true) => ours.look(),
                    Ok(false) => return,
                    Err(cause) => return log::warn!(target: "cluster", "cannot watch the containers of pods: {cause}"),
                }
            }
        })?;
        Ok(alive)
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pods that kubelet can be asked to look at again.
    pub fn lagging(&self) -> Vec<(String, Lag)> {
        self.watched().known.iter().filter_map(|(name, pod)| Some((name.clone(), pod.lag?))).collect()
    }

    /// Takes in what the API server reports of pods.
    pub fn report(&self, change: Change<Pod>) {
        self.report_beside(change, cgroup::containers_of_pods);
    }

    /// The same, given the containers in which something runs, and the cgroup of each. Finding them takes a while, so it is
    /// done only when a container has to be found.
    fn report_beside(&self, change: Change<Pod>, running: impl FnOnce() -> BTreeMap<String, PathBuf>) {
        // Locked until the state has changed: a look at what was reported before must not come after it.
        let mut watched = self.watched();
        if !watched.apply(&self.cluster, change) {
            return;
        }
        if watched.lacks_a_container() && watched.waiting(&self.cluster, &mut self.readiness.state().restored_pods).is_empty() {
            self.find(&mut watched, running());
        }
        self.readiness.update(|state| {
            let waiting = watched.waiting(&self.cluster, &mut state.restored_pods);
            state.pods = if waiting.is_empty() { Pods::Ready } else { Pods::Waiting(waiting) };
        });
    }

    /// Takes readiness away where a container has ended. It comes back with what kubelet reports alone.
    fn look(&self) {
        let mut watched = self.watched();
        watched.found.retain(|_, container| {
            if container.process.as_ref().is_some_and(has_ended) {
                // Another process of it may run on. If we cannot know, kubelet's word is all there is.
                let Ok(process) = self.watch(&container.cgroup) else { return false };
                container.process = process;
            }
            true
        });
        self.readiness.update(|state| {
            let waiting = watched.waiting(&self.cluster, &mut state.restored_pods);
            if state.pods == Pods::Ready && !waiting.is_empty() {
                state.pods = Pods::Waiting(waiting);
            }
        });
    }

    /// Notes which of the containers run, and watches those from then on.
    fn find(&self, watched: &mut Watched, running: BTreeMap<String, PathBuf>) {
        let new: Vec<_> = running.into_iter().filter(|(id, _)| watched.is_current(id) && !watched.found.contains_key(id)).collect();
        for (id, cgroup) in new {
            if let Ok(process) = self.watch(&cgroup) {
                watched.found.insert(id, Container { cgroup, process });
            }
        }
    }

    /// Watches a process of a container that has not ended, if there is one.
    ///
    /// # Errors
    /// Processes cannot be watched: Linux is too old, or there are too many open files.
    fn watch(&self, cgroup: &Path) -> Result<Option<OwnedFd>> {
        let mut pids = cgroup::processes_in(cgroup);
        // The first one is the container's own, most likely, and lives as long as it does.
        pids.sort_unstable();
        for pid in pids {
            let fail = |cause: &dyn std::fmt::Display| Error::new(format!("cannot watch the process {pid}: {cause}"));
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

fn has_ended(process: &OwnedFd) -> bool {
    sys::ends_within(process, Duration::ZERO)
}

impl Watched {
    /// Returns whether anything has changed for a pod that readiness depends on. After a list something may have: whatever
    /// was known of pods does not count while the API server does not answer.
    fn apply(&mut self, cluster: &Cluster, change: Change<Pod>) -> bool {
        let has_changed = match change {
            Change::All(pods) => {
                self.known.clear();
                for pod in &pods {
                    pods::update(&mut self.known, cluster, pod, false);
                }
                true
            }
            Change::Put(pod) => pods::update(&mut self.known, cluster, &pod, false),
            Change::Deleted(pod) => pods::update(&mut self.known, cluster, &pod, true),
        };
        let mut found = std::mem::take(&mut self.found);
        found.retain(|id, _| self.is_current(id));
        self.found = found;
        has_changed
    }

    fn is_current(&self, container: &String) -> bool {
        self.known.values().any(|pod| pod.containers.contains(container))
    }

    fn lacks_a_container(&self) -> bool {
        self.known.values().flat_map(|pod| &pod.containers).any(|id| !self.found.contains_key(id))
    }

    /// What is not ready: in kubelet's words, or because a container has run and does not any more. A pod that kubelet has
    /// reported with its containers is as every other pod from then on, restored or not.
    fn waiting(&self, cluster: &Cluster, restored: &mut BTreeSet<String>) -> Vec<String> {
        restored.retain(|name| self.known.get(name).is_none_or(|pod| pod.state.is_err()));
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
    use serde_json::json;

    use super::*;
    use crate::cluster::BakedPod;
    use crate::config::POLL;
    use crate::supervisor::reaper;

    const POD: &str = "kube-system/etcd-kind";
    const LIMIT: Duration = Duration::from_secs(10);

    /// A pod with these containers.
    fn pod(name: &str, containers: &[&str], ready: &str) -> Pod {
        let container = |id: &&str| json!({"name": id, "containerID": format!("containerd://{id}")});
        let (namespace, name) = name.split_once('/').unwrap();
        let pod = json!({
            "metadata": {"namespace": namespace, "name": name, "annotations": {"kubernetes.io/config.mirror": "1"}},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": ready}],
                "containerStatuses": containers.iter().map(container).collect::<Vec<_>>(),
            },
        });
        serde_json::from_value(pod).unwrap()
    }

    /// What the API server reports of a pod that is Ready with these containers.
    fn ready(containers: &[&str]) -> Change<Pod> {
        Change::Put(pod(POD, containers, "True"))
    }

    /// A directory with a cgroup's list of processes, which, as version 1 has it, says nothing when one ends.
    fn cgroup(test: &str, processes: &[&reaper::Child]) -> PathBuf {
        let cgroup = std::env::temp_dir().join(format!("kind-alive-{}-{test}", std::process::id()));
        fs::create_dir_all(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.procs"), processes.iter().map(|child| format!("{}\n", child.handle().pid())).collect::<String>())
            .unwrap();
        cgroup
    }

    /// For a cluster of these static pods.
    fn alive(test: &str, pods: &[&str]) -> Arc<Alive> {
        let pods = pods.iter().map(|name| BakedPod { name: name.to_string(), is_static: true, owner: None }).collect();
        let cluster = Cluster { pods, containers: BTreeSet::new(), ..crate::cluster::tests::cluster() };
        let readiness = Readiness::new(std::env::temp_dir().join(format!("kind-alive-{}-{test}-files", std::process::id())));
        readiness.clear().unwrap();
        readiness.update(|state| (state.has_cluster, state.api_server) = (true, true));
        Alive::start(&Arc::new(readiness), &cluster).unwrap()
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

    impl Alive {
        /// Reports a change, and returns whether the pods are Ready then.
        fn is_ready(&self, change: Change<Pod>, running: impl FnOnce() -> BTreeMap<String, PathBuf>) -> bool {
            self.report_beside(change, running);
            self.readiness.state().pods == Pods::Ready
        }
    }

    #[test]
    fn the_end_of_a_containers_last_process_is_noticed_at_once_and_another_containers_start_makes_up_for_it() {
        let (alive, processes) = (alive("end", &[POD]), [sleep(), sleep()]);
        let cgroup = cgroup("end", &[&processes[0], &processes[1]]);
        let running = || [("a".to_string(), cgroup.clone())].into();
        assert!(alive.is_ready(ready(&["a", "never-found"]), running));
        kill(&processes[0]);
        alive.look();
        assert_eq!(alive.readiness.state().pods, Pods::Ready, "another process of it runs");
        kill(&processes[1]);
        // Nobody looks: the kernel wakes the thread.
        let waiting = Pods::Waiting(vec![format!("{POD}: a container has ended")]);
        assert!(reaper::poll(POLL, LIMIT, || (alive.readiness.state().pods == waiting).then_some(())).is_some());
        assert!(!alive.is_ready(ready(&["a"]), BTreeMap::new), "kubelet has not noticed yet");
        assert!(alive.is_ready(ready(&["b"]), BTreeMap::new), "kubelet names another container");
        fs::remove_dir_all(cgroup).unwrap();
    }

    #[test]
    fn a_container_that_ends_while_it_is_found_counts_as_ended() {
        let (alive, process) = (alive("found", &[POD]), sleep());
        let cgroup = cgroup("found", &[&process]);
        kill(&process);
        assert!(!alive.is_ready(ready(&["a"]), || [("a".to_string(), cgroup.clone())].into()));
        fs::remove_dir_all(cgroup).unwrap();
    }

    /// A job may make and remove thousands of pods, and each search walks through the cgroups of all.
    #[test]
    fn readiness_follows_the_baked_pods_and_cgroups_are_searched_only_for_their_new_containers() {
        let (alive, process) = (alive("follow", &[POD]), sleep());
        let cgroup = cgroup("follow", &[&process]);
        let mut searches = 0;
        for (what, change, searched, waiting) in [
            ("a list without it", Change::All(vec![]), 0, "kube-system/etcd-kind: does not exist"),
            ("not Ready yet", Change::All(vec![pod(POD, &["a"], "False")]), 0, "kube-system/etcd-kind: not Ready"),
            ("Ready", ready(&["a"]), 1, ""),
            ("the same again", ready(&["a"]), 1, ""),
            ("a job's pod", Change::Put(pod("default/job", &["x"], "True")), 1, ""),
            ("its end", Change::Deleted(pod("default/job", &["x"], "True")), 1, ""),
            ("a list with nothing new", Change::All(vec![pod(POD, &["a"], "True"), pod("default/job", &["x"], "True")]), 1, ""),
            ("a new container that is not Ready", Change::Put(pod(POD, &["b"], "False")), 1, "kube-system/etcd-kind: not Ready"),
            ("it is Ready", ready(&["b"]), 2, ""),
            ("the pod's end", Change::Deleted(pod(POD, &["b"], "True")), 2, "kube-system/etcd-kind: does not exist"),
            ("it is back", ready(&["b"]), 3, ""),
        ] {
            alive.report_beside(change, || {
                searches += 1;
                ["a", "b"].map(|id| (id.to_string(), cgroup.clone())).into()
            });
            assert_eq!(searches, searched, "{what}");
            let expected = if waiting.is_empty() { Pods::Ready } else { Pods::Waiting(vec![waiting.into()]) };
            assert_eq!(alive.readiness.state().pods, expected, "{what}");
        }
        fs::remove_dir_all(cgroup).unwrap();
    }

    #[test]
    fn after_an_outage_of_the_api_server_its_first_list_counts_though_nothing_has_changed() {
        let alive = alive("outage", &[POD]);
        let list = || Change::All(vec![pod(POD, &["a"], "True")]);
        assert!(alive.is_ready(list(), BTreeMap::new));
        alive.readiness.update(|state| state.api_server = false);
        assert_eq!(alive.readiness.state().pods, Pods::Unknown);
        alive.readiness.update(|state| state.api_server = true);
        assert!(alive.is_ready(list(), BTreeMap::new));
    }

    #[test]
    fn a_restored_program_that_ends_while_containers_are_searched_for_is_not_ready() {
        let other = "kube-system/kube-scheduler-kind";
        let alive = alive("restored", &[POD, other]);
        alive.readiness.update(|state| state.restored_pods = [other.to_string()].into());
        let ends = || {
            alive.readiness.update(|state| state.restored_pods.clear());
            BTreeMap::new()
        };
        assert!(!alive.is_ready(ready(&["a"]), ends));
        assert_eq!(alive.readiness.state().pods, Pods::Waiting(vec![format!("{other}: does not exist")]));
    }
}
