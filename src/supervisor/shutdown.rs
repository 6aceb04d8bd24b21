//! Whether the init is stopping: a flag for all threads, and the condition variable that interrupts their pauses.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Default)]
pub struct Shutdown {
    stage: Mutex<Stage>,
    begun: Condvar,
}

#[derive(Default)]
struct Stage {
    stopping: bool,
    requested: bool,
    hurrying: bool,
}

impl Shutdown {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stopping(&self) -> bool {
        self.stage().stopping
    }

    /// Begins the stop on request. Returns whether this is not the first request, which makes the stop hurry.
    pub fn request(&self) -> bool {
        let mut stage = self.stage();
        stage.stopping = true;
        stage.hurrying = std::mem::replace(&mut stage.requested, true);
        self.begun.notify_all();
        stage.hurrying
    }

    /// Begins the stop without a request, after a failure.
    pub fn begin(&self) {
        self.stage().stopping = true;
        self.begun.notify_all();
    }

    /// Whether the stop was requested: errors from then on are only its consequences.
    pub fn requested(&self) -> bool {
        self.stage().requested
    }

    pub fn hurrying(&self) -> bool {
        self.stage().hurrying
    }

    /// Sleeps for `time`, or until the stop begins.
    pub fn pause(&self, time: Duration) {
        drop(self.begun.wait_timeout_while(self.stage(), time, |stage| !stage.stopping));
    }
}
