//! Removes what an earlier start's cluster has left in containerd, on a volume that is used again.
//!
//! CRI reads the pods' containers into memory when containerd starts, and keeps their names reserved. If a container
//! were removed later without CRI, its name would stay "reserved for" it, and kubelet would never get its API
//! server. So a containerd without CRI removes them, before the real one starts.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::config::{CONTAINERD_SOCKET, DAEMON_LIMIT, LOG_DIR, POLL};
use crate::daemons::containerd::{self, CONTAINERD};
use crate::daemons::containerd_config::Form;
use crate::error::{Error, Result};
use crate::files;
use crate::node::iptables::Iptables;
use crate::supervisor::reaper::{self, Child};

const LOG: &str = "containerd-without-cri.log";
const TAIL_LINES: usize = 6;

/// Removes every container and sandbox of the pods. None of them is running: their processes ended with the
/// start that they belong to. Returns how many there were.
pub fn remove_pods(form: Form, iptables: &Iptables) -> Result<usize> {
    let log = Path::new(LOG_DIR).join(LOG);
    files::make_dir(LOG_DIR)?;
    let output = File::create(&log).map_err(|cause| Error::io("write", &log, cause))?;
    let errors = output.try_clone().map_err(|cause| Error::io("write", &log, cause))?;
    let child = reaper::spawn(containerd::command_without_cri(form, iptables)?.stdout(output).stderr(errors))?;
    let removed = wait_until_listening(&child).and_then(|()| containerd::remove_pod_containers());
    end(&child);
    removed.map_err(|error| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let tail = reaper::tail(&text, TAIL_LINES);
        Error::new(format!("cannot remove the earlier start's pods from the volume: {error}. The end of containerd's log:\n{tail}"))
            .advise("Start the container with an empty volume")
    })
}

fn wait_until_listening(child: &Child) -> Result<()> {
    let listening = reaper::poll(POLL, DAEMON_LIMIT, || match child.wait_timeout(Duration::ZERO) {
        Some(status) => Some(Err(Error::new(format!("{CONTAINERD} {}", reaper::describe(status))))),
        None => UnixStream::connect(CONTAINERD_SOCKET).is_ok().then_some(Ok(())),
    });
    listening.unwrap_or_else(|| Err(Error::new(format!("{CONTAINERD} does not answer after {} s", DAEMON_LIMIT.as_secs()))))
}

/// Waits until it has ended and so closed its database: only then may another containerd open it.
fn end(child: &Child) {
    child.handle().signal(Signal::SIGTERM);
    if child.wait_timeout(DAEMON_LIMIT).is_none() {
        child.handle().kill_group();
        child.wait();
    }
}
