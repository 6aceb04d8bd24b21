//! Copies containerd's store from the volume, which a commit leaves out, into the image: of a save, what the bake has not
//! put there already.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::CONTAINERD_ROOT;
use crate::daemons::image_records;
use crate::error::{Error, Result};
use crate::files;
use crate::node::state_dir::StateDir;
use crate::node::store::{BLOBS, DATABASES, SNAPSHOTS};
use crate::save::images::hides_something;
use crate::save::{archives, bolt};
use crate::supervisor::reaper;

/// Leaves out the archives of layers that only `images` have. containerd must have stopped.
pub fn pack(state: &StateDir, images: &[String]) -> Result<()> {
    let root = Path::new(CONTAINERD_ROOT);
    let left_out = archives::unneeded(images, &image_records::load(&state.image_names())?, &root.join(BLOBS))?;
    let bytes: u64 = left_out.iter().filter_map(|name| Some(fs::metadata(root.join(BLOBS).join(name)).ok()?.len())).sum();
    if bytes > 0 {
        log::info!(target: "store", "left out the archives of Kubernetes' own images ({} MB)", bytes / 1_000_000);
    }
    pack_into(root, &state.store(), &left_out, &state.stores())
}

/// What is in one of the stores `there` already is not copied: a blob's name is its digest, and no snapshot of one store ever gets
/// another one's number.
fn pack_into(root: &Path, store: &Path, left_out: &BTreeSet<String>, there: &[PathBuf]) -> Result<()> {
    for database in DATABASES {
        let to = store.join(database);
        files::make_dir(to.parent().unwrap_or(store))?;
        fs::copy(root.join(database), &to).map_err(|cause| Error::io("copy", &to, cause))?;
        bolt::clear_free_pages(&to)?;
    }
    let is_kept = |blob: &PathBuf| blob.file_name().is_none_or(|name| !left_out.contains(&*name.to_string_lossy()));
    let blobs: Vec<PathBuf> = new_in(root, BLOBS, there)?.into_iter().filter(is_kept).collect();
    copy(&blobs, &store.join(BLOBS))?;
    files::make_dir(store.join(SNAPSHOTS))?;
    for snapshot in new_in(root, SNAPSHOTS, there)? {
        // overlayfs' work directory next to a layer is not part of it, and cannot be in the image.
        let layer = snapshot.join("fs");
        if hides_something(&layer) {
            return Err(Error::new(format!("{} hides files of the layers below it", layer.display())));
        }
        copy(&[layer], &store.join(SNAPSHOTS).join(snapshot.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

fn new_in(root: &Path, directory: &str, there: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let is_there = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        there.iter().any(|store| fs::symlink_metadata(store.join(directory).join(name)).is_ok())
    };
    Ok(files::list(root.join(directory))?.into_iter().filter(|path| !is_there(path)).collect())
}

fn copy(from: &[PathBuf], to: &Path) -> Result<()> {
    files::make_dir(to)?;
    // The limits are 128 KiB for one argument and 2 MiB for all of them; a hundred paths stay far below.
    from.chunks(100).try_for_each(|some| reaper::run(Command::new("cp").args(["-a", "-t"]).arg(to).args(some)).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::save::bolt::tests::database;

    /// A store of containerd with two blobs, one of them to be left out, and one snapshot that `layer` fills. Returns its
    /// root and the image's store.
    fn store(test: &str, layer: impl FnOnce(&Path)) -> (PathBuf, PathBuf) {
        // overlayfs, on which a container's temporary directory is, lets nobody make a whiteout.
        let directory = Path::new("/dev/shm").join(format!("kind-pack-{}-{test}", std::process::id()));
        let (root, store) = (directory.join("root"), directory.join("store"));
        let write = |path: PathBuf, bytes: &[u8]| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        DATABASES.iter().for_each(|name| write(root.join(name), &database()));
        write(root.join(BLOBS).join("aa"), b"blob");
        write(root.join(BLOBS).join("bb"), b"left out");
        // Of an earlier save.
        write(root.join(BLOBS).join("cc"), b"blob");
        write(directory.join("earlier").join(BLOBS).join("cc"), b"blob");
        write(root.join(SNAPSHOTS).join("1/fs/etc/passwd"), b"root");
        fs::create_dir_all(root.join(SNAPSHOTS).join("1/work/work")).unwrap();
        layer(&root.join(SNAPSHOTS).join("1/fs"));
        (root, store)
    }

    fn pack_and_list(test: &str, layer: impl FnOnce(&Path)) -> (Result<()>, Vec<String>) {
        let (root, store) = store(test, layer);
        let packed = reaper::beside_a_reaper(|| pack_into(&root, &store, &["bb".to_string()].into(), &[root.with_file_name("earlier")]));
        let files = ["blobs/sha256/aa", "blobs/sha256/bb", "blobs/sha256/cc", "fs/etc/passwd", "fs/link", "work"];
        let at = |name: &&str| match name.strip_prefix("blobs/sha256/") {
            Some(blob) => store.join(BLOBS).join(blob),
            None => store.join(SNAPSHOTS).join("1").join(name),
        };
        let there = files.iter().filter(|name| fs::symlink_metadata(at(name)).is_ok()).map(|name| name.to_string()).collect();
        if packed.is_ok() {
            let secret = |name| fs::read(store.join(name)).unwrap().windows(6).any(|bytes| bytes == b"secret");
            assert!(DATABASES.iter().all(|name| !secret(name)), "a free page is in the image");
        }
        fs::remove_dir_all(root.parent().unwrap()).unwrap();
        (packed, there)
    }

    #[test]
    fn the_image_gets_blobs_layers_and_databases_without_their_free_pages() {
        let (packed, there) = pack_and_list("plain", |layer| std::os::unix::fs::symlink("/nowhere", layer.join("link")).unwrap());
        packed.unwrap();
        assert_eq!(there, ["blobs/sha256/aa", "fs/etc/passwd", "fs/link"]);
    }

    #[test]
    fn a_layer_that_hides_files_below_it_is_refused() {
        let whiteout = |layer: &Path| {
            #[allow(clippy::disallowed_methods, reason = "no reaper runs in the tests")]
            let made = Command::new("mknod").arg(layer.join("etc/gone")).args(["c", "0", "0"]).status().unwrap();
            // Since Linux 5.8 this needs no privilege.
            assert!(made.success());
        };
        let (packed, _) = pack_and_list("whiteout", whiteout);
        let message = packed.unwrap_err().to_string();
        assert!(message.contains("/1/fs hides files of the layers below it"), "{message}");
    }
}
