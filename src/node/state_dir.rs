//! Where the cluster is that a start or a reset brings up: in the image, as it was baked, or as it was saved since
//! (`kind save`). Each save has a directory of its own, and a link says which of them counts: so a save that is killed
//! changes nothing. (What came with the image cannot be renamed on overlayfs, but a link can be replaced.) All of it is in
//! the container's own layer, which `docker commit` takes along, and not on the volume.
//!
//! A packed save (`--stop`) has the part of containerd's store that neither the bake nor an earlier packed one has. Volumes
//! link to them, so those that the current save builds on stay. The last of them is what the image has of its own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::{CLUSTER_FILE, CURRENT_STATE, SAVED_STATES};
use crate::error::{Error, Result};
use crate::files::{self, below};

/// In a save: the names of the packed ones.
const PACKED: &str = "packed";

#[derive(Clone, Debug, PartialEq)]
pub struct StateDir(PathBuf);

impl StateDir {
    pub fn baked() -> StateDir {
        StateDir::baked_in(Path::new("/"))
    }

    fn baked_in(root: &Path) -> StateDir {
        StateDir(below(root, CLUSTER_FILE).parent().unwrap_or(root).to_path_buf())
    }

    /// What a start or a reset brings up.
    pub fn current() -> StateDir {
        StateDir::current_in(Path::new("/"))
    }

    /// The same below a root that tests set.
    pub fn current_in(root: &Path) -> StateDir {
        match fs::read_link(below(root, CURRENT_STATE)) {
            Ok(name) => StateDir(below(root, SAVED_STATES).join(name)),
            Err(_) => StateDir::baked_in(root),
        }
    }

    /// A new one, which does not count yet. A packed one is to have its own part of the store.
    pub fn create(name: &str, is_packed: bool) -> Result<StateDir> {
        let state = StateDir(Path::new(SAVED_STATES).join(name));
        files::make_dir(&state.0)?;
        let packed = StateDir::current().packed();
        let names = packed.iter().filter_map(StateDir::name).chain(is_packed.then_some(name));
        files::write(state.0.join(PACKED), names.collect::<Vec<_>>().join("\n"))?;
        Ok(state)
    }

    /// The packed saves that this one builds on, the oldest first. It is the last of them itself if it is packed.
    pub fn packed(&self) -> Vec<StateDir> {
        let text = self.name().and_then(|_| fs::read_to_string(self.0.join(PACKED)).ok()).unwrap_or_default();
        text.lines().map(|name| StateDir(self.0.with_file_name(name))).collect()
    }

    /// What the image has of its own: the last packed save, or the bake.
    pub fn of_image(&self) -> StateDir {
        self.packed().pop().unwrap_or_else(StateDir::baked)
    }

    /// The stores that this one needs, the oldest first: the last has the newest databases.
    pub fn stores(&self) -> Vec<PathBuf> {
        let packed = self.packed();
        Some(StateDir::baked()).iter().chain(&packed).map(StateDir::store).collect()
    }

    /// Makes it count, and removes what is no longer needed.
    pub fn make_current(&self) -> Result<()> {
        let Some(name) = self.name() else {
            files::remove(CURRENT_STATE)?;
            return remove_others();
        };
        self.write_to_disk()?;
        files::link(name, CURRENT_STATE)?;
        remove_others()
    }

    /// A start that finds the control plane's files damaged, because the machine has lost power, does without them. It cannot
    /// do without the rest.
    fn write_to_disk(&self) -> Result<()> {
        for directory in [&self.0, &self.seed()] {
            for path in files::list(directory)?.iter().filter(|path| path.is_file()) {
                fs::File::open(path).and_then(|file| file.sync_all()).map_err(|cause| Error::io("write to the disk", path, cause))?;
            }
        }
        Ok(())
    }

    /// Whether it is of a save. The baked one has no name.
    pub fn is_saved(&self) -> bool {
        self.name().is_some()
    }

    /// The name of a save, by which a volume knows it.
    pub fn name(&self) -> Option<&str> {
        let is_saved = self.0.parent().is_some_and(|parent| parent.ends_with(SAVED_STATES.trim_start_matches('/')));
        self.0.file_name().filter(|_| is_saved)?.to_str()
    }

    pub fn cluster_file(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    /// Its part of containerd's store.
    pub fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    /// The names of the images, as containerd lists them.
    pub fn image_names(&self) -> PathBuf {
        self.0.join("image-names")
    }

    /// The contents of the node's directories.
    pub fn seed(&self) -> PathBuf {
        self.0.join("seed")
    }

    /// The saved control plane (`restore`).
    pub fn restore(&self) -> PathBuf {
        self.0.join("restore")
    }
}

/// Removes the saves that are not needed, such as one that was killed.
pub fn remove_others() -> Result<()> {
    let current = StateDir::current();
    let needed: Vec<PathBuf> = current.packed().into_iter().chain([current]).map(|state| state.0).chain([CURRENT_STATE.into()]).collect();
    let all = files::list(SAVED_STATES).unwrap_or_default();
    all.iter().filter(|path| !needed.contains(path)).try_for_each(files::remove_any)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::STORE_DIR;

    #[test]
    fn the_link_says_what_counts() {
        let root = std::env::temp_dir().join(format!("kind-state-{}", std::process::id()));
        let saved = below(&root, SAVED_STATES);
        fs::create_dir_all(saved.join("a1")).unwrap();
        let baked = StateDir::current_in(&root);
        assert_eq!((baked.cluster_file(), baked.is_saved()), (below(&root, CLUSTER_FILE), false));
        files::link("a1", below(&root, CURRENT_STATE)).unwrap();
        let state = StateDir::current_in(&root);
        assert_eq!((state.name(), state.cluster_file()), (Some("a1"), saved.join("a1/cluster.json")));
        assert_eq!(state.of_image(), StateDir::baked());
        // One that is not packed itself, in an image of a packed one.
        fs::write(saved.join("a1").join(PACKED), "b1\nb2").unwrap();
        let packed = [saved.join("b1"), saved.join("b2")].map(StateDir);
        assert_eq!((state.packed(), state.of_image()), (packed.to_vec(), packed[1].clone()));
        assert_eq!(state.stores(), [Path::new(STORE_DIR), &saved.join("b1/store"), &saved.join("b2/store")]);
        fs::remove_dir_all(&root).unwrap();
    }
}
