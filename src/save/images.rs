//! Prepares the images in containerd's store for the commit: no layer hides anything below it, images are
//! kept when they lose their names, and the names can be restored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::config::{CONTAINERD_ROOT, RUN_DIR};
use crate::daemons::containerd::{self, ctr};
use crate::daemons::image_records;
use crate::error::{Error, Result};
use crate::files;
use crate::node::state_dir::StateDir;
use crate::node::store::SNAPSHOTS;
use crate::supervisor::reaper;
use crate::sys;

/// overlayfs: marks a directory that hides what is below it.
const OPAQUE: &std::ffi::CStr = c"trusted.overlay.opaque";
/// containerd's garbage collector skips whatever has this label.
const KEEP: &str = "containerd.io/gc.root=baked";
/// Label of an image's configuration, with the name of its snapshot.
const OWN_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.overlayfs";
/// Key prefix of the snapshots that replace others.
const FLAT: &str = "kind-flat";

/// Replaces the snapshots of each image whose layers hide files of the layers below (whiteouts, opaque directories)
/// with a single one that has all of the image's visible files. The committed image can contain neither: a device 0:0
/// would become a whiteout of its own, and a layer's tar has no `trusted.*` attributes. The blobs, and with them
/// the image's identity, stay as they are.
pub fn flatten() -> Result<()> {
    let snapshots = files::list(Path::new(CONTAINERD_ROOT).join(SNAPSHOTS))?;
    let hiding: BTreeSet<String> = snapshots
        .iter()
        .filter(|path| hides_something(&path.join("fs")))
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    if hiding.is_empty() {
        return Ok(());
    }
    let mut flat = BTreeMap::new();
    for (number, image) in containerd::images()?.iter().enumerate() {
        // containerd 2.2 and later remember where an image was mounted, and refuse that place to another one.
        let target = Path::new(RUN_DIR).join(format!("flatten-{number}"));
        flatten_image(image, &target, &hiding, &mut flat)?;
    }
    replace(&flat)?;
    log::info!(target: "store", "flattened {} images whose layers delete files of lower layers", flat.len());
    containerd::collect_garbage()
}

/// Removes the snapshots that a `flatten` has left which a kill or a full disk has ended: nothing else ever would.
pub fn remove_interrupted() -> Result<()> {
    for key in keys(&ctr(&["snapshots", "ls"])?).filter(|key| key.starts_with(FLAT)) {
        ctr(&["snapshots", "rm", key])?;
    }
    Ok(())
}

/// If an image's layers hide something, copies its visible files into a snapshot without a parent.
/// Adds the name of the image's own snapshot and that of its replacement to `flat`.
fn flatten_image(image: &str, target: &Path, hiding: &BTreeSet<String>, flat: &mut BTreeMap<String, String>) -> Result<()> {
    files::make_dir(target)?;
    let (target, view) = (target.to_string_lossy(), target.to_string_lossy());
    ctr(&["images", "mount", image, &target])?;
    let chain = parse(&ctr(&["snapshots", "info", &view])?)?["Parent"].as_str().unwrap_or_default().to_string();
    let lowers = ctr(&["snapshots", "mounts", "/mnt", &view])?;
    if !flat.contains_key(&chain) && layers(&lowers).any(|layer| hiding.contains(layer)) {
        let key = format!("{FLAT}-{}", flat.len());
        let mounts = parse(&ctr(&["snapshots", "prepare", "--mounts", &key])?)?;
        let to =
            mounts.pointer("/0/Source").and_then(Value::as_str).ok_or_else(|| Error::new(format!("ctr printed no directory for {key}")))?;
        reaper::run(Command::new("cp").arg("-a").arg(format!("{target}/.")).arg(to))?;
        flat.insert(chain, key);
    }
    ctr(&["images", "unmount", "--rm", &target]).map(drop)
}

/// The numbers of the snapshots in a mount's options, such as `lowerdir=/…/snapshots/28/fs:/…/snapshots/1/fs`.
fn layers(options: &str) -> impl Iterator<Item = &str> {
    options.split("/snapshots/").skip(1).filter_map(|rest| rest.split('/').next())
}

/// Replaces the original snapshots with the flat ones, and removes what is based on them: containers' and builds', since every
/// image on a layer that hides something is flat itself. That is left to containerd's garbage collector: when it removes the
/// snapshot of a container or of a build, it leaves its name with the parent, which containerd then refuses to remove by itself
/// ("cannot remove snapshot with child").
fn replace(flat: &BTreeMap<String, String>) -> Result<()> {
    let mut configs = vec![];
    for key in flat.keys() {
        let list = ctr(&["content", "ls", "--quiet", &format!("labels.\"{OWN_SNAPSHOT}\"==\"{key}\"")])?;
        configs.extend(list.lines().map(|config| (config.to_string(), key)));
    }
    let refer = |config: &str, key: &str| ctr(&["content", "label", config, &format!("{OWN_SNAPSHOT}={key}")]).map(drop);
    configs.iter().try_for_each(|(config, _)| refer(config, ""))?;
    containerd::run_garbage_collector()?;
    let list = ctr(&["snapshots", "ls"])?;
    if let Some(left) = keys(&list).find(|key| flat.contains_key(*key)) {
        return Err(Error::new(format!("containerd keeps the snapshot {left}, though no image refers to it")));
    }
    flat.iter().try_for_each(|(chain, key)| ctr(&["snapshots", "commit", chain, key]).map(drop))?;
    configs.iter().try_for_each(|(config, key)| refer(config, key))
}

/// The names of snapshots, given what `ctr snapshots ls` prints.
fn keys(list: &str) -> impl Iterator<Item = &str> {
    list.lines().skip(1).filter_map(|line| line.split_whitespace().next())
}

/// Whether a layer has a whiteout or an opaque directory.
pub fn hides_something(path: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    if metadata.file_type().is_char_device() {
        return metadata.rdev() == 0;
    }
    let entries = || files::list(path).unwrap_or_default();
    metadata.is_dir() && (sys::has_attribute(path, OPAQUE) || entries().iter().any(|entry| hides_something(entry)))
}

/// Keeps the images' content when they lose their names. It is in the committed image, so deleting it saves no space.
pub fn keep() -> Result<()> {
    for digest in ctr(&["content", "ls", "--quiet"])?.lines() {
        ctr(&["content", "label", digest, KEEP])?;
    }
    for key in keys(&ctr(&["snapshots", "ls"])?) {
        ctr(&["snapshots", "label", key, KEEP])?;
    }
    Ok(())
}

/// Records the images' names and what each refers to.
pub fn save_names(state: &StateDir) -> Result<()> {
    image_records::save(&state.image_names(), &image_records::list()?)
}

fn parse(json: &str) -> Result<Value> {
    serde_json::from_str(json).map_err(|cause| Error::new(format!("ctr did not print JSON: {cause}: {json}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_found_in_a_mounts_options() {
        let options = "mount -t overlay overlay /mnt -o index=off,lowerdir=/r/snapshots/28/fs:/r/snapshots/1/fs";
        assert_eq!(layers(options).collect::<Vec<_>>(), ["28", "1"]);
        assert_eq!(layers("mount -t bind /r/snapshots/7/fs /mnt -o ro,rbind").collect::<Vec<_>>(), ["7"]);
        assert_eq!(layers("").count(), 0);
    }

    #[test]
    fn the_names_of_snapshots_are_read_from_their_list() {
        assert_eq!(keys("KEY PARENT KIND\nd c Active\na Committed\n").collect::<Vec<_>>(), ["d", "a"]);
    }
}
