//! Directories that are written often. They are on the volume or in memory instead of the image's overlay, and
//! every start begins with the contents that the bake, or a save, has saved.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::{ETCD_DIR, HOSTPATH_DIR, KUBELET_DIR, POD_LOG_DIR, VOLUME_DIR};
use crate::error::Result;
use crate::files;
use crate::node::mounts;
use crate::node::registry::KUBELET_LOGIN;
use crate::node::state_dir::StateDir;
use crate::supervisor::reaper;

struct Directory {
    name: &'static str,
    target: &'static str,
    medium: Medium,
    /// What the bake saves of it, relative to the target.
    seed: &'static [&'static str],
}

#[derive(PartialEq)]
enum Medium {
    Memory,
    Volume,
}

const ALL: [Directory; 4] = [
    // etcd writes little but syncs often, and a cluster that is thrown away needs nothing of it on disk.
    Directory { name: "etcd", target: ETCD_DIR, medium: Medium::Memory, seed: &["."] },
    // The rest are the directories of pods, which are of no use in another boot.
    Directory { name: "kubelet", target: KUBELET_DIR, medium: Medium::Volume, seed: &["config.yaml", "kubeadm-flags.env", "pki"] },
    Directory { name: "pod-logs", target: POD_LOG_DIR, medium: Medium::Volume, seed: &[] },
    Directory { name: "hostpath", target: HOSTPATH_DIR, medium: Medium::Volume, seed: &["."] },
];

/// Mounts every directory with what the bake has saved, and nothing else.
pub fn mount_all() -> Result<()> {
    for directory in &ALL {
        match directory.medium {
            Medium::Memory => mounts::tmpfs(directory.target, "mode=700")?,
            Medium::Volume => {
                let source = Path::new(VOLUME_DIR).join(directory.name);
                files::remove_tree(&source)?;
                files::make_dir(&source)?;
                files::make_dir(directory.target)?;
                mounts::bind(&source, directory.target)?;
            }
        }
        unpack(directory)?;
    }
    Ok(())
}

/// Gives one of the directories the contents again that the bake has saved.
pub fn renew(target: &str) -> Result<()> {
    ALL.iter().filter(|directory| directory.target == target).try_for_each(|directory| {
        mounts::unmount_below(directory.target)?;
        files::clear(directory.target)?;
        unpack(directory)
    })
}

/// kubelet's links to the logs of containers. It looks in vain for the container of each that is left.
const POD_LOG_LINKS: &str = "/var/log/containers";

/// As `renew`, for those with what pods have left. The start's login to a registry stays.
pub fn renew_pods() -> Result<()> {
    let login = Path::new(KUBELET_DIR).join(KUBELET_LOGIN);
    let kept = files::read_if_there(&login)?;
    [KUBELET_DIR, POD_LOG_DIR, HOSTPATH_DIR].into_iter().try_for_each(renew)?;
    kept.map_or(Ok(()), |kept| files::replace(&login, kept, 0o600))?;
    let links = files::list(POD_LOG_LINKS).unwrap_or_default();
    links.iter().filter(|link| link.is_symlink()).try_for_each(files::remove)
}

fn unpack(directory: &Directory) -> Result<()> {
    let archive = seed_archive(&StateDir::current(), directory);
    if archive.exists() {
        reaper::run(Command::new("tar").args(["--xattrs", "-x", "-f"]).arg(archive).args(["-C", directory.target]))?;
    }
    Ok(())
}

/// Saves what a start begins with that brings up `state`. Whoever writes there must have stopped.
pub fn save_seeds(state: &StateDir) -> Result<()> {
    for directory in &ALL {
        let copied = state.seed().join(directory.name);
        for part in directory.seed {
            let from = Path::new(directory.target).join(part);
            if from.exists() {
                files::make_dir(&copied)?;
                // tar detects holes by the number of blocks, and etcd has allocated all blocks of its log. cp looks for zeros.
                reaper::run(Command::new("cp").args(["-a", "--sparse=always"]).arg(&from).arg(&copied))?;
            }
        }
        if copied.exists() {
            let mut tar = Command::new("tar");
            tar.args(["--xattrs", "--sparse", "-c", "-f"]).arg(seed_archive(state, directory)).arg("-C").arg(&copied).arg(".");
            reaper::run(&mut tar)?;
            files::remove_tree(&copied)?;
        }
    }
    Ok(())
}

/// An archive, because an image's layers cannot have sparse files: etcd's log is 64 MB, of which 1 MB is used.
fn seed_archive(state: &StateDir, directory: &Directory) -> PathBuf {
    state.seed().join(format!("{}.tar", directory.name))
}
