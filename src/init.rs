//! What the threads share: the settings, the states, the daemons, and how it all ends.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config::{Config, STATE_DIR};
use crate::daemons::Daemon;
use crate::error::Error;
use crate::readiness::{Readiness, FAILED, KUBERNETES_READY, WAITING};

pub struct Init {
    pub config: Config,
    pub readiness: Readiness,
    pub daemons: Mutex<Vec<Arc<Daemon>>>,
    ending: Mutex<Ending>,
    ended: Condvar,
    /// The baked pods that are not ready, and why.
    waiting: Mutex<Vec<String>>,
}

/// Whether the init is stopping, and with which status.
#[derive(Default)]
struct Ending {
    stopping: bool,
    requested: bool,
    hurrying: bool,
    status: u8,
}

impl Init {
    pub fn new(config: Config) -> Init {
        Init {
            readiness: Readiness::new(config.path(STATE_DIR)),
            config,
            daemons: Mutex::default(),
            ending: Mutex::default(),
            ended: Condvar::new(),
            waiting: Mutex::default(),
        }
    }

    fn ending(&self) -> MutexGuard<'_, Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stopping(&self) -> bool {
        self.ending().stopping
    }

    /// Begins the stop; says whether it had begun before. A second call makes it hurry.
    pub fn begin_stop(&self) -> bool {
        let mut ending = self.ending();
        ending.stopping = true;
        let before = std::mem::replace(&mut ending.requested, true);
        ending.hurrying = before;
        self.ended.notify_all();
        before
    }

    /// Begins the stop where nobody asked for it.
    pub fn begin_stop_quietly(&self) {
        self.ending().stopping = true;
        self.ended.notify_all();
    }

    /// Whether somebody asked for the stop, so that errors from here on are only its echo.
    pub fn stop_requested(&self) -> bool {
        self.ending().requested
    }

    pub fn hurrying(&self) -> bool {
        self.ending().hurrying
    }

    /// The exit status: 0, or that of what failed.
    pub fn status(&self) -> u8 {
        self.ending().status
    }

    /// Waits, or until the stop begins.
    pub fn pause(&self, time: Duration) {
        let ending = self.ending();
        drop(self.ended.wait_timeout_while(ending, time, |ending| !ending.stopping));
    }

    /// Gives up for good: says why, where a waiting client sees it, and keeps serving that.
    pub fn fail(&self, error: &Error, status: u8) {
        let mut ending = self.ending();
        if ending.requested || ending.status != 0 {
            // The first failure is the one to show; what it drags along is for the log.
            return log::error!(target: "boot", "also: {error}");
        }
        ending.status = status;
        drop(ending);
        log::error!(target: "boot", "failed: {error}");
        if let Err(error) = self.readiness.publish(FAILED, format!("{error}\n").as_bytes()) {
            log::error!(target: "readiness", "{error}");
        }
    }

    /// A cluster that was given up for being late, and is ready after all, has not failed.
    pub fn forget_failure_when_ready(&self) {
        if !self.readiness.exists(KUBERNETES_READY) {
            return;
        }
        let before = std::mem::replace(&mut self.ending().status, 0);
        if before != 0 {
            log::info!(target: "boot", "ready after all");
            if let Err(error) = self.readiness.retract(FAILED) {
                log::error!(target: "readiness", "{error}");
            }
        }
    }

    /// Takes note of what is waited for, and shows it to those who wait.
    pub fn set_waiting(&self, now: Vec<String>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if *waiting == now {
            return;
        }
        log::debug!(target: "cluster", "waiting for {now:?}");
        let lines: String = now.iter().map(|line| format!("{line}\n")).collect();
        let shown =
            if now.is_empty() { self.readiness.retract(WAITING).map(drop) } else { self.readiness.publish(WAITING, lines.as_bytes()) };
        if let Err(error) = shown {
            log::error!(target: "readiness", "{error}");
        }
        *waiting = now;
    }

    pub fn waiting(&self) -> Vec<String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
