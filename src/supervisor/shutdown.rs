//! Whether the init is stopping, or whether that cluster is over for which an `Init` speaks.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;

use crate::readiness::Readiness;

pub struct Shutdown {
    pub(super) readiness: Arc<Readiness>,
    /// How often the stop was requested.
    pub(super) requests: Arc<AtomicU32>,
}

impl Shutdown {
    pub fn stopping(&self) -> bool {
        self.readiness.is_over()
    }

    /// Notes a request. Returns whether it is not the first one, which makes the stop hurry.
    pub fn request(&self) -> bool {
        self.requests.fetch_add(1, Ordering::Relaxed) > 0
    }

    /// Whether the stop was requested: errors from then on are only its consequences.
    pub fn requested(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    pub fn hurrying(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 1
    }

    /// Sleeps for `time`, or until the stop begins.
    pub fn pause(&self, time: Duration) {
        self.readiness.pause(time);
    }
}
