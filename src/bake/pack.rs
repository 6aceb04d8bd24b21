//! Moves containerd's store from the volume, which a commit leaves out, into the image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bake::bolt;
use crate::bake::images::hides_something;
use crate::config::{CONTAINERD_ROOT, STORE_DIR};
use crate::error::{Error, Result};
use crate::node::mounts;
use crate::node::store::{self, BLOBS, DATABASES, SNAPSHOTS};
use crate::supervisor::reaper;

pub fn pack() -> Result<()> {
    let (root, store) = (Path::new(CONTAINERD_ROOT), Path::new(STORE_DIR));
    for database in DATABASES {
        let to = store.join(database);
        mounts::make_dir(to.parent().unwrap_or(store))?;
        fs::copy(root.join(database), &to).map_err(|cause| Error::io("copy", &to, cause))?;
        bolt::clear_free_pages(&to)?;
    }
    copy(&store::read_dir(&root.join(BLOBS))?, &store.join(BLOBS))?;
    for snapshot in store::read_dir(&root.join(SNAPSHOTS))? {
        // overlayfs' work directory next to a layer is not part of it, and cannot be in the image.
        let layer = snapshot.join("fs");
        if hides_something(&layer) {
            return Err(Error::new(format!("{} hides files of the layers below it", layer.display())));
        }
        copy(&[layer], &store.join(SNAPSHOTS).join(snapshot.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

fn copy(from: &[PathBuf], to: &Path) -> Result<()> {
    mounts::make_dir(to)?;
    // The limits are 128 KiB for one argument and 2 MiB for all of them; a hundred paths stay far below.
    from.chunks(100).try_for_each(|some| reaper::run(Command::new("cp").args(["-a", "-t"]).arg(to).args(some)).map(drop))
}
