//! The files under `/var/kind`: a state exists exactly when its file does.
//!
//! Each file is written whole to a temporary name and renamed, so a reader sees all of it or none.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::logger::since_start;
use crate::sys;

pub const DOCKER_READY: &str = "docker-ready";
pub const KUBERNETES_READY: &str = "kubernetes-ready";
pub const CONFIG: &str = "config";
pub const CA_CERT: &str = "ca.crt";
pub const CLIENT_CERT: &str = "client.crt";
pub const CLIENT_KEY: &str = "client.key";
/// Why the boot gave up.
pub const FAILED: &str = "failed";
/// One line for each milestone: seconds since the init started, and its name.
pub const TIMELINE: &str = "timeline";

/// What a job waits with, for jobs whose image does not hold it.
pub const WAIT_SCRIPT: &str = "wait-for-kind.sh";
pub const WAIT_SCRIPT_TEXT: &[u8] = include_bytes!("../wait-for-kind.sh");

/// One line for each baked pod that is not ready yet: its name, and why.
pub const WAITING: &str = "waiting";

/// Everything that is served; nothing else is.
pub const FILES: [&str; 10] =
    [DOCKER_READY, KUBERNETES_READY, CONFIG, CA_CERT, CLIENT_CERT, CLIENT_KEY, FAILED, TIMELINE, WAIT_SCRIPT, WAITING];

/// What `docker-ready` and `kubernetes-ready` depend on, as last seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conditions {
    /// Ours beside a cluster; where Docker is alone it is dockerd's business, and counts as there.
    pub containerd: bool,
    pub docker: bool,
    pub kubelet: bool,
    pub etcd: bool,
    pub api_server: bool,
    /// Every baked pod was started in this boot and is Ready.
    pub pods: bool,
    pub dns: bool,
    /// Services of type LoadBalancer have this start's address.
    pub services: bool,
    /// The user's manifests and scripts have done their work.
    pub extensions: bool,
    /// Nothing becomes true any more.
    ending: bool,
}

impl Conditions {
    fn docker(&self) -> bool {
        self.containerd && self.docker
    }

    /// The baked cluster and Docker are whole: what the user's own manifests and scripts wait for.
    pub fn cluster(&self) -> bool {
        self.docker() && self.kubelet && self.etcd && self.api_server && self.pods && self.dns && self.services
    }

    /// A client that sees `kubernetes-ready` may rely on `docker-ready` too.
    fn kubernetes(&self) -> bool {
        self.cluster() && self.extensions
    }
}

pub struct Readiness {
    dir: PathBuf,
    conditions: Mutex<Conditions>,
    /// Since when `kubernetes-ready` has not been there.
    unready_since: Mutex<Option<Instant>>,
    changed: Condvar,
    timeline: Mutex<String>,
}

impl Readiness {
    pub fn new(dir: PathBuf) -> Self {
        Readiness {
            dir,
            conditions: Mutex::default(),
            unready_since: Mutex::new(Some(Instant::now())),
            changed: Condvar::new(),
            timeline: Mutex::default(),
        }
    }

    /// Removes what an earlier start of this container left: it is not true any more.
    pub fn clear(&self) -> Result<()> {
        fs::create_dir_all(&self.dir).map_err(|cause| Error::io("make the directory", &self.dir, cause))?;
        FILES.iter().try_for_each(|name| self.retract(name).map(drop))
    }

    /// Makes a state true.
    pub fn publish(&self, name: &str, contents: &[u8]) -> Result<()> {
        let (path, temporary) = (self.dir.join(name), self.dir.join(format!(".{name}.new")));
        // The kubeconfig holds the key too. Both are served on purpose, but not to every user of the node.
        let mode = if [CLIENT_KEY, CONFIG].contains(&name) { 0o600 } else { 0o644 };
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(contents)?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|cause| Error::io("write", &path, cause))
    }

    /// Makes a state untrue; says whether it was true before.
    pub fn retract(&self, name: &str) -> Result<bool> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(cause) => Err(Error::io("remove", path, cause)),
        }
    }

    pub fn exists(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    /// Takes note of something that happened; what happens again is not noted again.
    pub fn milestone(&self, name: &str) {
        let mut timeline = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
        if reached(&timeline, name) {
            return;
        }
        timeline.push_str(&format!("{:.3} {name}\n", since_start().as_secs_f64()));
        if let Err(error) = self.publish(TIMELINE, timeline.as_bytes()) {
            log::error!(target: "readiness", "{error}");
        }
    }

    /// Whether something has happened in this start, whatever became of it since.
    pub fn has_reached(&self, name: &str) -> bool {
        reached(&self.timeline.lock().unwrap_or_else(PoisonError::into_inner), name)
    }

    /// The milestones in one line: `store 0.041 s, containerd 0.105 s`.
    fn stages(&self) -> String {
        let timeline = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
        let stages = timeline.lines().filter_map(|line| line.split_once(' ')).filter(|(_, name)| !name.ends_with("-ready"));
        stages.map(|(seconds, name)| format!("{name} {seconds} s")).collect::<Vec<_>>().join(", ")
    }

    pub fn conditions(&self) -> Conditions {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is known, and makes the two readiness files follow.
    pub fn update(&self, change: impl FnOnce(&mut Conditions)) {
        let mut conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        if conditions.ending {
            return;
        }
        let before = conditions.clone();
        change(&mut conditions);
        self.follow(DOCKER_READY, before.docker(), conditions.docker());
        self.follow(KUBERNETES_READY, before.kubernetes(), conditions.kubernetes());
        if before.kubernetes() != conditions.kubernetes() {
            let since = (!conditions.kubernetes()).then(Instant::now);
            *self.unready_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
        }
        self.changed.notify_all();
    }

    /// For how long `kubernetes-ready` has not been there; zero while it is.
    pub fn unready_for(&self) -> Duration {
        self.unready_since.lock().unwrap_or_else(PoisonError::into_inner).map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Sleeps until the conditions are as `wanted`, for ever if need be; false when the container stops.
    pub fn wait_until(&self, wanted: impl Fn(&Conditions) -> bool) -> bool {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.changed.wait_while(conditions, |conditions| !conditions.ending && !wanted(conditions));
        !wait.unwrap_or_else(PoisonError::into_inner).ending
    }

    /// Takes both readiness files away for good: the container is stopping.
    pub fn end(&self) {
        let mut conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        *conditions = Conditions { ending: true, ..Conditions::default() };
        self.changed.notify_all();
        for name in [KUBERNETES_READY, DOCKER_READY] {
            if let Err(error) = self.retract(name) {
                log::error!(target: "readiness", "{error}");
            }
        }
    }

    fn follow(&self, name: &str, before: bool, now: bool) {
        if before == now {
            return;
        }
        let done = if now { self.publish(name, b"ready\n") } else { self.retract(name).map(drop) };
        match done {
            Ok(()) if now => {
                let first = !self.has_reached(name);
                self.milestone(name);
                let stages = if first && name == KUBERNETES_READY { format!(": {}", self.stages()) } else { String::new() };
                log::info!(target: "readiness", "{name}{stages}");
                // The boot is over: what it read and parsed is not needed any more.
                sys::give_memory_back();
            }
            Ok(()) => log::warn!(target: "readiness", "{name} no longer holds"),
            Err(error) => log::error!(target: "readiness", "{error}"),
        }
    }
}

fn reached(timeline: &str, name: &str) -> bool {
    timeline.lines().any(|line| line.split_once(' ').is_some_and(|(_, have)| have == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness(test: &str) -> Readiness {
        let dir = std::env::temp_dir().join(format!("kind-readiness-{}-{test}", std::process::id()));
        let readiness = Readiness::new(dir);
        readiness.clear().unwrap();
        readiness
    }

    const ALL: Conditions = Conditions {
        containerd: true,
        docker: true,
        kubelet: true,
        etcd: true,
        api_server: true,
        pods: true,
        dns: true,
        services: true,
        extensions: true,
        ending: false,
    };

    #[test]
    fn kubernetes_is_ready_only_when_everything_it_needs_is() {
        let all = ALL;
        assert!(all.kubernetes());
        let spoil: [fn(&mut Conditions); 9] = [
            |c| c.containerd = false,
            |c| c.docker = false,
            |c| c.kubelet = false,
            |c| c.etcd = false,
            |c| c.api_server = false,
            |c| c.pods = false,
            |c| c.dns = false,
            |c| c.services = false,
            |c| c.extensions = false,
        ];
        for spoil in spoil {
            let mut conditions = all.clone();
            spoil(&mut conditions);
            assert!(!conditions.kubernetes(), "{conditions:?}");
        }
    }

    #[test]
    fn files_follow_the_conditions_both_ways() {
        let readiness = readiness("follow");
        assert!(readiness.unready_for() > Duration::ZERO);
        readiness.update(|c| *c = ALL);
        assert_eq!(readiness.unready_for(), Duration::ZERO);
        assert!(readiness.exists(DOCKER_READY) && readiness.exists(KUBERNETES_READY));
        readiness.update(|c| c.pods = false);
        assert!(readiness.exists(DOCKER_READY) && !readiness.exists(KUBERNETES_READY));
        assert!(readiness.unready_for() > Duration::ZERO);
        readiness.update(|c| (c.pods, c.containerd) = (true, false));
        assert!(!readiness.exists(DOCKER_READY) && !readiness.exists(KUBERNETES_READY));
        fs::remove_dir_all(&readiness.dir).unwrap();
    }

    #[test]
    fn who_waits_for_a_condition_hears_of_it_and_of_the_end() {
        let readiness = readiness("wait");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| readiness.wait_until(|c| c.pods));
            let in_vain = scope.spawn(|| readiness.wait_until(|c| c.dns));
            readiness.update(|c| c.pods = true);
            assert!(waiting.join().unwrap());
            readiness.end();
            assert!(!in_vain.join().unwrap());
        });
        fs::remove_dir_all(&readiness.dir).unwrap();
    }

    #[test]
    fn a_new_start_does_not_inherit_old_states() {
        let readiness = readiness("clear");
        FILES.iter().for_each(|name| readiness.publish(name, b"old").unwrap());
        readiness.clear().unwrap();
        FILES.iter().for_each(|name| assert!(!readiness.exists(name), "{name}"));
        fs::remove_dir_all(&readiness.dir).unwrap();
    }

    #[test]
    fn keys_are_for_root_alone() {
        let readiness = readiness("mode");
        for (name, mode) in [(CLIENT_KEY, 0o600), (CONFIG, 0o600), (CLIENT_CERT, 0o644), (DOCKER_READY, 0o644)] {
            readiness.publish(name, b"x").unwrap();
            assert_eq!(fs::metadata(readiness.dir.join(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
        }
        fs::remove_dir_all(&readiness.dir).unwrap();
    }
}
