//! What the bake, or a save, has saved of the control plane: `restore/saved.json`, and the files that it describes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cluster::PROGRAMS;
use crate::config::{ETCD_DIR, KUBERNETES_DIR, PKI_DIR, RESTORED_DIR, STATIC_POD_DIR};
use crate::error::{Error, Result};
use crate::restore::files::{self, Below, SavedDirectory, SavedFile};
use crate::restore::machine::Machine;

const DESCRIPTION: &str = "saved.json";
/// CRIU's images.
const IMAGES: &str = "images";
/// Signed again by every start, and read again by the API server when it changes.
const SIGNED_AT_START: [&str; 2] = ["apiserver.crt", "apiserver.names"];

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Saved {
    /// Where it is.
    #[serde(skip)]
    pub restore: PathBuf,
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
    /// How it was started, for the next save.
    pub start: Start,
    /// The length of its log when it was saved.
    pub logged: u64,
}

/// What to start, as the process above the programs (`parent`) gets it on its command line, in JSON.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Start {
    pub name: String,
    pub executable: PathBuf,
    /// As the manifest has it, with the program's name in front.
    pub argv: Vec<String>,
    pub environment: Vec<(String, String)>,
}

/// CRIU's images, in the directory `restore`.
pub fn images_in(restore: &Path) -> PathBuf {
    restore.join(IMAGES)
}

/// Where a program's output goes.
pub fn log_of(name: &str) -> PathBuf {
    Path::new(RESTORED_DIR).join(format!("{name}.log"))
}

impl Saved {
    /// Reads the description in the directory `restore`. `None` if there is no saved state.
    pub fn load(restore: PathBuf) -> Result<Option<Saved>> {
        let path = restore.join(DESCRIPTION);
        let Some(text) = crate::files::read_if_there(&path)? else { return Ok(None) };
        let saved: serde_json::Result<Saved> = serde_json::from_str(&text);
        let saved = saved.map_err(|cause| Error::new(format!("{} is not valid: {cause}", path.display())))?;
        Ok(Some(Saved { restore, ..saved }))
    }

    /// Describes what CRIU has just saved, and copies the files that belong to it.
    pub fn describe(restore: &Path, machine: Machine, programs: Vec<Program>, ports: BTreeSet<u16>) -> Result<Saved> {
        let logs = PROGRAMS.map(log_of);
        let mut open = logs.to_vec();
        let Below { mut directories, files } = files::below(Path::new(ETCD_DIR))?;
        directories.push(SavedDirectory::root()?);
        open.extend(files);
        let (images, files) = (sizes(&images_in(restore))?, files::save(restore, &open)?);
        Ok(Saved { restore: restore.to_path_buf(), machine, programs, ports, inputs: inputs()?, images, files, directories })
    }

    /// Writes the description, which makes the state count: without it, there is none.
    pub fn write(&self) -> Result<()> {
        let path = self.restore.join(DESCRIPTION);
        let text = serde_json::to_string(self).expect("strings, numbers and lists can always be written as JSON");
        crate::files::write(path, text)
    }

    /// What is not as it was when the state was saved, if anything.
    pub fn changed(&self) -> Option<String> {
        let whole = sizes(&images_in(&self.restore)).ok().filter(|sizes| sizes == &self.images).is_some();
        if !whole || self.files.iter().any(|file| !file.is_whole(&self.restore)) {
            return Some(format!("the saved state in {} is damaged", self.restore.display()));
        }
        self.changed_input()
    }

    /// Which of the files that the programs have read is another one now, if any.
    pub fn changed_input(&self) -> Option<String> {
        let now = match inputs() {
            Ok(now) => now,
            Err(error) => return Some(error.to_string()),
        };
        difference(&self.inputs, &now).map(|path| format!("{} is not what it was when the cluster was saved", path.display()))
    }

    /// Puts the files where the programs have them open, as they were.
    pub fn put_files(&self) -> Result<()> {
        crate::files::clear(ETCD_DIR)?;
        self.directories.iter().try_for_each(SavedDirectory::put)?;
        self.files.iter().try_for_each(|file| file.put(&self.restore))
    }
}

/// Makes the directory of the logs and of the owner's socket. It is as private as the logs of pods.
pub fn make_directory() -> Result<()> {
    crate::files::make_dir(RESTORED_DIR)?;
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
        Ok((path, crate::files::digest(&text)))
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
