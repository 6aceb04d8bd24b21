//! The order in which the control plane starts. Four pods at once compete for the CPUs, and three of them
//! wait for the API server anyway; kubelet looks only once a second whether the API server knows its node,
//! so an API server that comes a little later costs a second. The controller-manager and the scheduler
//! begin when it answers.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const LATE: [&str; 2] = ["kube-controller-manager.yaml", "kube-scheduler.yaml"];

/// Hides what begins later from kubelet, which takes no file whose name begins with a dot.
pub fn hold_back(manifests: &Path) -> Result<()> {
    LATE.iter().try_for_each(|name| rename(manifests.join(name), hidden(manifests, name)))
}

/// Shows kubelet what was held back, in this start or in one that was killed.
pub fn let_go(manifests: &Path) -> Result<()> {
    LATE.iter().try_for_each(|name| rename(hidden(manifests, name), manifests.join(name)))
}

fn hidden(manifests: &Path, name: &str) -> PathBuf {
    manifests.join(format!(".{name}"))
}

/// One that is not there is there under the other name, or a user's hook has taken it away.
fn rename(from: PathBuf, to: PathBuf) -> Result<()> {
    // Asked first: on a file system that is read-only, the error would be another one.
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
    fn what_begins_later_is_hidden_and_comes_back_after_a_start_that_was_killed_too() {
        let directory = std::env::temp_dir().join(format!("kind-control-plane-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        for name in ["etcd.yaml", "kube-apiserver.yaml", "kube-controller-manager.yaml", "kube-scheduler.yaml"] {
            fs::write(directory.join(name), name).unwrap();
        }
        let whole = names(&directory);
        let early = [".kube-controller-manager.yaml", ".kube-scheduler.yaml", "etcd.yaml", "kube-apiserver.yaml"];
        for _ in 0..2 {
            hold_back(&directory).unwrap();
            assert_eq!(names(&directory), early);
        }
        for _ in 0..2 {
            let_go(&directory).unwrap();
            assert_eq!(names(&directory), whole);
        }
        assert_eq!(fs::read_to_string(directory.join("kube-scheduler.yaml")).unwrap(), "kube-scheduler.yaml");
        fs::remove_dir_all(directory).unwrap();
    }
}
