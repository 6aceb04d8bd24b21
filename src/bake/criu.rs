//! Puts CRIU, from the bundle's Debian packages, into the image: the program with its own loader and libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bake::bundle::Bundle;
use crate::config::{CRIU_DIR, RUN_DIR};
use crate::error::{Error, Result};
use crate::files;
use crate::restore::criu::{LIBRARIES, LOADER, PROGRAM};
use crate::restore::machine::Machine;
use crate::supervisor::reaper;

/// Where the packages have it.
const PACKAGED: &str = "usr/sbin/criu";
const LICENSES: &str = "licenses";

/// Installs CRIU. Returns false, and says why, if this image's control plane cannot be saved.
pub fn install(bundle: &Bundle) -> Result<bool> {
    let packages = bundle.criu()?;
    let why = match (packages.is_empty(), Machine::here().lacks()) {
        (true, _) => "the bundle has no CRIU".to_string(),
        (_, Some(why)) => why,
        (false, None) => {
            unpack(&packages)?;
            return Ok(true);
        }
    };
    log::info!(target: "bake", "the control plane cannot be saved, so starts will be cold: {why}");
    Ok(false)
}

fn unpack(packages: &[PathBuf]) -> Result<()> {
    let (root, target) = (Path::new(RUN_DIR).join("criu"), Path::new(CRIU_DIR));
    files::make_dir(&root)?;
    for package in packages {
        reaper::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&root))?;
    }
    let libraries = library_directory(&root)?;
    let loader = loader_in(&libraries)?;
    files::make_dir(target.join(LIBRARIES))?;
    put(&root.join(PACKAGED), &target.join(PROGRAM))?;
    put(&loader, &target.join(LOADER))?;
    // The loader itself lists the libraries that the program needs.
    let list = reaper::run(Command::new(&loader).arg("--library-path").arg(&libraries).arg("--list").arg(target.join(PROGRAM)))?;
    for path in needed(&list) {
        put(path, &target.join(LIBRARIES).join(path.file_name().unwrap_or_default()))?;
    }
    files::make_dir(target.join(LICENSES))?;
    for package in files::list(root.join("usr/share/doc"))? {
        let license = package.join("copyright");
        if license.is_file() {
            put(&license, &target.join(LICENSES).join(package.file_name().unwrap_or_default()))?;
        }
    }
    files::remove_tree(root)
}

/// Copies a file, or what a symbolic link leads to.
fn put(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).map_err(|cause| Error::io("copy", from, cause))
}

/// Debian's directory for an architecture's libraries, such as usr/lib/x86_64-linux-gnu.
fn library_directory(root: &Path) -> Result<PathBuf> {
    let found = files::list(root.join("usr/lib"))?.into_iter().find(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    found.ok_or_else(|| Error::new("the bundle's CRIU packages contain no libraries"))
}

fn loader_in(libraries: &Path) -> Result<PathBuf> {
    let is_loader = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"));
    let found = files::list(libraries)?.into_iter().find(is_loader);
    found.ok_or_else(|| Error::new("the bundle's CRIU packages contain no loader"))
}

/// The paths in the loader's list: `libc.so.6 => /x/libc.so.6 (0x00007f…)`.
fn needed(list: &str) -> Vec<&Path> {
    list.lines().filter_map(|line| line.split_once(" => ")?.1.split_whitespace().next()).map(Path::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_libraries_are_read_from_the_loaders_list() {
        let list = "\tlinux-vdso.so.1 (0x00007fff)\n\tlibc.so.6 => /r/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(needed(list), [Path::new("/r/libc.so.6")]);
    }
}
