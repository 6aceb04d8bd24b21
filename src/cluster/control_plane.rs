//! Has kubelet start the control plane's containers when they are needed.
//!
//! In a plain start the controller-manager and the scheduler begin only once the API server answers. Before that they can
//! only wait, and compete with it for the CPUs. kubelet checks once a second whether the API server knows its node, so an
//! API server that starts a little later may cost a whole second. In a restored start all four programs run already, and
//! their containers only stand for them: so the pods that the cluster needs are started first.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The manifests of what needs the API server.
pub const CLIENTS: &[&str] = &["kube-controller-manager.yaml", "kube-scheduler.yaml"];
pub const ALL: &[&str] = &["etcd.yaml", "kube-apiserver.yaml", "kube-controller-manager.yaml", "kube-scheduler.yaml"];

/// Hides manifests: kubelet ignores files whose names begin with a dot.
pub fn hide(manifests: &Path, names: &[&str]) -> Result<()> {
    names.iter().try_for_each(|name| rename(manifests.join(name), hidden(manifests, name)))
}

/// Undoes `hide`, even that of an earlier start that was killed.
pub fn show(manifests: &Path) -> Result<()> {
    ALL.iter().try_for_each(|name| rename(hidden(manifests, name), manifests.join(name)))
}

fn hidden(manifests: &Path, name: &str) -> PathBuf {
    manifests.join(format!(".{name}"))
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
        for name in ALL {
            fs::write(directory.join(name), name).unwrap();
        }
        let whole = names(&directory);
        let early = [".kube-controller-manager.yaml", ".kube-scheduler.yaml", "etcd.yaml", "kube-apiserver.yaml"];
        for _ in 0..2 {
            hide(&directory, CLIENTS).unwrap();
            assert_eq!(names(&directory), early);
        }
        for _ in 0..2 {
            show(&directory).unwrap();
            assert_eq!(names(&directory), whole);
        }
        hide(&directory, ALL).unwrap();
        assert!(names(&directory).iter().all(|name| name.starts_with('.')));
        show(&directory).unwrap();
        assert_eq!(names(&directory), whole);
        assert_eq!(fs::read_to_string(directory.join("kube-scheduler.yaml")).unwrap(), "kube-scheduler.yaml");
        fs::remove_dir_all(directory).unwrap();
    }
}
