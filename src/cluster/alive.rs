//! Whether the containers of the baked pods still run, as the kernel has it.
//!
//! What the API server says of a pod is what kubelet told it last. While etcd or the API server itself is
//! gone kubelet can tell nothing, and afterwards every pod is listed Ready with the containers of before,
//! the dead ones among them. So a container that was found running and does not run any more counts
//! against its pod at once, until kubelet names another one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::cluster::pods::{self, Known};
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::node::cgroup::{self, EVENTS};
use crate::readiness::{Pods, Readiness};

pub struct Alive {
    readiness: Arc<Readiness>,
    cluster: Cluster,
    /// Of cgroups: whether they are removed, and in version 2 whether they are empty.
    inotify: Inotify,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// The pods, as the API server told of them last.
    known: Known,
    /// Those of their containers that have been found running. Where the cgroups are laid out in another
    /// way there are none, and kubelet's word is all there is.
    seen: BTreeSet<String>,
}

impl Alive {
    /// Watches the containers in a thread that sleeps until one of them ends.
    pub fn follow(readiness: &Arc<Readiness>, cluster: &Cluster) -> Result<Arc<Alive>> {
        let fail = |cause: &dyn std::fmt::Display| Error::new(format!("cannot follow the containers of pods: {cause}"));
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).map_err(|cause| fail(&cause))?;
        let alive = Arc::new(Alive { readiness: readiness.clone(), cluster: cluster.clone(), inotify, told: Mutex::default() });
        let ours = alive.clone();
        let watch = move || loop {
            match ours.inotify.read_events() {
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
        // Held until the state has changed: a look at what was told before must not come after it.
        let mut told = self.told();
        told.known.clone_from(known);
        // From now on these are as every other pod.
        let has_container = |name: &String| known.get(name).is_some_and(|pod| pod.state.is_ok());
        self.readiness.update(|state| state.restored.retain(|name| !has_container(name)));
        let restored = self.readiness.state().restored;
        let mut waiting = pods::waiting(&self.cluster, known, &restored);
        if waiting.is_empty() {
            self.find(&mut told);
            waiting = told.waiting(&self.cluster, &running(), &restored);
        }
        let is_ready = waiting.is_empty();
        self.readiness.update(|state| state.pods = if is_ready { Pods::Ready } else { Pods::Waiting(waiting) });
        is_ready
    }

    /// Takes readiness away where a container has ended. It comes back with what kubelet tells alone.
    pub fn look(&self) {
        let told = self.told();
        let waiting = told.waiting(&self.cluster, &running(), &self.readiness.state().restored);
        self.readiness.update(|state| {
            if state.pods == Pods::Ready && !waiting.is_empty() {
                state.pods = Pods::Waiting(waiting);
            }
        });
    }

    /// Notes which of the containers run, and hears of their end from then on.
    fn find(&self, told: &mut Told) {
        let current: BTreeSet<&String> = told.known.values().flat_map(|pod| &pod.containers).collect();
        told.seen.retain(|id| current.contains(id));
        for (id, cgroup) in cgroup::containers_of_pods().into_iter().filter(|(id, _)| current.contains(id)) {
            if told.seen.insert(id) {
                // Each may be missing: in version 1 the file, and both when the container has just ended,
                // which the look after this finds.
                let _ = self.inotify.add_watch(&cgroup, AddWatchFlags::IN_DELETE_SELF);
                let _ = self.inotify.add_watch(&cgroup.join(EVENTS), AddWatchFlags::IN_MODIFY);
            }
        }
    }
}

fn running() -> BTreeSet<String> {
    cgroup::containers_of_pods().into_keys().collect()
}

impl Told {
    /// What is not ready: in kubelet's words, or because a container has run and does not any more.
    fn waiting(&self, cluster: &Cluster, running: &BTreeSet<String>, restored: &BTreeSet<String>) -> Vec<String> {
        let has_ended = |id: &String| self.seen.contains(id) && !running.contains(id);
        let mut known = self.known.clone();
        for pod in known.values_mut().filter(|pod| pod.state.is_ok() && pod.containers.iter().any(has_ended)) {
            pod.state = Err("a container has ended".into());
        }
        pods::waiting(cluster, &known, restored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::pods::Seen;
    use crate::cluster::BakedPod;

    #[test]
    fn a_pod_counts_unless_a_container_of_it_was_seen_running_and_is_gone() {
        let name = "kube-system/etcd-kind".to_string();
        let cluster =
            Cluster { pods: vec![BakedPod { name: name.clone(), is_static: true, owner: None }], ..crate::cluster::tests::cluster() };
        let ids = |ids: &[&str]| ids.iter().map(|id| id.to_string()).collect::<BTreeSet<String>>();
        for (container, has_ended) in [("runs", false), ("ran", true), ("never-seen", false), ("new", false)] {
            let seen = Seen { state: Ok(()), owner: None, containers: vec!["runs".into(), container.into()], is_unready: false };
            let told = Told { known: [(name.clone(), seen)].into(), seen: ids(&["runs", "ran"]) };
            let expected: &[&str] = if has_ended { &["kube-system/etcd-kind: a container has ended"] } else { &[] };
            assert_eq!(told.waiting(&cluster, &ids(&["runs", "new"]), &BTreeSet::new()), expected, "{container}");
        }
    }
}
