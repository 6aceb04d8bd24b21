//! Starts the init's threads.

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
