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

/// What the threads share: the settings, the state, whether the init is stopping, and the daemons. A cluster's threads have
/// one of their own (`begin_cluster`).
pub struct Init {
    pub config: Arc<Config>,
    pub readiness: Arc<Readiness>,
    pub shutdown: Shutdown,
    daemons: Arc<Mutex<Vec<Arc<Daemon>>>>,
}

impl Init {
    pub fn new(config: Config) -> Init {
        let readiness = Arc::new(Readiness::new(config.path(STATE_DIR)));
        let shutdown = Shutdown { readiness: readiness.clone(), requests: Arc::default() };
        Init { config: Arc::new(config), readiness, shutdown, daemons: Arc::default() }
    }

    /// Begins a cluster, which ends an earlier one: to whoever has that one's `Init`, it is as if the init stopped.
    pub fn begin_cluster(&self) -> Arc<Init> {
        let readiness = Arc::new(self.readiness.begin_cluster());
        let shutdown = Shutdown { readiness: readiness.clone(), requests: self.shutdown.requests.clone() };
        Arc::new(Init { config: self.config.clone(), readiness, shutdown, daemons: self.daemons.clone() })
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

    fn daemon(&self, name: &str) -> Option<Arc<Daemon>> {
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
