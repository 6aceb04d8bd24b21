//! Says what a start does not bring back. Every start begins with the baked cluster, on purpose: whoever restarts a
//! container, or commits a running one as an image, must not believe that the cluster's objects were kept.

use std::fs;
use std::path::Path;

use crate::node::store::Volume;

/// Exists in a container whose cluster was started, and in an image committed from one. Not on the volume, which a
/// commit leaves out.
const MARK: &str = "/kind/was-started";
const TEXT: &str =
    "The cluster of this container was started. A later start, also of an image committed from it, begins with the baked cluster.\n";

/// What the log says, and whether it is a warning. Nothing at a container's first start.
fn message(volume: &Volume, was_started: bool) -> Option<(&'static str, bool)> {
    match (volume, was_started) {
        (Volume::Returned, _) => Some((
            "this start begins with the baked cluster: what an earlier start had in its cluster is gone, the images built in it are still there",
            false,
        )),
        (Volume::Fresh, true) => Some((
            "this container, or the one that its image was committed from, was started before: what it had in its cluster and in Docker is \
             not here. To keep something, bake it, or put it into /kind/manifests and /kind/images",
            true,
        )),
        (Volume::Fresh, false) => None,
    }
}

/// Must be called before `mark`.
pub fn tell(volume: &Volume) {
    match message(volume, Path::new(MARK).exists()) {
        Some((text, true)) => log::warn!(target: "cluster", "{text}"),
        Some((text, false)) => log::info!(target: "cluster", "{text}"),
        None => {}
    }
}

/// Notes that this container's cluster was started.
pub fn mark() {
    if let Err(cause) = fs::write(MARK, TEXT) {
        log::debug!(target: "cluster", "cannot write {MARK}: {cause}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_first_start_has_nothing_to_say() {
        assert_eq!(message(&Volume::Fresh, false), None);
        for (volume, was_started, is_warning, words) in [
            (Volume::Returned, true, false, "images built in it are still there"),
            // Another container of the same image had the volume before.
            (Volume::Returned, false, false, "begins with the baked cluster"),
            (Volume::Fresh, true, true, "not here"),
        ] {
            let (text, warns) = message(&volume, was_started).unwrap();
            assert!(text.contains(words) && warns == is_warning, "{text}");
        }
    }
}
