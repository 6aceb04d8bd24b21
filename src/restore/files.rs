//! Files that the programs had open when they were saved. CRIU opens them again, and refuses one of another size; so
//! every start gets them as they were, and what an earlier start of the same container has written is gone.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;

const COPIES: &str = "files";

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SavedFile {
    path: PathBuf,
    /// The copy's name. It ends with the last byte that is not 0: an image's layers cannot have sparse files, and etcd's
    /// log is 64 MB of which 1 MB is used.
    copy: String,
    length: u64,
    digest: u64,
    /// The length of the file itself, in which zeros follow.
    size: u64,
    mode: u32,
}

/// A directory that the programs had open, or in which they had files.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SavedDirectory {
    path: PathBuf,
    mode: u32,
}

impl SavedDirectory {
    /// The root directory, which each program has open. CRIU compares its mode, which is the engine's choice: 0755 with
    /// Docker, 0555 with podman.
    pub fn root() -> Result<SavedDirectory> {
        let path = Path::new("/");
        let metadata = fs::metadata(path).map_err(|cause| Error::io("read", path, cause))?;
        Ok(SavedDirectory { path: path.into(), mode: metadata.mode() & 0o7777 })
    }

    pub fn put(&self) -> Result<()> {
        files::make_dir(&self.path)?;
        if fs::metadata(&self.path).is_ok_and(|metadata| metadata.mode() & 0o7777 == self.mode) {
            return Ok(());
        }
        let set = fs::set_permissions(&self.path, Permissions::from_mode(self.mode));
        set.map_err(|cause| Error::io("change the mode of", &self.path, cause))
    }
}

/// Copies files into `restore`.
pub fn save(restore: &Path, paths: &[PathBuf]) -> Result<Vec<SavedFile>> {
    let directory = restore.join(COPIES);
    files::make_dir(&directory)?;
    let save = |(number, path): (usize, &PathBuf)| {
        let (mut bytes, metadata) =
            fs::read(path).and_then(|bytes| Ok((bytes, fs::metadata(path)?))).map_err(|cause| Error::io("read", path, cause))?;
        let size = bytes.len() as u64;
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        let copy = number.to_string();
        files::write(directory.join(&copy), &bytes)?;
        let mode = metadata.mode() & 0o7777;
        Ok(SavedFile { path: path.clone(), copy, length: bytes.len() as u64, digest: files::digest(&bytes), size, mode })
    };
    paths.iter().enumerate().map(save).collect()
}

impl SavedFile {
    fn copy_in(&self, restore: &Path) -> PathBuf {
        restore.join(COPIES).join(&self.copy)
    }

    pub fn is_whole(&self, restore: &Path) -> bool {
        fs::read(self.copy_in(restore)).is_ok_and(|bytes| bytes.len() as u64 == self.length && files::digest(&bytes) == self.digest)
    }

    /// Writes the file as it was saved.
    pub fn put(&self, restore: &Path) -> Result<()> {
        let put = || {
            let mut bytes = Vec::new();
            File::open(self.copy_in(restore))?.read_to_end(&mut bytes)?;
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(self.mode).open(&self.path)?;
            // The process's own mask may have taken some of it.
            file.set_permissions(Permissions::from_mode(self.mode))?;
            file.write_all(&bytes)?;
            file.set_len(self.size)
        };
        put().map_err(|cause: io::Error| Error::io("write", &self.path, cause))
    }
}

/// Everything below a directory, each directory before what is in it.
#[derive(Default)]
pub struct Below {
    pub directories: Vec<SavedDirectory>,
    /// Regular files.
    pub files: Vec<PathBuf>,
}

pub fn below(directory: &Path) -> Result<Below> {
    let mut below = Below::default();
    collect(directory, &mut below).map_err(|cause| Error::io("list", directory, cause))?;
    below.files.sort();
    Ok(below)
}

fn collect(directory: &Path, below: &mut Below) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let (entry, path) = entry.map(|entry| (entry.metadata(), entry.path()))?;
        let entry = entry?;
        if entry.is_dir() {
            below.directories.push(SavedDirectory { path: path.clone(), mode: entry.mode() & 0o7777 });
            collect(&path, below)?;
        } else if entry.is_file() {
            below.files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_there_gets_the_mode_that_it_had_when_it_was_saved() {
        let directory = std::env::temp_dir().join(format!("kind-directory-{}", std::process::id()));
        let mode = || fs::metadata(&directory).unwrap().mode() & 0o7777;
        let saved = SavedDirectory { path: directory.clone(), mode: 0o750 };
        saved.put().unwrap();
        assert_eq!(mode(), 0o750);
        fs::set_permissions(&directory, Permissions::from_mode(0o555)).unwrap();
        saved.put().unwrap();
        assert_eq!(mode(), 0o750);
        fs::remove_dir(&directory).unwrap();
    }
}
