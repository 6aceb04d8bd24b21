//! Reads, writes and removes files, with errors that name them.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::error::{Error, Result};

pub fn read(path: impl AsRef<Path>) -> Result<String> {
    fs::read_to_string(&path).map_err(|cause| Error::io("read", path, cause))
}

pub fn write(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> Result<()> {
    fs::write(&path, contents).map_err(|cause| Error::io("write", path, cause))
}

/// Writes a file with this mode. Whoever reads it meanwhile finds what was there before, or all that is there now.
pub fn replace(path: impl AsRef<Path>, contents: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    let path = path.as_ref();
    let new = path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        // The file may be there already, and the process's umask counts for one that is not.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(contents.as_ref())?;
        fs::rename(&new, path)
    };
    write().map_err(|cause| Error::io("write", path, cause))
}

/// Removes a file, which may be missing.
pub fn remove(path: impl AsRef<Path>) -> Result<()> {
    unless_missing(fs::remove_file(&path)).map_err(|cause| Error::io("remove", path, cause))
}

/// Removes a directory and all that is in it. It may be missing.
pub fn remove_tree(path: impl AsRef<Path>) -> Result<()> {
    unless_missing(fs::remove_dir_all(&path)).map_err(|cause| Error::io("remove", path, cause))
}

/// Removes everything in a directory, which may be a mount point.
pub fn clear(directory: impl AsRef<Path>) -> Result<()> {
    let list = fs::read_dir(&directory).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    for entry in list.map_err(|cause| Error::io("list", &directory, cause))? {
        // Not one that a link leads to.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(entry.path())?;
        } else {
            remove(entry.path())?;
        }
    }
    Ok(())
}

fn unless_missing(done: std::io::Result<()>) -> std::io::Result<()> {
    done.or_else(|cause| if cause.kind() == ErrorKind::NotFound { Ok(()) } else { Err(cause) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_may_be_missing_when_it_is_removed() {
        let directory = std::env::temp_dir().join(format!("kind-files-{}-low", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("config.json");
        for (mode, text) in [(0o644, "public"), (0o600, "secret"), (0o755, "#!/bin/sh")] {
            replace(&path, text, mode).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            assert_eq!(read(&path).unwrap(), text);
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing else is left");
        }
        fs::create_dir(directory.join("below")).unwrap();
        std::os::unix::fs::symlink("/etc", directory.join("link")).unwrap();
        clear(&directory).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        assert!(Path::new("/etc/passwd").exists() && clear(directory.join("below")).is_err());
        for _ in 0..2 {
            remove(&path).unwrap();
            remove_tree(&directory).unwrap();
        }
        for error in [read(&path), write(&path, "x").map(|()| String::new()), replace(&path, "x", 0o600).map(|()| String::new())] {
            assert!(error.unwrap_err().to_string().contains(&path.display().to_string()));
        }
        assert!(remove_tree("/dev/null").unwrap_err().to_string().contains("cannot remove /dev/null"));
    }
}
