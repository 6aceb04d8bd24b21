//! The end, in the order that the boot hands over, inside the 10 s after which Docker kills the container.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::supervisor::daemon::Daemon;
use crate::supervisor::reaper;
use crate::supervisor::Init;

/// How one daemon is stopped: asked with SIGTERM, and killed when its time is over.
pub struct Step {
    pub daemon: &'static str,
    /// Called before the daemon is asked.
    pub before: Option<fn()>,
    /// Called when the daemon has not ended after this long.
    pub nudge: Option<(Duration, fn())>,
    /// From then on, until it is killed.
    pub limit: Duration,
}

/// Begins the stop in a thread of its own; a second request makes it hurry.
pub fn request(init: &Arc<Init>, signal: i32, order: &'static [Step]) {
    if init.shutdown.request() {
        log::info!(target: "stop", "asked again: killing everything now");
        return init.daemons().iter().for_each(|daemon| daemon.kill());
    }
    let name = Signal::try_from(signal).map_or("a signal", Signal::as_str);
    log::info!(target: "stop", "{name}: stopping");
    let init = init.clone();
    let stopping = thread::Builder::new().name("stop".into()).spawn(move || {
        let status = everything(&init, order);
        std::process::exit(status.into());
    });
    if let Err(cause) = stopping {
        log::error!(target: "stop", "cannot start a thread ({cause}): ending at once");
        std::process::exit(1);
    }
}

/// Stops whatever runs. Returns the exit status for the caller to end the process with.
pub fn everything(init: &Init, order: &[Step]) -> u8 {
    let started = Instant::now();
    init.shutdown.begin();
    let status = init.readiness.end();
    order.iter().for_each(|step| stop_daemon(init, step));
    reaper::kill_everyone();
    if !init.daemons().is_empty() {
        log::info!(target: "stop", "stopped in {:.1} s", started.elapsed().as_secs_f64());
    }
    status
}

/// Stops one daemon. The init is stopping.
pub fn stop_daemon(init: &Init, step: &Step) {
    let hurried = |limit| if init.shutdown.hurrying() { Duration::ZERO } else { limit };
    if let Some(before) = step.before {
        before();
    }
    let Some(daemon) = init.daemon(step.daemon) else { return };
    // Once: a third time, dockerd would quit without its containers.
    daemon.signal(Signal::SIGTERM);
    if let Some((patience, nudge)) = step.nudge {
        if daemon.ends_within(hurried(patience)) {
            return;
        }
        nudge();
    }
    Daemon::end(&daemon, hurried(step.limit));
}
