//! The requests to stop the container.

use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Default)]
pub struct Shutdown {
    requests: AtomicU32,
}

impl Shutdown {
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
}
