//! Has kubelet start the control plane's containers when they are needed.
//!
//! In a cold start the controller-manager and the scheduler begin only once the API server answers. Before that they can
//! only wait, and compete with it for the CPUs. kubelet checks once a second whether the API server knows its node, so an
//! API server that starts a little later may cost a whole second. In a restored start all four programs run already, so
//! the pods that the cluster needs are started before their containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::api::Api;
use crate::cluster::PROGRAMS;
use crate::config::{CLUSTER_LIMIT, STATIC_POD_DIR};
use crate::error::{Error, Result};
use crate::readiness::{ControlPlane, NoValue};
use crate::supervisor::Init;
use crate::threads;

/// When the containers of restored programs are started at the latest. kubelet must not miss their manifests when it first
/// looks for pods that nobody wants any more, two seconds after it has begun to start pods: with 10 s it deleted them from the
/// API server, so that nobody saw them when the cluster was ready.
const LATEST: Duration = Duration::from_millis(1700);
/// Often, so that no time is lost once the API server answers; a refused connection costs nothing.
const POLL: Duration = Duration::from_millis(50);

/// Hides the manifests of some programs from kubelet.
pub fn hide(programs: &[&str]) {
    if let Err(error) = hide_in(Path::new(STATIC_POD_DIR), programs) {
        // For example because the user has mounted a manifest.
        log::warn!(target: "boot", "kubelet starts the containers of the whole control plane at once: {error}");
    }
}

/// Undoes `hide`, even that of an earlier start that was killed.
pub fn show() -> Result<()> {
    show_in(Path::new(STATIC_POD_DIR))
}

/// Shows what is hidden when it is needed: the containers of restored programs when the other pods run, those of the
/// controllers when the API server answers.
pub fn show_when_needed(init: &Arc<Init>, api: Arc<Api>) -> Result<()> {
    let init = init.clone();
    let is_restored = init.readiness.state().control_plane == ControlPlane::Restored;
    threads::start("manifests", move || {
        // In a reset, kubelet begins to start pods only then.
        init.readiness.wait_until(|state| !state.reset.blocks_kubelet());
        let limit = if is_restored { LATEST } else { CLUSTER_LIMIT };
        let is_needed = || if is_restored { init.readiness.state().cluster_up() } else { api.readiness().is_some() };
        if init.readiness.poll(POLL, limit, || is_needed().then_some(())) != Err(NoValue::IsOver) && !init.readiness.is_over() {
            show().unwrap_or_else(|error| init.fail(&error));
        }
    })
}

fn hide_in(manifests: &Path, programs: &[&str]) -> Result<()> {
    programs.iter().try_for_each(|name| rename(shown(manifests, name), hidden(manifests, name)))
}

fn show_in(manifests: &Path) -> Result<()> {
    PROGRAMS.iter().try_for_each(|name| rename(hidden(manifests, name), shown(manifests, name)))
}

fn shown(manifests: &Path, program: &str) -> PathBuf {
    manifests.join(format!("{program}.yaml"))
}

/// kubelet ignores files whose names begin with a dot.
fn hidden(manifests: &Path, program: &str) -> PathBuf {
    manifests.join(format!(".{program}.yaml"))
}

/// Does nothing if `from` does not exist: the file already has the other name, or a user's hook has removed it.
fn rename(from: PathBuf, to: PathBuf) -> Result<()> {
    // Checked beforehand because on a read-only file system rename(2) does not fail with ENOENT.
    if !from.exists() {
        return Ok(());
    }
    fs::rename(&from, to).map_err(|cause| Error::io("rename", from, cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::CONTROLLERS;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn manifests_are_hidden_and_shown_even_after_a_start_that_was_killed() {
        let directory = std::env::temp_dir().join(format!("kind-control-plane-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        for name in PROGRAMS {
            fs::write(shown(&directory, name), name).unwrap();
        }
        let whole = names(&directory);
        let early = [".kube-controller-manager.yaml", ".kube-scheduler.yaml", "etcd.yaml", "kube-apiserver.yaml"];
        for _ in 0..2 {
            hide_in(&directory, &CONTROLLERS).unwrap();
            assert_eq!(names(&directory), early);
        }
        for _ in 0..2 {
            show_in(&directory).unwrap();
            assert_eq!(names(&directory), whole);
        }
        hide_in(&directory, &PROGRAMS).unwrap();
        assert!(names(&directory).iter().all(|name| name.starts_with('.')));
        show_in(&directory).unwrap();
        assert_eq!(names(&directory), whole);
        assert_eq!(fs::read_to_string(directory.join("kube-scheduler.yaml")).unwrap(), "kube-scheduler");
        fs::remove_dir_all(directory).unwrap();
    }
}
