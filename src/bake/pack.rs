//! Moves containerd's store from the volume, which a commit leaves out, into the image.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::{CONTAINERD_ROOT, STORE_DIR};
use crate::error::{Error, Result};
use crate::node::mounts;
use crate::node::store::{BLOBS, DATABASES, PACKED, SNAPSHOTS};
use crate::{reaper, sys};

/// overlayfs: a directory that hides what lies below it.
const OPAQUE: &std::ffi::CStr = c"trusted.overlay.opaque";

pub fn pack() -> Result<()> {
    let (root, store) = (Path::new(CONTAINERD_ROOT), Path::new(STORE_DIR));
    for database in DATABASES {
        let to = store.join(database);
        mounts::make_dir(to.parent().unwrap_or(store))?;
        fs::copy(root.join(database), &to).map_err(|cause| Error::io("copy", &to, cause))?;
    }
    copy(&list(&root.join(BLOBS))?, &store.join(BLOBS))?;
    let (hiding, plain): (Vec<_>, Vec<_>) =
        list(&root.join(SNAPSHOTS))?.into_iter().partition(|snapshot| hides_something(&snapshot.join("fs")));
    for snapshot in &plain {
        // What overlayfs worked in beside a layer is no part of it, and cannot lie in the image.
        copy(&[snapshot.join("fs")], &store.join(SNAPSHOTS).join(snapshot.file_name().unwrap_or_default()))?;
    }
    if !hiding.is_empty() {
        log::info!(target: "store", "{} of {} layers delete files of the layers below: they are unpacked at each start", hiding.len(), hiding.len() + plain.len());
        mounts::make_dir(store.join(PACKED))?;
    }
    for snapshot in hiding {
        let name = snapshot.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let tar = store.join(PACKED).join(format!("{name}.tar"));
        reaper::run(
            Command::new("tar")
                .args(["-c", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-f"])
                .arg(tar)
                .arg("-C")
                .arg(&snapshot)
                .arg("."),
        )?;
    }
    Ok(())
}

/// Whether a layer has a whiteout or an opaque directory: the image's own overlay would take it for
/// its own (a device 0:0), or lose it (a layer's tar keeps no `trusted.*` attributes).
fn hides_something(path: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    if metadata.file_type().is_char_device() {
        return metadata.rdev() == 0;
    }
    metadata.is_dir() && (sys::has_attribute(path, OPAQUE) || list(path).unwrap_or_default().iter().any(|entry| hides_something(entry)))
}

fn copy(from: &[PathBuf], to: &Path) -> Result<()> {
    mounts::make_dir(to)?;
    // Argument lists have a limit of 128 KiB for each and 2 MiB in all: a hundred paths are far below.
    from.chunks(100).try_for_each(|some| reaper::run(Command::new("cp").args(["-a", "-t"]).arg(to).args(some)).map(drop))
}

fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    entries.map_err(|cause| Error::io("list", directory, cause))
}
