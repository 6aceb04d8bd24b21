//! The image store that costs nothing to start: nothing is unpacked, the volume only points at it.
//!
//! Under `/kind/store` in the image lies containerd's root as the bake left it. A start copies its
//! two small databases and makes each snapshot and each blob a symbolic link. Read-only layers are
//! lower directories of overlayfs, which may lie on the image's own overlay; upper directories may
//! not (EINVAL) and lie on the volume.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{mount, umount, MsFlags};

use crate::config::{CONTAINERD_ROOT, DOCKER_DIR, STORE_DIR, VOLUME_DIR};
use crate::error::{Error, Result};
use crate::node::mounts::make_dir;
use crate::reaper;

/// containerd's root, as far as the image carries it.
pub const DATABASES: [&str; 2] = ["io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.overlayfs/metadata.db"];
pub const SNAPSHOTS: &str = "io.containerd.snapshotter.v1.overlayfs/snapshots";
pub const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
/// In containerd's root on the volume: whose store it is.
const STAMP: &str = "kind-bake";

/// How the volume was found.
#[derive(Debug, PartialEq)]
pub enum Volume {
    Fresh,
    /// It comes back from an earlier run of the same image, with that run's containers.
    Returned,
}

/// Makes containerd's root on the volume.
///
/// # Errors
/// The volume holds another image's store, is full, or cannot hold the upper directories of overlayfs.
pub fn prepare(bake: &str) -> Result<Volume> {
    let root = Path::new(CONTAINERD_ROOT);
    match fs::read_to_string(root.join(STAMP)) {
        Ok(stamp) if stamp.trim() == bake => {
            log::info!(target: "store", "the volume on {DOCKER_DIR} comes back from an earlier start of this image");
            return Ok(Volume::Returned);
        }
        Ok(stamp) => {
            return Err(Error::new(format!(
                "the volume on {DOCKER_DIR} holds the store of another image (bake {}, this image is bake {bake})",
                stamp.trim()
            ))
            .advise("Start the container with an empty volume, or with the image that the volume comes from"));
        }
        Err(_) => {}
    }
    // Without a stamp it was never finished: the stamp arrives with the last rename.
    remove_tree(root)?;
    let new = Path::new(VOLUME_DIR).join("containerd.new");
    remove_tree(&new)?;
    if overlay_works_from(Path::new(STORE_DIR))? {
        link(&new)?;
    } else {
        log::warn!(target: "store", "this kernel does not mount the image's layers in place: copying them, which takes longer");
        reaper::run(Command::new("cp").arg("-a").arg(STORE_DIR).arg(&new))?;
    }
    write(&new.join(STAMP), bake)?;
    fs::rename(&new, root).map_err(|cause| Error::io("rename", &new, cause))?;
    Ok(Volume::Fresh)
}

fn link(new: &Path) -> Result<()> {
    let store = Path::new(STORE_DIR);
    for database in DATABASES {
        let (from, to) = (store.join(database), new.join(database));
        make_dir(parent(&to))?;
        fs::copy(&from, &to).map_err(|cause| Error::io("copy", &from, cause))?;
    }
    for directory in [SNAPSHOTS, BLOBS] {
        let (from, to) = (store.join(directory), new.join(directory));
        make_dir(&to)?;
        for entry in read_dir(&from)? {
            let link = to.join(entry.file_name().unwrap_or_default());
            symlink(&entry, &link).map_err(|cause| Error::io("link", &link, cause))?;
        }
    }
    Ok(())
}

/// Whether overlayfs mounts with a lower directory in the image and an upper one on the volume.
///
/// # Errors
/// The volume cannot hold an upper directory at all: then nothing will work.
fn overlay_works_from(lower: &Path) -> Result<bool> {
    let probe = Path::new(VOLUME_DIR).join("probe");
    let (own, upper, work, merged) = (probe.join("lower"), probe.join("upper"), probe.join("work"), probe.join("merged"));
    for directory in [&own, &upper, &work, &merged] {
        make_dir(directory).map_err(|error| error.advise(format!("Is the volume on {DOCKER_DIR} full or read-only?")))?;
    }
    let works = overlay(lower, &upper, &work, &merged).is_ok();
    if !works {
        overlay(&own, &upper, &work, &merged).map_err(|cause| {
            Error::new(format!("overlayfs cannot write below {DOCKER_DIR}: {cause}"))
                .advise(format!("Give the container a volume there, of a common file system: docker run -v {DOCKER_DIR} ..."))
        })?;
    }
    remove_tree(&probe)?;
    Ok(works)
}

fn overlay(lower: &Path, upper: &Path, work: &Path, merged: &Path) -> nix::Result<()> {
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(Some("overlay"), merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
    umount(merged)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|cause| Error::io("write", path, cause))
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(Error::io("clear", path, cause)),
        _ => Ok(()),
    }
}

pub fn read_dir(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path).and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    entries.map_err(|cause| Error::io("list", path, cause))
}
