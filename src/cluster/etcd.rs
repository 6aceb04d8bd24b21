//! Whether etcd runs. The watch on pods cannot tell: without etcd, the API server stores nothing of what kubelet
//! reports, and the watch stays open. So we keep a connection to etcd's metrics port, which the kernel closes at
//! the moment the process ends.

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::cluster::api::Api;
use crate::error::{Error, Result};
use crate::supervisor::Init;

/// From `--listen-metrics-urls`, which every version of kubeadm sets; etcd's probes use it too.
const METRICS_PORT: u16 = 2381;
/// How often to try while etcd is down. A refused connection costs nothing.
const POLL: Duration = Duration::from_millis(50);

/// Follows etcd in a thread that sleeps as long as it runs. `before_it_counts` is called when it is back:
/// what the API server tells of pods is from before it went.
pub fn follow(init: &Arc<Init>, api: Arc<Api>, before_it_counts: impl Fn() + Send + 'static) -> Result<()> {
    let init = init.clone();
    let follow = move || {
        while !init.shutdown.stopping() {
            match TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS_PORT)) {
                Ok(connection) => hold(&init, &api, &before_it_counts, connection),
                Err(_) => init.readiness.update(|state| state.etcd = false),
            }
            init.shutdown.pause(POLL);
        }
    };
    let started = thread::Builder::new().name("etcd".into()).spawn(follow);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the thread that follows etcd: {cause}")))
}

/// Returns when the connection is closed. That alone does not mean that etcd has ended, since a server may close
/// an idle connection; but if it has, its listening socket is closed as well, and connecting fails.
fn hold(init: &Init, api: &Api, before_it_counts: &impl Fn(), mut connection: TcpStream) {
    if !init.readiness.state().etcd {
        // etcd counts only once the API server has connected to it, which its own readiness includes.
        while !api.is_ready() {
            if init.shutdown.stopping() {
                return;
            }
            init.shutdown.pause(POLL);
        }
        before_it_counts();
        init.readiness.update(|state| state.etcd = true);
    }
    let _ = connection.read(&mut [0]);
}
