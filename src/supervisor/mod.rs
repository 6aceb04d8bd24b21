//! The duties of PID 1: reaping, signals, keeping daemons running, and stopping them in order. It knows no daemon
//! by name: `boot` decides which ones there are and in which order they stop.

pub mod daemon;
pub mod descendants;
pub mod reaper;
pub mod shutdown;
pub mod signals;
pub mod stop;

use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{Config, LOG_DIR, STATE_DIR};
use crate::error::{Error, Result};
use crate::readiness::{Failure, Readiness};
use crate::supervisor::daemon::{Daemon, Spec};
use crate::supervisor::shutdown::Shutdown;

/// What the threads share: the settings, the state, the requests to stop, and the daemons. A cluster's threads have
/// one of their own (`begin_cluster`).
pub struct Init {
    pub config: Arc<Config>,
    pub readiness: Arc<Readiness>,
    pub shutdown: Arc<Shutdown>,
    daemons: Arc<Mutex<Vec<Arc<Daemon>>>>,
}

impl Init {
    pub fn new(config: Config) -> Init {
        let readiness = Arc::new(Readiness::new(config.path(STATE_DIR)));
        Init { config: Arc::new(config), readiness, shutdown: Arc::default(), daemons: Arc::default() }
    }

    /// With its files below a directory of its own, which is its `/`.
    #[cfg(test)]
    pub fn of_test(test: &str) -> Init {
        let root = std::env::temp_dir().join(format!("kind-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let init = Init::new(Config::from_env(|name| (name == "KIND_ROOT").then(|| root.to_string_lossy().into_owned())).unwrap());
        init.readiness.clear().unwrap();
        init
    }

    /// Begins a cluster, which ends an earlier one: to whoever has that one's `Init`, it is as if the init stopped.
    pub fn begin_cluster(&self) -> Arc<Init> {
        let readiness = Arc::new(self.readiness.begin_cluster());
        Arc::new(Init { config: self.config.clone(), readiness, shutdown: self.shutdown.clone(), daemons: self.daemons.clone() })
    }

    pub fn end_cluster(&self) {
        self.readiness.begin_cluster();
    }

    /// Starts a daemon and keeps it running, until it is stopped or the init stops.
    pub fn supervise(&self, spec: Spec) -> Result<Arc<Daemon>> {
        let daemon = Daemon::new(&self.config.path(LOG_DIR), spec)?;
        // Before it starts, so that a stop that begins now finds it.
        let mut daemons = self.daemons.lock().unwrap_or_else(PoisonError::into_inner);
        daemons.retain(|earlier| earlier.name != daemon.name);
        daemons.push(daemon.clone());
        drop(daemons);
        daemon::supervise(&daemon, &self.readiness)?;
        Ok(daemon)
    }

    fn daemons(&self) -> Vec<Arc<Daemon>> {
        self.daemons.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn daemon(&self, name: &str) -> Option<Arc<Daemon>> {
        self.daemons().into_iter().find(|daemon| daemon.name == name)
    }

    /// Fails the boot: clients see why, and the file server goes on. During a requested stop, errors are only its
    /// consequence, so they are just logged.
    pub fn fail(&self, error: &Error) {
        if self.shutdown.requested() {
            return log::error!(target: "boot", "error while stopping: {error}");
        }
        self.readiness.fail(Failure::new(error.to_string(), error.status()));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    use super::stop::Step;
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);
    const STEP: Step = Step { daemon: "sleeper", before: None, nudge: None, limit: LIMIT };

    fn sleeper() -> Spec {
        let command = || {
            let mut command = Command::new("sleep");
            command.arg("60");
            Ok(command)
        };
        Spec {
            name: STEP.daemon,
            command: Box::new(command),
            answers: Box::new(|| true),
            before_reload: None,
            condition: |state| &mut state.kubelet,
            first_start: Mutex::default(),
        }
    }

    #[test]
    fn a_cluster_ends_with_its_daemon_and_another_one_begins_while_the_node_goes_on() {
        let node = Init::of_test("supervisor");
        reaper::beside_a_reaper(|| {
            for round in 0..2 {
                let cluster = node.begin_cluster();
                let daemon = cluster.supervise(sleeper()).unwrap();
                assert!(daemon.wait_until_answers(LIMIT) && cluster.readiness.wait_until(|state| state.kubelet), "round {round}");
                if round == 0 {
                    node.end_cluster();
                    assert!(cluster.readiness.is_over() && !node.readiness.is_over());
                    assert!(!node.readiness.state().kubelet);
                }
                stop::stop_one(&node, &STEP);
                // Longer than the pause after which one that dies is started again.
                thread::sleep(Duration::from_millis(500));
                assert!(daemon.ends_within(Duration::ZERO), "round {round}: it was started again");
                assert_eq!(node.daemons().len(), 1, "round {round}");
            }
        });
        std::fs::remove_dir_all(node.config.path("/")).unwrap();
    }
}
