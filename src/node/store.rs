//! The image store, which takes no time to start: nothing is unpacked, and the volume only links to it.
//!
//! `/kind/store` in the image is containerd's root as the bake left it, without some archives of layers
//! (`save::archives`). A start copies its two small databases and creates a symbolic link for each snapshot and each
//! blob. Read-only layers are lower directories of overlayfs, which may be on the image's own overlay. Upper directories
//! may not (EINVAL), and are on the volume.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use nix::mount::{mount, umount, MsFlags};
use nix::sys::statvfs::statvfs;

use crate::config::{CONTAINERD_ROOT, DOCKER_DIR, STORE_DIR, VOLUME_DIR};
use crate::error::{Error, Result};
use crate::files;
use crate::files::make_dir;
use crate::node::state_dir::{self, StateDir};
use crate::supervisor::reaper;

/// The parts of containerd's root that are in the image.
pub const DATABASES: [&str; 2] = ["io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.overlayfs/metadata.db"];
pub const SNAPSHOTS: &str = "io.containerd.snapshotter.v1.overlayfs/snapshots";
pub const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
/// What a meta page of bbolt's begins with, after the page's header (bytes). (Format: bbolt's page.go and meta.go.)
pub const BOLT_MAGIC: u32 = 0xED0C_DAED;
pub const BOLT_PAGE_HEADER: usize = 16;
/// In containerd's root on the volume: the bake that the store is from, and the saves whose images it has, one a line.
const STAMP: &str = "kind-bake";
/// Exists in a container whose cluster was started, and in an image committed from one. Not on the volume, which a
/// commit leaves out.
const MARK: &str = "/kind/was-started";
/// Required free space on the volume (bytes): a boot writes about 6 MiB (measured), pods and builds more.
const MIN_ROOM: u64 = 64 << 20;
/// Required free inodes: a boot creates about 700 files (measured).
const MIN_INODES: u64 = 2048;

/// The state of the volume.
#[derive(Debug, PartialEq)]
pub enum Volume {
    Fresh,
    /// From an earlier run of the same image, with that run's containers.
    Returned,
}

/// Locks the volume for this container alone, until this process ends, however that happens: two stores
/// on one volume would remove each other's pods. The lock is on the directory itself (flock(2)), because a lock file
/// would be written before we know whose volume it is. Children do not inherit the lock.
///
/// # Errors
/// Another container has locked it.
pub fn lock(directory: &Path) -> Result<()> {
    let file = match File::open(directory) {
        Ok(file) => file,
        // A directory that does not exist yet is not a volume, and nobody else uses it.
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(Error::io("open", directory, cause)),
    };
    // Never unlocked, because the daemons may use the volume as long as this process lives.
    match files::lock(file) {
        Ok(true) => {}
        Ok(false) => {
            return Err(Error::new(format!("the volume on {} is in use by another container", directory.display()))
                .advise("Give each container a volume of its own, or stop the other one first"))
        }
        // Some network file systems do not support locks.
        Err(cause) => {
            log::warn!(target: "store", "cannot lock {}: {cause}; no other container may use this volume at the same time", directory.display());
        }
    }
    Ok(())
}

/// What the stamp says. Empty on a volume without a store: the stamp arrives with the last rename.
fn stamp() -> Vec<String> {
    let text = fs::read_to_string(Path::new(CONTAINERD_ROOT).join(STAMP)).unwrap_or_default();
    text.lines().map(|line| line.trim().to_string()).filter(|line| !line.is_empty()).collect()
}

/// Notes that the store on the volume has the images of a save.
pub fn add_to_stamp(name: &str) -> Result<()> {
    let all = [stamp(), vec![name.to_string()]].concat().join("\n");
    files::replace(Path::new(CONTAINERD_ROOT).join(STAMP), all, 0o644)
}

/// What this container begins with below `root`. A save counts only with the images that its pods run: they are in it, or on the volume
/// that it was made with.
pub fn choose_state(root: &Path) -> Result<StateDir> {
    let state = StateDir::current_in(root);
    let Some(name) = state.name() else { return Ok(state) };
    let of_image = state.of_image();
    if of_image == state || stamp().iter().any(|line| line == name) {
        state_dir::remove_others()?;
        return Ok(state);
    }
    log::warn!(
        target: "cluster",
        "this image was committed from a container whose cluster was saved without --stop: the images that its pods run are not here. This \
         start begins with the cluster that was in the image before. Before docker commit, use `kind save --stop`"
    );
    of_image.make_current()?;
    Ok(of_image)
}

/// Checks the volume before anything is written to it.
///
/// # Errors
/// The volume contains another image's store or a damaged one, or is full or read-only.
pub fn inspect(state: &StateDir, bake: &str) -> Result<Volume> {
    let (root, stamp) = (Path::new(CONTAINERD_ROOT), stamp());
    let volume = match stamp.as_slice() {
        [] => Volume::Fresh,
        lines if lines.iter().any(|line| line == bake) => Volume::Returned,
        lines => {
            let stamp = lines.join(", ");
            return Err(Error::new(format!(
                "the volume on {DOCKER_DIR} holds the store of another image (bake {stamp}, this image is bake {bake})"
            ))
            .advise("Start the container with an empty volume, or with the image that the volume comes from"));
        }
    };
    require_room()?;
    if volume == Volume::Returned {
        DATABASES.iter().try_for_each(|database| require_database(&root.join(database)))?;
    }
    log_what_is_not_kept(&volume, state);
    Ok(volume)
}

/// Every start begins with the baked cluster, or the saved one, on purpose: whoever restarts a container, or commits a running
/// one as an image, must not believe that the cluster's objects were kept.
fn log_what_is_not_kept(volume: &Volume, state: &StateDir) {
    match volume {
        _ if state.is_saved() => log::info!(target: "cluster", "this start begins with the cluster as it was saved"),
        Volume::Returned => log::info!(
            target: "cluster",
            "the volume on {DOCKER_DIR} comes back from an earlier start of this image: this start begins with the baked cluster, and with \
             the images that were built"
        ),
        Volume::Fresh if Path::new(MARK).exists() => log::warn!(
            target: "cluster",
            "this container, or the one that its image was committed from, was started before: what it had in its cluster and in Docker is \
             not here. To keep something, use `kind save --stop` before docker commit, bake it, or put it into /kind/manifests and /kind/images"
        ),
        Volume::Fresh => {}
    }
    if let Err(error) = files::write(MARK, "") {
        log::debug!(target: "cluster", "{error}");
    }
}

/// What the image of this container is to say of its starts so far: nothing.
pub fn forget_starts() -> Result<()> {
    files::remove(MARK)
}

fn require_room() -> Result<()> {
    let advice = "Give the container a volume there that can be written and has room: docker run -v /var/lib/docker ...";
    make_dir(VOLUME_DIR).map_err(|error| error.advise(advice))?;
    let probe = Path::new(VOLUME_DIR).join("writable");
    fs::write(&probe, "").and_then(|()| fs::remove_file(&probe)).map_err(|cause| Error::io("write", &probe, cause).advise(advice))?;
    match lack_of_room(Path::new(VOLUME_DIR))? {
        Some(why) => Err(Error::new(why).advise(advice)),
        None => Ok(()),
    }
}

/// Says so if the volume that has this directory is full.
pub fn lack_of_room(directory: &Path) -> Result<Option<String>> {
    let room = statvfs(directory).map_err(|cause| Error::io("check the free space of", directory, cause))?;
    let (free, inodes) = (room.blocks_available() as u64 * room.fragment_size() as u64, room.files_available() as u64);
    // Some file systems, such as btrfs, do not count inodes.
    let is_full = free < MIN_ROOM || (room.files() > 0 && inodes < MIN_INODES);
    Ok(is_full.then(|| format!("the volume on {DOCKER_DIR} is full: {} MiB and {inodes} inodes are free", free / (1 << 20))))
}

/// bbolt would turn an empty file into a new database, without the baked images, and loop on a damaged one.
fn require_database(path: &Path) -> Result<()> {
    let mut begin = [0; BOLT_PAGE_HEADER + BOLT_MAGIC.to_le_bytes().len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    match read {
        Ok(()) if begin.ends_with(&BOLT_MAGIC.to_le_bytes()) => Ok(()),
        result => {
            let why = result.err().map_or("it is not a database".to_string(), |cause| cause.to_string());
            Err(Error::new(format!("the volume on {DOCKER_DIR} is damaged: {}: {why}", path.display()))
                .advise("Start the container with an empty volume"))
        }
    }
}

/// Creates containerd's root on a fresh volume, for the bakes and saves of these names.
///
/// # Errors
/// The volume has become full, or cannot hold the upper directories of overlayfs.
pub fn make(state: &StateDir, names: &[String]) -> Result<()> {
    let root = Path::new(CONTAINERD_ROOT);
    files::remove_tree(root)?;
    let new = Path::new(VOLUME_DIR).join("containerd.new");
    files::remove_tree(&new)?;
    if overlay_works_from(Path::new(STORE_DIR))? {
        link(state, &new)?;
    } else {
        log::warn!(target: "store", "this kernel does not mount the image's layers in place: copying them, which takes longer");
        make_dir(&new)?;
        for store in state.stores() {
            reaper::run(Command::new("cp").arg("-a").arg(store.join(".")).arg(&new))?;
        }
    }
    files::write(new.join(STAMP), names.join("\n"))?;
    fs::rename(&new, root).map_err(|cause| Error::io("rename", &new, cause))
}

fn link(state: &StateDir, new: &Path) -> Result<()> {
    for store in state.stores() {
        for database in DATABASES {
            let (from, to) = (store.join(database), new.join(database));
            make_dir(parent(&to))?;
            fs::copy(&from, &to).map_err(|cause| Error::io("copy", &from, cause))?;
        }
        for directory in [SNAPSHOTS, BLOBS] {
            let (from, to) = (store.join(directory), new.join(directory));
            make_dir(&to)?;
            for entry in files::list(&from)? {
                let link = to.join(entry.file_name().unwrap_or_default());
                symlink(&entry, &link).map_err(|cause| Error::io("link", &link, cause))?;
            }
        }
    }
    Ok(())
}

/// Whether overlayfs can be mounted with a lower directory in the image and an upper one on the volume.
///
/// # Errors
/// The volume cannot hold an upper directory at all, so nothing would work.
fn overlay_works_from(lower: &Path) -> Result<bool> {
    let probe = Path::new(VOLUME_DIR).join("probe");
    let (own, upper, work, merged) = (probe.join("lower"), probe.join("upper"), probe.join("work"), probe.join("merged"));
    for directory in [&own, &upper, &work, &merged] {
        make_dir(directory)?;
    }
    let works = overlay(lower, &upper, &work, &merged).is_ok();
    if !works {
        overlay(&own, &upper, &work, &merged).map_err(|cause| {
            Error::new(format!("overlayfs cannot write below {DOCKER_DIR}: {cause}"))
                .advise(format!("Give the container a volume there, of a common file system: docker run -v {DOCKER_DIR} ..."))
        })?;
    }
    files::remove_tree(&probe)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_taken_once_and_what_is_not_there_is_no_volume() {
        let directory = std::env::temp_dir().join(format!("kind-store-{}", std::process::id()));
        lock(&directory).unwrap();
        assert!(!directory.exists(), "nothing is written");
        fs::create_dir(&directory).unwrap();
        lock(&directory).unwrap();
        // The same as from another process: the lock belongs to the open file, not to the process.
        let refused = lock(&directory).unwrap_err().to_string();
        assert!(refused.contains(&format!("the volume on {} is in use by another container", directory.display())), "{refused}");
        fs::remove_dir(&directory).unwrap();
    }
}
