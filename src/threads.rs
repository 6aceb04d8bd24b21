//! Starts the init's threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};

/// Starts a thread with a name: a panic in it ends the process (`logger`).
pub fn start(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    start_for(name, body).map(drop)
}

/// As `start`, of a thread that has a result.
pub fn start_for<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    let started = thread::Builder::new().name(name.into()).spawn(body);
    started.map_err(|cause| Error::new(format!("cannot start the thread {name}: {cause}")))
}

/// Bytes: that of `start`, and one for threads that hold a message and little else.
pub const STACK: usize = 2 * 1024 * 1024;
pub const SMALL_STACK: usize = 64 * 1024;

/// A limited number of threads, each of which serves one client.
#[derive(Clone)]
pub struct Places {
    taken: Arc<AtomicUsize>,
    most: usize,
    stack: usize,
}

impl Places {
    pub fn new(most: usize, stack: usize) -> Places {
        Places { taken: Arc::default(), most, stack }
    }

    /// Drops `body` if all places are taken, or no thread can be started. The thread has no name: see `logger`.
    pub fn run(&self, body: impl FnOnce() + Send + 'static) {
        let Some(place) = Place::take(&self.taken, self.most) else { return };
        let body = move || {
            let _place = place;
            body();
        };
        let _ = thread::Builder::new().stack_size(self.stack).spawn(body);
    }
}

/// One of a limited number of places, which is released however its thread ends.
pub struct Place(Arc<AtomicUsize>);

impl Place {
    pub fn take(taken: &Arc<AtomicUsize>, places: usize) -> Option<Place> {
        let place = Place(taken.clone());
        (taken.fetch_add(1, Ordering::Relaxed) < places).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
