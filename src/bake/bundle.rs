//! The bundle: a directory with everything that a bake needs from outside.
//!
//! `bundle.env` (version, architecture), `bin/`, `cni/`, `images/*.tar`, `manifests/*.yaml`, and `criu/*.deb`. build.sh
//! creates it, and checks it before anything is copied.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::CNI_BIN_DIR;
use crate::daemons::containerd;
use crate::error::{Error, Result};
use crate::node::mounts;
use crate::supervisor::reaper;
use crate::versions;

pub const BIN_DIR: &str = "/usr/local/bin";
const PROGRAMS: [&str; 3] = ["kubeadm", "kubelet", "kubectl"];
/// In `images/`: what the scripts pulled when the bundle was created.
const PULLED: &str = "pulled.tar";
const CNI_PLUGINS: [&str; 4] = ["bridge", "host-local", "portmap", "loopback"];

pub struct Bundle {
    directory: PathBuf,
    /// Such as `v1.36.2`.
    pub version: String,
    /// The bake needs no network, because the bundle contains what the scripts pull.
    pub complete: bool,
}

impl Bundle {
    /// Opens a bundle and checks that it is complete and for this machine.
    pub fn open(directory: &Path) -> Result<Bundle> {
        let settings = directory.join("bundle.env");
        let text = fs::read_to_string(&settings).map_err(|cause| Error::io("read", &settings, cause).advise("Is this a bundle?"))?;
        let bundle = Bundle {
            directory: directory.to_path_buf(),
            version: setting(&text, "KUBERNETES_VERSION", &settings)?,
            complete: text.lines().any(|line| line == "COMPLETE=1"),
        };
        let (arch, ours) = (setting(&text, "ARCH", &settings)?, architecture());
        if arch != ours {
            return Err(Error::new(format!("the bundle is for {arch}, and this machine is {ours}"))
                .advise("Create a bundle on a machine like this one"));
        }
        let missing = PROGRAMS.iter().map(|name| format!("bin/{name}")).chain(CNI_PLUGINS.iter().map(|name| format!("cni/{name}")));
        if let Some(missing) = missing.into_iter().find(|name| !directory.join(name).is_file()) {
            return Err(Error::new(format!("the bundle lacks {missing}")).advise("Create the bundle again"));
        }
        versions::dialect(&bundle.version)?;
        Ok(bundle)
    }

    /// Puts the programs where the node looks for them.
    pub fn install(&self) -> Result<()> {
        for (part, target) in [("bin", BIN_DIR), ("cni", CNI_BIN_DIR)] {
            mounts::make_dir(target)?;
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

    /// The files in a subdirectory, which may be missing, sorted by name.
    fn files(&self, part: &str, extension: &str) -> Result<Vec<PathBuf>> {
        let directory = self.directory.join(part);
        if !directory.exists() {
            return Ok(vec![]);
        }
        let entries = fs::read_dir(&directory).map_err(|cause| Error::io("list", &directory, cause))?;
        let mut files: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|have| have == extension)).collect();
        files.sort();
        Ok(files)
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

/// This machine's architecture, as Debian, Docker and Kubernetes call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(test: &str, settings: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("kind-bundle-{}-{test}", std::process::id()));
        for name in ["bin/kubeadm", "bin/kubelet", "bin/kubectl", "cni/bridge", "cni/host-local", "cni/portmap", "cni/loopback"] {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        fs::write(directory.join("bundle.env"), settings).unwrap();
        directory
    }

    #[test]
    fn a_whole_bundle_is_taken() {
        let directory = bundle("whole", &format!("KUBERNETES_VERSION=v1.36.2\nARCH={}\n", architecture()));
        assert_eq!(Bundle::open(&directory).unwrap().version, "v1.36.2");
        fs::remove_file(directory.join("cni/portmap")).unwrap();
        assert!(Bundle::open(&directory).err().unwrap().to_string().contains("lacks cni/portmap"));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn another_architecture_or_version_is_refused() {
        let directory = bundle("arch", "KUBERNETES_VERSION=v1.36.2\nARCH=s390x\n");
        assert!(Bundle::open(&directory).err().unwrap().to_string().contains("for s390x"));
        fs::write(directory.join("bundle.env"), format!("KUBERNETES_VERSION=v1.5.0\nARCH={}\n", architecture())).unwrap();
        assert!(Bundle::open(&directory).err().unwrap().to_string().contains("v1.5.0 is not supported"));
        fs::remove_dir_all(directory).unwrap();
    }
}
