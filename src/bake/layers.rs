//! Divides the store among several layers of the image. A commit makes one layer, and an engine downloads and unpacks a
//! layer from one end to the other: of several it downloads three at a time, and the next while it unpacks one. So the
//! unpacked layers of the cluster's images are put on the volume, which the first commit leaves out, and build.sh adds
//! them, one group and one commit after the other.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::config::{CONTAINERD_ROOT, STORE_DIR, VOLUME_DIR};
use crate::error::{Error, Result};
use crate::files;
use crate::node::store::SNAPSHOTS;
use crate::supervisor::reaper;

/// In `VOLUME_DIR`; build.sh knows it, too. A directory for each layer, whose contents belong into the store.
const DIRECTORY: &str = "layers";
/// How large a layer is to be (bytes): about what the programs and the saved memory take, which are in one of their own.
const SIZE: u64 = 256 << 20;
/// overlayfs and Docker allow 125 layers, and whoever builds FROM the image wants some.
const MOST: u64 = 16;

/// Moves the unpacked layers out of the store. What runs from the store must have ended.
pub fn set_apart() -> Result<()> {
    let packed = Path::new(STORE_DIR).join(SNAPSHOTS);
    let list = reaper::run(Command::new("du").args(["--summarize", "--bytes"]).args(files::list(&packed)?))?;
    let sizes = list.lines().filter_map(|line| line.split_once('\t')).filter_map(|(size, path)| Some((size.parse().ok()?, path)));
    for (number, group) in divide(sizes.collect()).into_iter().enumerate() {
        let layer = Path::new(VOLUME_DIR).join(DIRECTORY).join(number.to_string()).join(SNAPSHOTS);
        for snapshot in group {
            let name = Path::new(snapshot).file_name().unwrap_or_default();
            // The volume still has the original of the store's copy.
            let (from, to) = (Path::new(CONTAINERD_ROOT).join(SNAPSHOTS).join(name).join("fs"), layer.join(name));
            files::make_dir(&to)?;
            fs::rename(&from, to.join("fs")).map_err(|cause| Error::io("move", &from, cause))?;
            files::remove_tree(packed.join(name))?;
        }
    }
    Ok(())
}

/// Groups of about the same size.
fn divide(mut sizes: Vec<(u64, &str)>) -> Vec<Vec<&str>> {
    let total: u64 = sizes.iter().map(|(size, _)| size).sum();
    let mut groups = vec![(0, vec![]); total.div_ceil(SIZE).clamp(1, MOST) as usize];
    sizes.sort();
    for (size, name) in sizes.into_iter().rev() {
        let smallest = groups.iter_mut().min_by_key(|(sum, _)| *sum).expect("there is at least one");
        smallest.0 += size;
        smallest.1.push(name);
    }
    groups.into_iter().map(|(_, names)| names).filter(|names| !names.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_of_about_the_same_size_and_not_too_many() {
        const MB: u64 = 1 << 20;
        for (sizes, groups) in [
            (&[][..], &[][..]),
            (&[1], &[&[1][..]][..]),
            (&[100, 100, 50], &[&[100, 100, 50]]),
            // A cluster's.
            (&[2, 79, 45, 119, 107, 78, 74, 4], &[&[119, 78, 45, 4, 2], &[107, 79, 74]]),
            // What is one layer cannot be several.
            (&[900], &[&[900]]),
            (&[900, 1], &[&[900], &[1]]),
        ] {
            let names: Vec<String> = sizes.iter().map(ToString::to_string).collect();
            let found = divide(sizes.iter().zip(&names).map(|(size, name)| (size * MB, name.as_str())).collect());
            let numbers = |names: &Vec<&str>| names.iter().map(|name| name.parse().unwrap()).collect();
            assert_eq!(found.iter().map(numbers).collect::<Vec<Vec<u64>>>(), groups, "{sizes:?}");
        }
        let many = vec![(SIZE, "x"); 100];
        assert_eq!(divide(many).len() as u64, MOST);
    }
}
