//! The files under `/var/kind`: a state exists exactly when its file does.
//!
//! Each file is written under a temporary name and then renamed, so that a reader sees all of it or none.

use std::path::PathBuf;

use crate::error::Result;
use crate::files;

pub const DOCKER_READY: &str = "docker-ready";
pub const KUBERNETES_READY: &str = "kubernetes-ready";
pub const CONFIG: &str = "config";
pub const CA_CERT: &str = "ca.crt";
pub const CLIENT_CERT: &str = "client.crt";
pub const CLIENT_KEY: &str = "client.key";
/// Why the boot gave up.
pub const FAILED: &str = "failed";
/// One line per milestone: seconds since the init started, and the milestone's name.
pub const TIMELINE: &str = "timeline";
/// One line for each thing that is not ready, with the reason.
pub const WAITING: &str = "waiting";

/// All of it for programs (`document`).
pub const STATUS: &str = "status.json";

/// The script with which a job waits, for jobs whose image does not have it.
pub const WAIT_SCRIPT: &str = "wait-for-kind.sh";
pub const WAIT_SCRIPT_TEXT: &[u8] = include_bytes!("../../wait-for-kind.sh");

/// The only files that are served.
pub const FILES: [&str; 11] =
    [DOCKER_READY, KUBERNETES_READY, CONFIG, CA_CERT, CLIENT_CERT, CLIENT_KEY, FAILED, STATUS, TIMELINE, WAIT_SCRIPT, WAITING];

/// The directory that holds them.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new(path: PathBuf) -> Directory {
        Directory(path)
    }

    #[cfg(test)]
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    /// Removes the files of an earlier start of this container, and creates the directory.
    pub fn clear(&self) -> Result<()> {
        files::make_dir(&self.0)?;
        FILES.iter().try_for_each(|name| self.remove(name))
    }

    pub fn write(&self, name: &str, contents: &[u8]) -> Result<()> {
        // The kubeconfig contains the key too. Port 10080 serves both on purpose, but no other user of the node may read
        // the files.
        let mode = if [CLIENT_KEY, CONFIG].contains(&name) { 0o600 } else { 0o644 };
        files::replace(self.0.join(name), contents, mode)
    }

    /// Removes a file if it exists.
    pub fn remove(&self, name: &str) -> Result<()> {
        files::remove(self.0.join(name))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn directory(test: &str) -> Directory {
        let directory = Directory::new(std::env::temp_dir().join(format!("kind-files-{}-{test}", std::process::id())));
        directory.clear().unwrap();
        directory
    }

    #[test]
    fn clear_removes_the_files_of_an_earlier_start() {
        let directory = directory("clear");
        FILES.iter().for_each(|name| directory.write(name, b"old").unwrap());
        directory.clear().unwrap();
        FILES.iter().for_each(|name| assert!(!directory.path().join(name).exists(), "{name}"));
        fs::remove_dir_all(directory.path()).unwrap();
    }

    #[test]
    fn only_root_can_read_keys() {
        let directory = directory("mode");
        for (name, mode) in [(CLIENT_KEY, 0o600), (CONFIG, 0o600), (CLIENT_CERT, 0o644), (DOCKER_READY, 0o644)] {
            directory.write(name, b"x").unwrap();
            assert_eq!(fs::metadata(directory.path().join(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
        }
        fs::remove_dir_all(directory.path()).unwrap();
    }
}
