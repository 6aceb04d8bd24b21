//! Restores beside the rest of the boot, and falls back to a plain start whenever anything is not as it should be.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::clock::Stopwatch;
use crate::cluster::api::Api;
use crate::config::{CREDENTIALS_DIR, ETCD_DIR, POLL, RESTORED_DIR};
use crate::error::{Error, Result};
use crate::node::scratch;
use crate::restore::machine::{self, Machine};
use crate::restore::saved::{self, Saved};
use crate::restore::{criu, owner, tree};
use crate::supervisor::reaper;
use crate::supervisor::Init;

/// An API server that does not answer this long after the restore began is given up.
const LIMIT: Duration = Duration::from_secs(5);
/// The milestone at which the restored API server answers.
pub const RESTORED: &str = "restored";

/// A restore that goes on beside the boot.
pub struct Restore(JoinHandle<bool>);

impl Restore {
    /// Whether the control plane runs restored. Returns soon in any case.
    pub fn finish(self) -> bool {
        self.0.join().unwrap_or(false)
    }
}

/// Begins to restore, if there is a reason to. The node must be prepared: its address is there, and /etc/kubernetes
/// and etcd's directory are.
pub fn begin(init: &Arc<Init>, static_ip: std::net::Ipv4Addr) -> Result<Restore> {
    let ours = init.clone();
    let body = move || {
        let began = Instant::now();
        let why = match restore(&ours, static_ip) {
            Ok(Outcome::Restored) => {
                let seconds = began.elapsed().as_secs_f64();
                log::info!(target: "restore", "etcd, the API server, the controller-manager and the scheduler restored in {seconds:.2} s");
                return true;
            }
            Ok(Outcome::Refused(why)) => why,
            Err(error) => error.to_string(),
        };
        log::info!(target: "restore", "the control plane is started, not restored: {why} ({:.2} s)", began.elapsed().as_secs_f64());
        false
    };
    let started = thread::Builder::new().name("restore".into()).spawn(body);
    started.map(Restore).map_err(|cause| Error::new(format!("cannot start the thread that restores: {cause}")))
}

enum Outcome {
    Restored,
    Refused(String),
}

fn restore(init: &Arc<Init>, static_ip: std::net::Ipv4Addr) -> Result<Outcome> {
    if !init.config.restore {
        return Ok(Outcome::Refused("KIND_RESTORE=0".into()));
    }
    let Some(saved) = Saved::load()? else { return Ok(Outcome::Refused("this image was baked without a saved state".into())) };
    if let Some(why) = refusal(&saved, &Machine::here()) {
        return Ok(Outcome::Refused(why));
    }
    let api = Api::new(Path::new(CREDENTIALS_DIR), static_ip)?;
    let mut waited = Stopwatch::start();
    let restored = saved.put_files().and_then(|()| bring_back(&saved, &mut waited));
    let restored = restored.and_then(|root| match take_over(init, &saved, root, &api, &mut waited) {
        Ok(()) => Ok(()),
        Err(error) => {
            tree::kill(root);
            Err(error)
        }
    });
    match restored {
        Ok(()) => {
            init.readiness.milestone(RESTORED);
            Ok(Outcome::Restored)
        }
        Err(error) => {
            // Nothing of it may be left: the plain start begins with the data that the bake has left.
            let _ = fs::remove_file(owner::socket());
            saved::clear(Path::new(ETCD_DIR))?;
            scratch::seed(ETCD_DIR)?;
            Err(error)
        }
    }
}

/// Why the saved state must not be restored here, if so.
fn refusal(saved: &Saved, here: &Machine) -> Option<String> {
    if !criu::exists() {
        return Some("the image has no CRIU".into());
    }
    let taken = || {
        let socket = machine::sockets().find(|socket| saved.ports.contains(&socket.port));
        socket.map(|socket| format!("port {}, which the saved programs use, is in use", socket.port))
    };
    here.lacks().or_else(|| here.differs_from(&saved.machine)).or_else(taken).or_else(|| saved.changed())
}

/// Runs CRIU. Returns the process id of the programs' parent.
fn bring_back(saved: &Saved, waited: &mut Stopwatch) -> Result<i32> {
    let work = Path::new(RESTORED_DIR);
    let child = reaper::spawn(criu::restore(work).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()))?;
    let status = child.wait_timeout(LIMIT.saturating_sub(waited.elapsed()));
    let Some(status) = status else {
        tree::kill(child.handle().pid());
        return Err(Error::new(format!("CRIU has not finished after {} s", LIMIT.as_secs())));
    };
    let root = fs::read_to_string(work.join(criu::PID)).ok().and_then(|text| text.trim().parse::<i32>().ok());
    match root {
        Some(root) if status.success() => Ok(root),
        root => {
            root.into_iter().for_each(tree::kill);
            let log = fs::read_to_string(work.join(criu::LOG)).unwrap_or_default();
            let error = criu::error_in(&log).unwrap_or("its log has no error");
            let kernels = format!("saved on Linux {}", saved.machine.kernel);
            Err(Error::new(format!("CRIU {}: {error} ({kernels})", reaper::describe(status))))
        }
    }
}

/// Waits until the API server answers, and begins to look after the programs.
fn take_over(init: &Arc<Init>, saved: &Saved, root: i32, api: &Api, waited: &mut Stopwatch) -> Result<()> {
    reaper::adopt(root);
    let processes = tree::find(root, saved)?;
    let left = LIMIT.saturating_sub(waited.elapsed());
    reaper::poll(POLL, left, || (init.shutdown.stopping() || api.is_ready()).then_some(()))
        .ok_or_else(|| Error::new(format!("the restored API server has not answered after {} s", LIMIT.as_secs())))?;
    owner::start(init, saved, processes)
}
