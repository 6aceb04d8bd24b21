//! Starts the init's threads.

use std::thread;

use crate::error::{Error, Result};

/// Starts a thread with a name: a panic in it ends the process (`logger`).
pub fn start(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = thread::Builder::new().name(name.into()).spawn(body);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the thread {name}: {cause}")))
}
