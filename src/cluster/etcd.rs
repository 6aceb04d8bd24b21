//! Whether etcd runs, on which everything else rests. kubelet can tell nobody of its death, since the
//! API server stores nothing without it, and the watch on pods stays open meanwhile. So a connection is
//! held to its port for metrics: the kernel closes it in the moment in which the process ends.

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::cluster::api::Api;
use crate::error::{Error, Result};
use crate::supervisor::Init;

/// kubeadm's `--listen-metrics-urls`, of every version; its probes ask there too.
const METRICS_PORT: u16 = 2381;
/// While there is no etcd; a refused connection costs nothing.
const POLL: Duration = Duration::from_millis(50);

/// Follows etcd in a thread that sleeps as long as it runs.
pub fn follow(init: &Arc<Init>, api: Arc<Api>) -> Result<()> {
    let init = init.clone();
    let follow = move || {
        while !init.shutdown.stopping() {
            match TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS_PORT)) {
                Ok(connection) => hold(&init, &api, connection),
                Err(_) => init.readiness.update(|state| state.etcd = false),
            }
            init.shutdown.pause(POLL);
        }
    };
    let started = thread::Builder::new().name("etcd".into()).spawn(follow);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the thread that follows etcd: {cause}")))
}

/// Returns when the connection is closed. That alone says nothing: a server may close an idle one. But
/// of a process that ended, the listening socket was closed before.
fn hold(init: &Init, api: &Api, mut connection: TcpStream) {
    if !init.readiness.state().etcd {
        // It counts when the API server has found it, which says so in its own readiness.
        while !api.is_ready() {
            if init.shutdown.stopping() {
                return;
            }
            init.shutdown.pause(POLL);
        }
        init.readiness.update(|state| state.etcd = true);
    }
    let _ = connection.read(&mut [0]);
}
