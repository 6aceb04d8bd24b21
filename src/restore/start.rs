//! Restores beside the rest of the boot, and falls back to a plain start whenever anything is not as it should be.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::clock::Stopwatch;
use crate::cluster::api::Api;
use crate::cluster::Cluster;
use crate::config::{CREDENTIALS_DIR, ETCD_DIR, POLL, RESTORED_DIR};
use crate::daemons::dockerd::DOCKERD;
use crate::error::{Error, Result};
use crate::node::scratch;
use crate::node::yielding::Yielding;
use crate::readiness::files::CONTROL_PLANE;
use crate::restore::held_port::HeldPort;
use crate::restore::machine::{self, Machine};
use crate::restore::saved::{self, Saved};
use crate::restore::tree::Process;
use crate::restore::{criu, owner, tree};
use crate::supervisor::priority;
use crate::supervisor::reaper;
use crate::supervisor::Init;
use crate::versions;

/// An API server that does not answer this long after the restore began, or no longer leaves the CPU to Docker, is
/// given up.
const LIMIT: Duration = Duration::from_secs(5);
/// Each question whether it answers.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// A client that was kept waiting is answered this soon once the API server answers.
const ANSWERED: Duration = Duration::from_millis(50);
/// The milestone at which the restored API server answers.
pub const RESTORED: &str = "restored";

/// A restore that has begun. It may still turn out that it must not go on.
pub struct Begun {
    restore: Restore,
    holds_clients: Receiver<bool>,
}

impl Begun {
    /// Waits until that is known, some hundredths of a second at most. `None` if there is a reason.
    pub fn decide(self) -> Option<Restore> {
        let holds_clients = self.holds_clients.recv().ok()?;
        Some(Restore { holds_clients, ..self.restore })
    }
}

/// A restore that goes on beside the boot.
pub struct Restore {
    thread: JoinHandle<bool>,
    /// Whether clients of the API server are kept waiting meanwhile.
    pub holds_clients: bool,
    ended: Arc<Mutex<Receiver<()>>>,
}

impl Restore {
    /// Returns when a client that has been kept waiting must have been answered, or the restore is given up.
    pub fn answered(&self) -> Option<Arc<dyn Fn() + Send + Sync>> {
        let ended = self.ended.clone();
        let wait = move || {
            // The thread that restores drops its end when it ends.
            let _ = ended.lock().unwrap_or_else(PoisonError::into_inner).recv();
            thread::sleep(ANSWERED);
        };
        self.holds_clients.then(|| Arc::new(wait) as _)
    }

    /// Waits until it is done or given up, which takes `YIELD_LIMIT` and `LIMIT` at most. Returns whether the control plane
    /// runs restored.
    pub fn finish(self) -> bool {
        self.thread.join().unwrap_or(false)
    }
}

/// Begins to restore the control plane. The node must be prepared: its address is there, and so are /etc/kubernetes and
/// etcd's directory.
pub fn begin(init: &Arc<Init>, cluster: &Cluster, yielding: Yielding) -> Result<Begun> {
    let began = Instant::now();
    let (ours, cluster) = (init.clone(), cluster.clone());
    let (ends, ended) = channel::<()>();
    let (decides, decided) = channel();
    let body = move || {
        let _ends = ends;
        let go_on = |prepared: Prepared| {
            let _ = decides.send(prepared.held.is_some());
            restore(&ours, cluster.static_ip, prepared, yielding)
        };
        match prepare(&ours, &cluster).and_then(go_on) {
            Ok(took) => {
                let what = format!("restored in {:.2} s", took.as_secs_f64());
                log::info!(target: "restore", "the control plane is {what}");
                ours.readiness.milestone(RESTORED);
                ours.readiness.publish(CONTROL_PLANE, what.as_bytes());
                true
            }
            Err(error) => {
                let seconds = began.elapsed().as_secs_f64();
                log::info!(target: "restore", "the control plane is started, not restored, after {seconds:.2} s: {error}");
                ours.readiness.publish(CONTROL_PLANE, format!("started, not restored: {error}").as_bytes());
                false
            }
        }
    };
    let thread = thread::Builder::new().name("restore".into()).spawn(body);
    let thread = thread.map_err(|cause| Error::new(format!("cannot start the thread that restores: {cause}")))?;
    Ok(Begun { restore: Restore { thread, holds_clients: false, ended: Arc::new(Mutex::new(ended)) }, holds_clients: decided })
}

/// What a restore needs, once nothing speaks against it.
struct Prepared {
    saved: Saved,
    stand_ins: UnixListener,
    held: Option<HeldPort>,
}

fn prepare(init: &Init, cluster: &Cluster) -> Result<Prepared> {
    let saved = saved_for(init, cluster)?;
    saved::make_directory()?;
    let stand_ins = owner::listen()?;
    let held = HeldPort::listen(&init.config, &saved.ports);
    let held = held.inspect_err(|error| log::info!(target: "restore", "kubelet is started after the restore, not beside it: {error}")).ok();
    Ok(Prepared { saved, stand_ins, held })
}

/// The saved state, if it can be restored here and now.
///
/// # Errors
/// It cannot, and the error is the reason.
fn saved_for(init: &Init, cluster: &Cluster) -> Result<Saved> {
    match init.config.restore {
        Some(false) => return Err(Error::new("KIND_RESTORE=0")),
        None if !versions::notices_certificates(&cluster.kubernetes_version) => {
            return Err(Error::new(format!(
                "a running API server of Kubernetes {} sees a new certificate once a minute only",
                cluster.kubernetes_version
            ))
            .advise("KIND_RESTORE=1 restores it all the same"));
        }
        Some(true) | None => {}
    }
    let saved = Saved::load()?.ok_or_else(|| Error::new("the image was baked without a saved state"))?;
    match refusal(&saved, &Machine::here()) {
        Some(why) => Err(Error::new(why)),
        None => Ok(saved),
    }
}

/// Returns how long it took, without the wait for Docker.
fn restore(init: &Arc<Init>, static_ip: Ipv4Addr, prepared: Prepared, yielding: Yielding) -> Result<Duration> {
    let Prepared { saved, stand_ins, held } = prepared;
    let api = Api::new(Path::new(CREDENTIALS_DIR), static_ip)?;
    if yielding == Yielding::Later {
        reaper::poll(POLL, priority::YIELD_LIMIT, || docker_has_started(init).then_some(()));
        if init.shutdown.stopping() {
            return Err(Error::new("the container stops"));
        }
    }
    let (began, mut waited) = (Instant::now(), Stopwatch::start());
    let root = saved.put_files().and_then(|()| bring_back(init, &saved, yielding, &mut waited));
    // From here on whoever has connected is the restored server's client.
    drop(held);
    let look_after = |processes| owner::start(init, &stand_ins, &saved, processes);
    let restored = root.and_then(|root| {
        let owner = take_over(init, &saved, root, &api, &mut waited).and_then(look_after);
        owner.inspect_err(|_| tree::kill(root))
    });
    if restored.is_err() {
        // Nothing of it may be left: the plain start begins with the data that the bake has left.
        saved::clear(Path::new(ETCD_DIR))?;
        scratch::seed(ETCD_DIR)?;
        // Stand-ins that wait become the programs when `stand_ins` is dropped, and so does everyone who finds no socket.
        let _ = fs::remove_file(owner::socket());
    }
    restored.map(|()| began.elapsed())
}

/// Whether nobody has to yield to Docker any more: it answers, or the container stops.
fn docker_has_started(init: &Init) -> bool {
    init.readiness.has_reached(DOCKERD) || init.shutdown.stopping()
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
fn bring_back(init: &Init, saved: &Saved, yielding: Yielding, waited: &mut Stopwatch) -> Result<i32> {
    let work = Path::new(RESTORED_DIR);
    let child = reaper::spawn(criu::restore(work).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()))?;
    let pid = child.handle().pid();
    let mut status = None;
    if yielding == Yielding::OnIdleCpus {
        // The programs themselves come back with the policy that they had.
        priority::lower(pid);
        while status.is_none() && !docker_has_started(init) && waited.elapsed() < priority::YIELD_LIMIT {
            status = child.wait_timeout(POLL);
        }
        if status.is_none() {
            priority::restore(pid);
        }
        *waited = Stopwatch::start();
    }
    let status = status.or_else(|| child.wait_timeout(LIMIT.saturating_sub(waited.elapsed())));
    let Some(status) = status else {
        tree::kill(pid);
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

/// Waits until the API server answers. Returns the programs.
fn take_over(init: &Init, saved: &Saved, root: i32, api: &Api, waited: &mut Stopwatch) -> Result<Vec<Process>> {
    reaper::adopt(root);
    let processes = tree::find(root, saved)?;
    let left = LIMIT.saturating_sub(waited.elapsed());
    let is_ready = || api.readiness_within(ANSWER_LIMIT) == Some(200);
    reaper::poll(POLL, left, || (init.shutdown.stopping() || is_ready()).then_some(()))
        .ok_or_else(|| Error::new(format!("the restored API server has not answered after {} s", LIMIT.as_secs())))?;
    Ok(processes)
}
