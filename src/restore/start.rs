//! Decides whether a start restores the control plane, restores it beside the rest of the boot, and falls back to a cold start
//! whenever anything is not as it should be.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::api::Api;
use crate::cluster::Cluster;
use crate::config::{CREDENTIALS_DIR, ETCD_DIR, POLL, RESTORED_DIR};
use crate::daemons::dockerd::DOCKERD;
use crate::error::{Error, Result};
use crate::node::directories;
use crate::node::state_dir::StateDir;
use crate::readiness::{ControlPlane, NoValue};
use crate::restore::held_port::{self, HeldPort};
use crate::restore::machine::{self, Machine};
use crate::restore::priority::{self, Yielding};
use crate::restore::saved::{self, Saved};
use crate::restore::tree::Process;
use crate::restore::{criu, manifests, owner, tree};
use crate::supervisor::reaper::{self, Handle};
use crate::supervisor::Init;
use crate::{files, threads, versions};

/// An API server that does not answer this long after the restore began, or no longer leaves the CPU to Docker, is
/// given up. On a machine where a restore takes 5 s (an emulated one), what follows would take longer yet.
const LIMIT: Duration = Duration::from_secs(15);
/// Each question whether it answers.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// Why a restore is given up for which there is no cluster any more.
const OVER: &str = "the container stops, or a reset has begun";

/// The control plane's part of a start.
pub struct Restore {
    pub(super) init: Arc<Init>,
    pub(super) yielding: Yielding,
    /// Returns the restored programs' parent, if they were restored.
    thread: JoinHandle<Option<Handle>>,
}

/// Begins to restore the control plane, beside the rest of the boot; the state says how far it is (`ControlPlane`). The node
/// must be prepared: its address is there, and so are /etc/kubernetes and etcd's directory.
pub fn begin(init: &Arc<Init>, cluster: &Cluster) -> Result<Restore> {
    // An earlier start that was killed may have hidden them.
    if let Err(error) = manifests::show() {
        log::warn!(target: "boot", "{error}");
    }
    let yielding = Yielding::here();
    let (ours, cluster) = (init.clone(), cluster.clone());
    let thread = threads::start_for("restore", move || {
        let began = Instant::now();
        let restored = prepare(&ours, &cluster).and_then(|prepared| {
            let port_is_held = prepared.held.is_some();
            ours.readiness.update(|state| state.control_plane = ControlPlane::Restoring { port_is_held });
            restore(&ours, cluster.static_ip, prepared, yielding)
        });
        let (how, control_plane, root) = match restored {
            Ok((took, root)) => {
                let how = format!("restored in {:.2} s", took.as_secs_f64());
                log::info!(target: "restore", "the control plane is {how}");
                ours.readiness.milestone("restored");
                (how, ControlPlane::Restored, Some(root))
            }
            Err(error) if ours.readiness.is_over() => {
                log::debug!(target: "restore", "the restore is given up: {error}");
                return None;
            }
            Err(error) => {
                let seconds = began.elapsed().as_secs_f64();
                log::info!(target: "restore", "the control plane is started, not restored, after {seconds:.2} s: {error}");
                (format!("started, not restored: {error}"), ControlPlane::Cold, None)
            }
        };
        ours.readiness.update(|state| {
            state.control_plane_note = Some(how);
            state.control_plane = control_plane;
        });
        root
    })?;
    Ok(Restore { init: init.clone(), yielding, thread })
}

impl Restore {
    /// Ends the restored programs, whose cluster is over, and leaves nothing that another restore would meet.
    pub fn end(self) -> Result<()> {
        // A thread that panics ends the process.
        if let Some(root) = self.thread.join().unwrap_or_default() {
            kill_all(&self.init, || tree::kill_if_it_runs(root));
        }
        files::remove_tree(RESTORED_DIR)
    }
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
    let held = held
        .inspect_err(|error| log::info!(target: "restore", "kubelet waits for the restore, instead of starting beside it: {error}"))
        .ok();
    Ok(Prepared { saved, stand_ins, held })
}

/// The saved state, if it can be restored here and now.
///
/// # Errors
/// It cannot, and the error is the reason.
fn saved_for(init: &Init, cluster: &Cluster) -> Result<Saved> {
    require_wanted(init.config.restore, &cluster.kubernetes_version)?;
    let saved = Saved::load(StateDir::current().restore())?.ok_or_else(|| Error::new("the image was baked without a saved state"))?;
    let used = machine::sockets().map(|socket| socket.port).collect();
    match refusal(&saved, criu::exists(), &Machine::here(), &used).or_else(|| saved.changed()) {
        Some(why) => Err(Error::new(why)),
        None => Ok(saved),
    }
}

/// `setting` is that of `KIND_RESTORE`, if there is one.
fn require_wanted(setting: Option<bool>, version: &str) -> Result<()> {
    match setting {
        Some(false) => Err(Error::new("KIND_RESTORE=0")),
        None if !versions::notices_certificates(version) => {
            Err(Error::new(format!("a running API server of Kubernetes {version} reloads its certificate only once a minute"))
                .advise("KIND_RESTORE=1 restores it all the same"))
        }
        Some(true) | None => Ok(()),
    }
}

/// Why the saved state must not be restored here, if so. `used` are the local ports of TCP sockets.
fn refusal(saved: &Saved, has_criu: bool, here: &Machine, used: &BTreeSet<u16>) -> Option<String> {
    if !has_criu {
        return Some("the image has no CRIU".into());
    }
    let taken = || saved.ports.intersection(used).next().map(|port| format!("port {port}, which the saved programs use, is in use"));
    here.lacks().or_else(|| here.differs_from(&saved.machine)).or_else(taken)
}

/// Returns how long it took, without the wait for Docker, and the programs' parent.
fn restore(init: &Arc<Init>, static_ip: Ipv4Addr, prepared: Prepared, yielding: Yielding) -> Result<(Duration, Handle)> {
    let Prepared { saved, stand_ins, held } = prepared;
    let api = Api::new(Path::new(CREDENTIALS_DIR), static_ip)?;
    let wait_for_docker = || init.readiness.poll(POLL, priority::YIELD_LIMIT, || docker_has_started(init).then_some(()));
    if yielding == Yielding::Later && wait_for_docker() == Err(NoValue::IsOver) {
        return Err(Error::new(OVER));
    }
    let began = Instant::now();
    let mut end = began + LIMIT;
    let root = saved.put_files().and_then(|()| run_criu(init, &saved, yielding, &mut end));
    // From here on whoever has connected is the restored server's client.
    drop(held);
    let look_after = |processes| owner::start(init, &stand_ins, &saved, processes);
    let restored = root.and_then(|root| {
        let handle = reaper::adopt(root);
        let owner = take_over(init, &saved, root, &api, end).and_then(look_after);
        owner.map(|()| handle).inspect_err(|_| kill_all(init, || tree::kill(root)))
    });
    if restored.is_err() {
        // Nothing of it may be left: a cold start begins with the data that the bake has left.
        directories::renew(ETCD_DIR)?;
        // Stand-ins that wait become the programs when `stand_ins` is dropped, and so does everyone who finds no socket.
        let _ = fs::remove_file(owner::socket());
    }
    restored.map(|root| (began.elapsed(), root))
}

/// Kills what was restored, and leaves no connections that a later restore would meet.
fn kill_all(init: &Init, kill: impl FnOnce()) {
    let _no_remains = held_port::without_time_wait(&init.config);
    kill();
}

/// Whether nobody has to yield to Docker any more.
fn docker_has_started(init: &Init) -> bool {
    init.readiness.has_reached(DOCKERD)
}

/// Runs CRIU. Returns the process id of the programs' parent.
fn run_criu(init: &Init, saved: &Saved, yielding: Yielding, end: &mut Instant) -> Result<i32> {
    let work = Path::new(RESTORED_DIR);
    let child = reaper::spawn(
        criu::restore(&saved::images_in(&saved.restore), work).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()),
    )?;
    let mut status = None;
    if yielding == Yielding::OnIdleCpus {
        // The programs themselves come back with the policy that they had.
        priority::lower(child.handle());
        let yields = init.readiness.poll(Duration::ZERO, priority::YIELD_LIMIT, || match docker_has_started(init) {
            true => Some(None),
            false => child.wait_timeout(POLL).map(Some),
        });
        status = yields.ok().flatten();
        if status.is_none() {
            priority::restore(child.handle());
        }
        *end = Instant::now() + LIMIT;
    }
    let status = status.or_else(|| child.wait_timeout(end.saturating_duration_since(Instant::now())));
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

/// Waits until the API server answers. Returns the programs.
fn take_over(init: &Init, saved: &Saved, root: i32, api: &Api, end: Instant) -> Result<Vec<Process>> {
    let processes = tree::find(root, saved)?;
    let left = end.saturating_duration_since(Instant::now());
    let is_ready = || api.readiness_within(ANSWER_LIMIT) == Some(200);
    match init.readiness.poll(POLL, left, || is_ready().then_some(())) {
        Ok(()) => Ok(processes),
        Err(NoValue::IsOver) => Err(Error::new(OVER)),
        Err(NoValue::Late) => Err(Error::new(format!("the restored API server has not answered after {} s", LIMIT.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::machine::tests::machine;

    fn saved() -> Saved {
        let (inputs, images) = Default::default();
        Saved {
            restore: Default::default(),
            machine: machine(),
            programs: vec![],
            ports: [2379, 40000].into(),
            inputs,
            images,
            files: vec![],
            directories: vec![],
        }
    }

    #[test]
    fn a_start_restores_unless_it_must_not_or_the_api_server_would_miss_its_certificate() {
        for (setting, version, refused) in [
            (None, "v1.36.3", None),
            (None, "v1.23.0", None),
            (None, "v1.22.17", Some("Kubernetes v1.22.17 reloads its certificate only once a minute. KIND_RESTORE=1 restores")),
            (None, "v1.20.2", Some("once a minute")),
            (None, "v2.0.0", None),
            (Some(true), "v1.20.2", None),
            (Some(false), "v1.36.3", Some("KIND_RESTORE=0")),
            (Some(false), "v1.20.2", Some("KIND_RESTORE=0")),
        ] {
            let why = require_wanted(setting, version).err().map(|error| error.to_string());
            assert_eq!(why.is_some(), refused.is_some(), "{setting:?} {version}: {why:?}");
            assert!(why.unwrap_or_default().contains(refused.unwrap_or_default()), "{setting:?} {version}");
        }
    }

    #[test]
    fn the_first_thing_that_speaks_against_a_restore_is_named() {
        let here = machine;
        let lacks = || Machine { time_namespaces: false, ..here() };
        let differs = || Machine { architecture: "aarch64".into(), ..here() };
        let none = || BTreeSet::<u16>::new();
        for (has_criu, here, used, refused) in [
            (true, here(), none(), None),
            // Somebody else's ports.
            (true, here(), [8443, 40001].into(), None),
            (false, lacks(), none(), Some("no CRIU")),
            (true, lacks(), none(), Some("time namespaces")),
            (true, differs(), [2379].into(), Some("aarch64")),
            (true, here(), [80, 40000].into(), Some("port 40000, which")),
        ] {
            let why = refusal(&saved(), has_criu, &here, &used);
            assert_eq!(why.is_some(), refused.is_some(), "{why:?}");
            assert!(why.clone().unwrap_or_default().contains(refused.unwrap_or_default()), "{why:?} is not {refused:?}");
        }
    }
}
