//! What the bake has saved: `/kind/restore/saved.json`, and the files that it describes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{ETCD_DIR, KUBERNETES_DIR, PKI_DIR, RESTORED_DIR, RESTORE_DIR, STATIC_POD_DIR};
use crate::error::{Error, Result};
use crate::node::mounts;
use crate::restore::files::{self, Below, SavedDirectory, SavedFile};
use crate::restore::machine::Machine;
use crate::restore::PROGRAMS;

const DESCRIPTION: &str = "saved.json";
/// CRIU's images.
const IMAGES: &str = "images";
/// Signed again by every start, and read again by the API server when it changes.
const SIGNED_AT_START: [&str; 2] = ["apiserver.crt", "apiserver.names"];

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Saved {
    /// The machine that saved.
    pub machine: Machine,
    pub programs: Vec<Program>,
    /// Ports of this machine's addresses that the programs use, to listen or to be connected.
    pub ports: BTreeSet<u16>,
    /// Digests of the files that the programs have read: what they would find in them otherwise is not what they know.
    pub inputs: BTreeMap<PathBuf, u64>,
    /// CRIU's images, with their sizes.
    pub images: BTreeMap<String, u64>,
    /// The files that the programs had open for writing, etcd's data among them.
    pub files: Vec<SavedFile>,
    pub directories: Vec<SavedDirectory>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Program {
    pub name: String,
    /// The process id in the programs' own PID namespace.
    pub pid: i32,
    /// As the manifest has it, with the program's name in front.
    pub argv: Vec<String>,
    /// The length of its log when it was saved.
    pub logged: u64,
}

pub fn images_dir() -> PathBuf {
    Path::new(RESTORE_DIR).join(IMAGES)
}

/// Where a program's output goes.
pub fn log_of(name: &str) -> PathBuf {
    Path::new(RESTORED_DIR).join(format!("{name}.log"))
}

impl Saved {
    /// Reads the description. `None` in an image without a saved state.
    pub fn load() -> Result<Option<Saved>> {
        let path = Path::new(RESTORE_DIR).join(DESCRIPTION);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(Error::io("read", path, cause)),
        };
        serde_json::from_str(&text).map(Some).map_err(|cause| Error::new(format!("{} is not valid: {cause}", path.display())))
    }

    /// Describes what CRIU has just saved, and copies the files that belong to it.
    pub fn describe(machine: Machine, programs: Vec<Program>, ports: BTreeSet<u16>) -> Result<Saved> {
        let logs = PROGRAMS.map(log_of);
        let mut open = logs.to_vec();
        let Below { directories, files } = files::below(Path::new(ETCD_DIR))?;
        open.extend(files);
        Ok(Saved { machine, programs, ports, inputs: inputs()?, images: sizes(&images_dir())?, files: files::save(&open)?, directories })
    }

    /// Writes the description, which makes the state count: without it, an image has none.
    pub fn write(&self) -> Result<()> {
        let path = Path::new(RESTORE_DIR).join(DESCRIPTION);
        let text = serde_json::to_string(self).expect("strings, numbers and lists can always be written as JSON");
        fs::write(&path, text).map_err(|cause| Error::io("write", path, cause))
    }

    /// What is not as it was when the state was saved, if anything.
    pub fn changed(&self) -> Option<String> {
        let whole = sizes(&images_dir()).ok().filter(|sizes| sizes == &self.images).is_some();
        if !whole || self.files.iter().any(|file| !file.is_whole()) {
            return Some(format!("the saved state in {RESTORE_DIR} is damaged"));
        }
        let now = match inputs() {
            Ok(now) => now,
            Err(error) => return Some(error.to_string()),
        };
        difference(&self.inputs, &now).map(|path| format!("{} is not what it was when the image was baked", path.display()))
    }

    /// Puts the files where the programs have them open, as they were.
    pub fn put_files(&self) -> Result<()> {
        crate::files::clear(ETCD_DIR)?;
        self.directories.iter().try_for_each(SavedDirectory::put)?;
        self.files.iter().try_for_each(SavedFile::put)
    }
}

/// Makes the directory of the logs and of the owner's socket. It is as private as the logs of pods.
pub fn make_directory() -> Result<()> {
    mounts::make_dir(RESTORED_DIR)?;
    let private = fs::set_permissions(RESTORED_DIR, Permissions::from_mode(0o700));
    private.map_err(|cause| Error::io("make private", RESTORED_DIR, cause))
}

/// The first path that only one of both has, or that has another digest.
fn difference<'a>(before: &'a BTreeMap<PathBuf, u64>, now: &'a BTreeMap<PathBuf, u64>) -> Option<&'a PathBuf> {
    let gone = before.iter().find(|(path, digest)| now.get(*path) != Some(digest));
    gone.or_else(|| now.iter().find(|(path, _)| !before.contains_key(*path))).map(|(path, _)| path)
}

/// The digests of everything below /etc/kubernetes that the programs may have read: manifests, keys, kubeconfigs.
fn inputs() -> Result<BTreeMap<PathBuf, u64>> {
    let mut paths: Vec<PathBuf> = PROGRAMS.iter().map(|name| Path::new(STATIC_POD_DIR).join(format!("{name}.yaml"))).collect();
    paths.extend(files::below(Path::new(PKI_DIR))?.files.into_iter().filter(|path| !path.file_name().is_some_and(is_signed_at_start)));
    paths.extend(["controller-manager.conf", "scheduler.conf"].map(|name| Path::new(KUBERNETES_DIR).join(name)));
    let digest = |path: PathBuf| {
        let text = fs::read(&path).map_err(|cause| Error::io("read", &path, cause))?;
        Ok((path, files::digest(&text)))
    };
    paths.into_iter().map(digest).collect()
}

fn is_signed_at_start(name: &std::ffi::OsStr) -> bool {
    SIGNED_AT_START.iter().any(|signed| name == *signed)
}

fn sizes(directory: &Path) -> Result<BTreeMap<String, u64>> {
    let list = fs::read_dir(directory).map_err(|cause| Error::io("list", directory, cause))?;
    let size = |entry: fs::DirEntry| Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()));
    list.map(|entry| entry.and_then(size)).collect::<std::io::Result<_>>().map_err(|cause| Error::io("list", directory, cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_new_gone_or_different_is_named() {
        let files = |list: &[(&str, u64)]| list.iter().map(|(path, digest)| (PathBuf::from(path), *digest)).collect();
        let before: BTreeMap<PathBuf, u64> = files(&[("/a", 1), ("/b", 2)]);
        for (now, path) in [
            (files(&[("/a", 1), ("/b", 2)]), None),
            (files(&[("/a", 1), ("/b", 3)]), Some("/b")),
            (files(&[("/b", 2)]), Some("/a")),
            (files(&[("/a", 1), ("/b", 2), ("/c", 1)]), Some("/c")),
        ] {
            assert_eq!(difference(&before, &now), path.map(PathBuf::from).as_ref(), "{now:?}");
        }
    }
}
