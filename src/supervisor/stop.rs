//! Stops the daemons in the order that `boot` gives, within the 10 s after which Docker kills the container.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::supervisor::reaper;
use crate::supervisor::Init;
use crate::threads;

/// How to stop one daemon: it gets SIGTERM, and SIGKILL if that takes too long.
pub struct Step {
    pub daemon: &'static str,
    /// Called before SIGTERM.
    pub before: Option<fn()>,
    /// Called if the daemon is still running after this long.
    pub nudge: Option<(Duration, fn())>,
    /// How long it may take after SIGTERM, or after `nudge` if there is one, before it is killed.
    pub limit: Duration,
}

/// Begins the stop in a thread of its own. A second request kills every daemon at once.
pub fn request(init: &Arc<Init>, signal: i32, order: &'static [Step]) {
    if init.shutdown.request() {
        log::info!(target: "stop", "second request: killing everything now");
        return init.daemons().iter().for_each(|daemon| daemon.kill());
    }
    let name = Signal::try_from(signal).map_or("a signal", Signal::as_str);
    log::info!(target: "stop", "{name}: stopping");
    let init = init.clone();
    let stopping = threads::start("stop", move || std::process::exit(everything(&init, order).into()));
    if let Err(error) = stopping {
        log::error!(target: "stop", "{error}: ending at once");
        std::process::exit(1);
    }
}

/// Stops everything that runs. Returns the status with which the caller is to exit.
pub fn everything(init: &Init, order: &[Step]) -> u8 {
    let started = Instant::now();
    let status = init.readiness.end();
    order.iter().for_each(|step| stop_one(init, step));
    reaper::kill_all();
    if !init.daemons().is_empty() {
        log::info!(target: "stop", "stopped in {:.1} s", started.elapsed().as_secs_f64());
    }
    status
}

/// Stops one daemon for good.
pub fn stop_one(init: &Init, step: &Step) {
    let hurried = |limit| if init.shutdown.hurrying() { Duration::ZERO } else { limit };
    if let Some(before) = step.before {
        before();
    }
    let Some(daemon) = init.daemon(step.daemon) else { return };
    // Only once: on the third SIGTERM, dockerd quits without stopping its containers.
    daemon.stop();
    if let Some((patience, nudge)) = step.nudge {
        if daemon.ends_within(hurried(patience)) {
            return;
        }
        nudge();
    }
    daemon.wait_or_kill(hurried(step.limit));
}
