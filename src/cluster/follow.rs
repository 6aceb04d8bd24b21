//! A thread that follows objects of the API server for as long as the container runs, asleep in a watch.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::readiness::State;
use crate::supervisor::Init;

/// After an error, doubled up to the last: the API server may be down for a moment, or for good.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// Calls `follow` in a thread of its own, and again whenever it returns, as long as the state is right for it.
pub fn start(init: &Arc<Init>, name: &str, when: fn(&State) -> bool, follow: impl Fn() -> Result<()> + Send + 'static) -> Result<()> {
    let init = init.clone();
    let body = move || {
        while !init.shutdown.stopping() && init.readiness.wait_until(when) {
            until_done(&init, when, &follow);
        }
    };
    start_once(name, body)
}

/// Calls `follow` in a thread of its own.
pub fn start_once(name: &str, follow: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = thread::Builder::new().name(name.into()).spawn(follow);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the thread for {name}: {cause}")))
}

/// Tries until it succeeds, or the state is no longer right for it.
pub fn until_done(init: &Init, when: fn(&State) -> bool, attempt: impl Fn() -> Result<()>) {
    let mut pause = FIRST_PAUSE;
    while !init.shutdown.stopping() && when(&init.readiness.state()) {
        let Err(error) = attempt() else { return };
        log::debug!(target: "cluster", "{error}");
        init.shutdown.pause(pause);
        pause = (pause * 2).min(LAST_PAUSE);
    }
}
