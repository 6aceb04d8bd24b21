//! Directories that are written often: they lie on the volume or in memory, never on the image's
//! overlay, and begin every start as the bake left them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::{ETCD_DIR, HOSTPATH_DIR, KUBELET_DIR, POD_LOG_DIR, SEED_DIR, VOLUME_DIR};
use crate::error::{Error, Result};
use crate::node::mounts;
use crate::supervisor::reaper;

struct Scratch {
    name: &'static str,
    target: &'static str,
    medium: Medium,
    /// What the bake keeps of it, relative to the target.
    seed: &'static [&'static str],
}

#[derive(PartialEq)]
enum Medium {
    Memory,
    Volume,
}

const ALL: [Scratch; 4] = [
    // etcd writes little and syncs often; a cluster that is thrown away needs no disk for it.
    Scratch { name: "etcd", target: ETCD_DIR, medium: Medium::Memory, seed: &["."] },
    // The rest of it are pods' directories, which belong to one boot.
    Scratch { name: "kubelet", target: KUBELET_DIR, medium: Medium::Volume, seed: &["config.yaml", "kubeadm-flags.env", "pki"] },
    Scratch { name: "pod-logs", target: POD_LOG_DIR, medium: Medium::Volume, seed: &[] },
    Scratch { name: "hostpath", target: HOSTPATH_DIR, medium: Medium::Volume, seed: &["."] },
];

/// Mounts every directory, empty but for what the bake kept.
pub fn mount_all() -> Result<()> {
    for scratch in &ALL {
        match scratch.medium {
            Medium::Memory => mounts::tmpfs(scratch.target, "mode=700")?,
            Medium::Volume => {
                let source = Path::new(VOLUME_DIR).join(scratch.name);
                if source.exists() {
                    fs::remove_dir_all(&source).map_err(|cause| Error::io("clear", &source, cause))?;
                }
                mounts::make_dir(&source)?;
                mounts::bind(&source, scratch.target)?;
            }
        }
        let seed = seed(scratch);
        if seed.exists() {
            reaper::run(Command::new("tar").args(["--xattrs", "-x", "-f"]).arg(seed).args(["-C", scratch.target]))?;
        }
    }
    Ok(())
}

/// Keeps in the image what the next start begins with. The daemons have stopped.
pub fn save_seeds() -> Result<()> {
    for scratch in &ALL {
        let copied = Path::new(SEED_DIR).join(scratch.name);
        for part in scratch.seed {
            let from = Path::new(scratch.target).join(part);
            if from.exists() {
                mounts::make_dir(&copied)?;
                // tar takes only those files for sparse that have fewer blocks than bytes, and etcd has reserved its log's.
                reaper::run(Command::new("cp").args(["-a", "--sparse=always"]).arg(&from).arg(&copied))?;
            }
        }
        if copied.exists() {
            let mut tar = Command::new("tar");
            tar.args(["--xattrs", "--sparse", "-c", "-f"]).arg(seed(scratch)).arg("-C").arg(&copied).arg(".");
            reaper::run(&mut tar)?;
            fs::remove_dir_all(&copied).map_err(|cause| Error::io("remove", &copied, cause))?;
        }
    }
    Ok(())
}

/// An archive, because the image's own layers know no holes: etcd's log is 64 MB, of which 1 MB is written.
fn seed(scratch: &Scratch) -> PathBuf {
    Path::new(SEED_DIR).join(format!("{}.tar", scratch.name))
}
