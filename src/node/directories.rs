//! Directories that are written often. They are on the volume or in memory instead of the image's overlay, and
//! every start begins with the contents that the bake has saved.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::{ETCD_DIR, HOSTPATH_DIR, KUBELET_DIR, POD_LOG_DIR, SEED_DIR, VOLUME_DIR};
use crate::error::Result;
use crate::files;
use crate::node::mounts;
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
                mounts::make_dir(&source)?;
                mounts::make_dir(directory.target)?;
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
/// The start's login to a registry, in kubelet's directory.
const LOGIN: &str = "config.json";

/// As `renew`, for those with what pods have left.
pub fn renew_pods() -> Result<()> {
    let login = Path::new(KUBELET_DIR).join(LOGIN);
    let kept = login.exists().then(|| files::read(&login)).transpose()?;
    [KUBELET_DIR, POD_LOG_DIR, HOSTPATH_DIR].into_iter().try_for_each(renew)?;
    kept.map_or(Ok(()), |kept| files::replace(&login, kept, 0o600))?;
    for link in fs::read_dir(POD_LOG_LINKS).into_iter().flatten().flatten() {
        if link.file_type().is_ok_and(|kind| kind.is_symlink()) {
            files::remove(link.path())?;
        }
    }
    Ok(())
}

fn unpack(directory: &Directory) -> Result<()> {
    let archive = seed_archive(directory);
    if archive.exists() {
        reaper::run(Command::new("tar").args(["--xattrs", "-x", "-f"]).arg(archive).args(["-C", directory.target]))?;
    }
    Ok(())
}

/// Saves in the image what the next start begins with. The daemons must have stopped.
pub fn save_seeds() -> Result<()> {
    for directory in &ALL {
        let copied = Path::new(SEED_DIR).join(directory.name);
        for part in directory.seed {
            let from = Path::new(directory.target).join(part);
            if from.exists() {
                mounts::make_dir(&copied)?;
                // tar detects holes by the number of blocks, and etcd has allocated all blocks of its log. cp looks for zeros.
                reaper::run(Command::new("cp").args(["-a", "--sparse=always"]).arg(&from).arg(&copied))?;
            }
        }
        if copied.exists() {
            let mut tar = Command::new("tar");
            tar.args(["--xattrs", "--sparse", "-c", "-f"]).arg(seed_archive(directory)).arg("-C").arg(&copied).arg(".");
            reaper::run(&mut tar)?;
            files::remove_tree(&copied)?;
        }
    }
    Ok(())
}

/// An archive, because an image's layers cannot have sparse files: etcd's log is 64 MB, of which 1 MB is used.
fn seed_archive(directory: &Directory) -> PathBuf {
    Path::new(SEED_DIR).join(format!("{}.tar", directory.name))
}
