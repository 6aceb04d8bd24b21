//! The bundle: a directory with everything that a bake needs from outside.
//!
//! `bundle.env` (version, architecture), `bin/`, `cni/`, `images/*.tar`, `manifests/*.yaml`, and `criu/*.deb`. build.sh
//! creates it, and checks it before anything is copied.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::CNI_BIN_DIR;
use crate::daemons::containerd;
use crate::error::{Error, Result};
use crate::files;
use crate::supervisor::reaper;
use crate::versions;

pub const BIN_DIR: &str = "/usr/local/bin";
/// In `images/`: what the scripts pulled when the bundle was created.
const PULLED: &str = "pulled.tar";

pub struct Bundle {
    directory: PathBuf,
    /// Such as `v1.36.2`.
    pub version: String,
    /// The bake needs no network, because the bundle contains what the scripts pull.
    pub complete: bool,
}

impl Bundle {
    /// Opens a bundle. build.sh has checked that it is whole and for this machine.
    pub fn open(directory: &Path) -> Result<Bundle> {
        let settings = directory.join("bundle.env");
        let text = files::read(&settings).map_err(|error| error.advise("Is this directory a bundle?"))?;
        let bundle = Bundle {
            directory: directory.to_path_buf(),
            version: setting(&text, "KUBERNETES_VERSION", &settings)?,
            complete: text.lines().any(|line| line == "COMPLETE=1"),
        };
        versions::dialect(&bundle.version)?;
        Ok(bundle)
    }

    /// Puts the programs where the node looks for them.
    pub fn install(&self) -> Result<()> {
        for (part, target) in [("bin", BIN_DIR), ("cni", CNI_BIN_DIR)] {
            files::make_dir(target)?;
            reaper::run(Command::new("cp").args(["-r", "--"]).arg(self.directory.join(part).join(".")).arg(target))?;
        }
        Ok(())
    }

    /// Loads every image and returns their names.
    pub fn load_images(&self) -> Result<Vec<String>> {
        for archive in self.files("images", "tar")? {
            if archive.file_name().is_some_and(|name| name == PULLED) {
                // `docker load` would not restore names that are digests.
                containerd::ctr(&["images", "import", &archive.to_string_lossy()])?;
            } else {
                reaper::run(Command::new("docker").args(["load", "--quiet", "--input"]).arg(&archive))?;
            }
        }
        let list = reaper::run(Command::new("docker").args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]))?;
        Ok(list.lines().map(str::to_string).collect())
    }

    /// What to apply once the API server is up.
    pub fn manifests(&self) -> Result<Vec<PathBuf>> {
        self.files("manifests", "yaml")
    }

    /// Debian's packages of CRIU and everything that it needs, if the bundle has them.
    pub fn criu(&self) -> Result<Vec<PathBuf>> {
        self.files("criu", "deb")
    }

    fn files(&self, part: &str, extension: &str) -> Result<Vec<PathBuf>> {
        files::with_extensions(self.directory.join(part), &[extension])
    }
}

/// Saves every image that is not in `known`: what the scripts pulled and built, and what kubelet pulled for
/// them. Creates no file if there are none.
pub fn save_images_but(known: &[String], file: &Path) -> Result<()> {
    let names = containerd::images()?;
    // CRI recreates its second name for each image. Nobody asks for an image that lost its name to another one.
    let new: Vec<&str> = names
        .iter()
        .filter(|name| !known.contains(name) && !name.starts_with("sha256:") && !name.starts_with("moby-dangling@"))
        .map(String::as_str)
        .collect();
    if new.is_empty() {
        return Ok(());
    }
    containerd::ctr(&[&["images", "export", &file.to_string_lossy()], new.as_slice()].concat())?;
    log::info!(target: "bake", "saved {}", new.join(", "));
    Ok(())
}

fn setting(text: &str, name: &str, path: &Path) -> Result<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.map(|value| value.trim().to_string()).ok_or_else(|| Error::new(format!("{} does not name {name}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_bundle_names_its_version_and_whether_it_is_complete() {
        let directory = std::env::temp_dir().join(format!("kind-bundle-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        for (settings, opened) in [
            ("KUBERNETES_VERSION=v1.36.2\nARCH=amd64\n", Ok(("v1.36.2", false))),
            ("KUBERNETES_VERSION=v1.20.2\nARCH=arm64\nCOMPLETE=1\n", Ok(("v1.20.2", true))),
            ("KUBERNETES_VERSION=v1.5.0\nARCH=amd64\n", Err("not supported")),
            ("ARCH=amd64\n", Err("bundle.env does not name KUBERNETES_VERSION")),
        ] {
            fs::write(directory.join("bundle.env"), settings).unwrap();
            match (Bundle::open(&directory), opened) {
                (Ok(bundle), Ok((version, complete))) => assert_eq!((bundle.version.as_str(), bundle.complete), (version, complete)),
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (opened, _) => panic!("{settings}: {:?}", opened.err()),
            }
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
