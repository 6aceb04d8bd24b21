//! A thread for what a watch of the API server reports, for as long as its cluster lasts.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::readiness::State;
use crate::supervisor::Init;
use crate::threads;

/// After an error, doubled up to the last: the API server may be down for a moment, or for good.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// Calls `watch` in a thread of its own, and again whenever it returns, as long as the state is right for it.
pub fn start(init: &Arc<Init>, name: &str, when: fn(&State) -> bool, mut watch: impl FnMut() -> Result<()> + Send + 'static) -> Result<()> {
    let init = init.clone();
    threads::start(name, move || {
        while !init.readiness.is_over() && init.readiness.wait_until(when) {
            until_done(&init, when, &mut watch);
            init.readiness.pause(FIRST_PAUSE);
        }
    })
}

/// Tries until it succeeds, or the state is no longer right for it.
pub fn until_done(init: &Init, when: fn(&State) -> bool, mut attempt: impl FnMut() -> Result<()>) {
    let mut pause = FIRST_PAUSE;
    while !init.readiness.is_over() && when(&init.readiness.state()) {
        let Err(error) = attempt() else { return };
        log::debug!(target: "cluster", "{error}");
        init.readiness.pause(pause);
        pause = (pause * 2).min(LAST_PAUSE);
    }
}
