//! The order in which the daemons are stopped.

use nix::sys::signal::Signal;

use crate::config::{STOP_CONTAINERD, STOP_CONTAINERS, STOP_DOCKERD, STOP_KUBELET};
use crate::daemons::containerd::CONTAINERD;
use crate::daemons::dockerd::DOCKERD;
use crate::daemons::kubelet::KUBELET;
use crate::node::cgroup;
use crate::supervisor::reaper;
use crate::supervisor::stop::{self, Step};
use crate::supervisor::Init;

/// The stop, in order: kubelet and its pods, dockerd and its containers, containerd.
pub const STOP_ORDER: [Step; 3] = [
    Step { daemon: KUBELET, before: None, nudge: None, limit: STOP_KUBELET },
    Step {
        daemon: DOCKERD,
        // Pods have until dockerd and containerd have ended.
        before: Some(|| reaper::signal_all(&cgroup::processes_of_pods(), Signal::SIGTERM)),
        // dockerd gives each container that ignores SIGTERM 10 s, whatever its settings say. We kill those
        // containers, so that dockerd itself has time for an orderly exit.
        nudge: Some((STOP_CONTAINERS, || reaper::signal_all(&cgroup::processes_of_docker(), Signal::SIGKILL))),
        limit: STOP_DOCKERD,
    },
    Step { daemon: CONTAINERD, before: None, nudge: None, limit: STOP_CONTAINERD },
];

/// Stops one of the daemons as the stop would, for good.
pub fn stop_daemon(init: &Init, name: &str) {
    STOP_ORDER.iter().filter(|step| step.daemon == name).for_each(|step| stop::stop_one(init, step));
}
