//! Reads, writes and removes files, with errors that name them.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{symlink, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};

/// A path of the node below `root`, which tests set.
pub fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

pub fn read(path: impl AsRef<Path>) -> Result<String> {
    fs::read_to_string(&path).map_err(|cause| Error::io("read", path, cause))
}

/// Reads a file that may be missing.
pub fn read_if_there(path: impl AsRef<Path>) -> Result<Option<String>> {
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error::io("read", path, cause)),
    }
}

pub fn write(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> Result<()> {
    fs::write(&path, contents).map_err(|cause| Error::io("write", path, cause))
}

/// Writes a file with this mode. Whoever reads it meanwhile finds what was there before, or all that is there now.
pub fn replace(path: impl AsRef<Path>, contents: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    let path = path.as_ref();
    let new = temporary(path);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        // The file may be there already, and the process's umask counts for one that is not.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(contents.as_ref())?;
        fs::rename(&new, path)
    };
    write().map_err(|cause| Error::io("write", path, cause))
}

/// Makes `link` a symbolic link to `target`, in the same way.
pub fn link(target: impl AsRef<Path>, link: impl AsRef<Path>) -> Result<()> {
    let new = temporary(link.as_ref());
    remove(&new)?;
    let done = symlink(target, &new).and_then(|()| fs::rename(&new, &link));
    done.map_err(|cause| Error::io("link", link, cause))
}

fn temporary(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Locks a directory until this process ends, however that happens (flock(2)). No child inherits the lock, since the descriptor is
/// closed when it becomes another program. The value says whether nobody else has the lock.
pub fn lock(directory: File) -> io::Result<bool> {
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            // Never unlocked.
            std::mem::forget(lock);
            Ok(true)
        }
        Err((_, Errno::EWOULDBLOCK)) => Ok(false),
        Err((_, cause)) => Err(cause.into()),
    }
}

pub fn make_dir(path: impl AsRef<Path>) -> Result<()> {
    fs::create_dir_all(&path).map_err(|cause| Error::io("create the directory", &path, cause))
}

/// Removes a file, which may be missing.
pub fn remove(path: impl AsRef<Path>) -> Result<()> {
    unless_missing(fs::remove_file(&path)).map_err(|cause| Error::io("remove", path, cause))
}

/// Removes a directory and all that is in it. It may be missing.
pub fn remove_tree(path: impl AsRef<Path>) -> Result<()> {
    unless_missing(fs::remove_dir_all(&path)).map_err(|cause| Error::io("remove", path, cause))
}

/// Removes a file, or a directory and all that is in it, but not one that a link leads to. It may be missing.
pub fn remove_any(path: impl AsRef<Path>) -> Result<()> {
    if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
        remove_tree(path)
    } else {
        remove(path)
    }
}

/// Removes everything in a directory, which may be a mount point.
pub fn clear(directory: impl AsRef<Path>) -> Result<()> {
    list(directory)?.iter().try_for_each(remove_any)
}

/// What is in a directory.
pub fn list(directory: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(&directory).and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    entries.map_err(|cause| Error::io("list", directory, cause))
}

/// The files with these extensions in a directory that may be missing, sorted by name. Includes symbolic links, as
/// in a mounted ConfigMap.
pub fn with_extensions(directory: impl AsRef<Path>, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    if !directory.as_ref().exists() {
        return Ok(vec![]);
    }
    let has_one = |path: &PathBuf| path.extension().and_then(|own| own.to_str()).is_some_and(|own| extensions.contains(&own));
    let mut files: Vec<PathBuf> = list(directory)?.into_iter().filter(|path| path.is_file() && has_one(path)).collect();
    files.sort();
    Ok(files)
}

fn unless_missing(done: std::io::Result<()>) -> std::io::Result<()> {
    done.or_else(|cause| if cause.kind() == ErrorKind::NotFound { Ok(()) } else { Err(cause) })
}

/// FNV-1a, 64 bits wide: against accidents, not against people.
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_published_one() {
        // draft-eastlake-fnv, appendix C.
        for (text, expected) in [("", 0xcbf29ce484222325), ("a", 0xaf63dc4c8601ec8c), ("foobar", 0x85944171f73967e8)] {
            assert_eq!(digest(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_may_be_missing_when_it_is_removed() {
        let directory = std::env::temp_dir().join(format!("kind-files-{}-low", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("config.json");
        for (mode, text) in [(0o644, "public"), (0o600, "secret"), (0o755, "#!/bin/sh")] {
            replace(&path, text, mode).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            assert_eq!(read(&path).unwrap(), text);
            assert_eq!(read_if_there(&path).unwrap(), Some(text.to_string()));
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing else is left");
        }
        fs::create_dir(directory.join("below")).unwrap();
        for target in ["/nonexistent", "/etc"] {
            link(target, directory.join("link")).unwrap();
            assert_eq!(fs::read_link(directory.join("link")).unwrap(), Path::new(target));
        }
        clear(&directory).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        assert!(Path::new("/etc/passwd").exists() && clear(directory.join("below")).is_err());
        for _ in 0..2 {
            remove(&path).unwrap();
            remove_tree(&directory).unwrap();
        }
        assert_eq!(read_if_there(&path).unwrap(), None);
        assert!(read_if_there("/etc").unwrap_err().to_string().contains("cannot read /etc"));
        for error in [read(&path), write(&path, "x").map(|()| String::new()), replace(&path, "x", 0o600).map(|()| String::new())] {
            assert!(error.unwrap_err().to_string().contains(&path.display().to_string()));
        }
        assert!(remove_tree("/dev/null").unwrap_err().to_string().contains("cannot remove /dev/null"));
    }
}
