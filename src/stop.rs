//! The end, in order: kubelet and its pods, dockerd, containerd, then everyone left, inside the 10 s
//! after which Docker kills the container.

use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::config::{STOP_CONTAINERD, STOP_CONTAINERS, STOP_DOCKERD, STOP_KUBELET};
use crate::daemons::Daemon;
use crate::init::Init;
use crate::node::cgroup;
use crate::reaper;

/// Begins the stop in a thread of its own; a second request makes it hurry.
pub fn request(init: &Arc<Init>, signal: i32) {
    if init.begin_stop() {
        log::info!(target: "stop", "asked again: killing everything now");
        return init.daemons.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|daemon| daemon.kill());
    }
    let name = Signal::try_from(signal).map_or("a signal", Signal::as_str);
    log::info!(target: "stop", "{name}: stopping");
    let init = init.clone();
    let stopping = thread::Builder::new().name("stop".into()).spawn(move || {
        everything(&init);
        std::process::exit(init.status().into());
    });
    if let Err(cause) = stopping {
        log::error!(target: "stop", "cannot start a thread ({cause}): ending at once");
        std::process::exit(1);
    }
}

/// Stops whatever runs. The caller ends the process.
pub fn everything(init: &Init) {
    let started = Instant::now();
    init.begin_stop_quietly();
    init.readiness.end();
    stop_daemon(init, "kubelet", STOP_KUBELET);
    // Pods get their SIGTERM now, and the time that dockerd and containerd take to end.
    reaper::signal_all(&cgroup::processes_of_pods(), Signal::SIGTERM);
    stop_dockerd(init);
    stop_daemon(init, "containerd", STOP_CONTAINERD);
    reaper::kill_everyone();
    if init.daemons.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
        return;
    }
    log::info!(target: "stop", "stopped in {:.1} s", started.elapsed().as_secs_f64());
}

pub fn stop_daemon(init: &Init, name: &str, limit: Duration) {
    if let Some(daemon) = find(init, name) {
        daemon.signal(Signal::SIGTERM);
        daemon.end(hurried(init, limit));
    }
}

/// dockerd gives each container that ignores SIGTERM 10 s, whatever its own settings say: those are
/// killed before, so that dockerd itself can end in order. It is asked once: a third time it would quit.
fn stop_dockerd(init: &Init) {
    let Some(dockerd) = find(init, "dockerd") else { return };
    dockerd.signal(Signal::SIGTERM);
    if !dockerd.ends_within(hurried(init, STOP_CONTAINERS)) {
        reaper::signal_all(&cgroup::processes_of_docker(), Signal::SIGKILL);
        dockerd.end(hurried(init, STOP_DOCKERD));
    }
}

fn hurried(init: &Init, limit: Duration) -> Duration {
    if init.hurrying() {
        Duration::ZERO
    } else {
        limit
    }
}

pub fn signal_daemon(init: &Init, name: &str, signal: Signal) {
    if let Some(daemon) = find(init, name) {
        log::info!(target: "signals", "{signal} handed on to {name}");
        daemon.signal(signal);
    }
}

fn find(init: &Init, name: &str) -> Option<Arc<Daemon>> {
    let daemons = init.daemons.lock().unwrap_or_else(PoisonError::into_inner);
    daemons.iter().find(|daemon| daemon.name == name).cloned()
}
