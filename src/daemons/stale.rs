//! Removes what a killed container, or a killed dockerd, leaves behind: pid files, whose pids now belong to other processes and
//! which would keep dockerd and its containerd from starting, and a network that is only half made.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::supervisor::reaper;

const PID_FILE: &str = "/var/run/docker.pid";
/// The directory of the containerd that dockerd starts itself; other containerds' files are not ours to remove.
const CONTAINERD: &str = "docker/containerd";

/// Removes all such files. Must be called before the first daemon starts.
pub fn remove_all(config: &Config) {
    for run in ["/run", "/var/run"].map(|path| config.path(path)) {
        remove_pid_files(&run);
        for entry in fs::read_dir(run.join(CONTAINERD)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if [".pid", ".sock", ".ttrpc"].iter().any(|end| name.to_string_lossy().ends_with(end)) {
                remove(&entry.path());
            }
        }
    }
}

/// dockerd's own pid file, which is removed before each start of dockerd, because it may have been killed.
pub fn pid_file(config: &Config) -> PathBuf {
    config.path(PID_FILE)
}

/// Half of a default network, left by a dockerd that was killed while it made one, which keeps every later dockerd from starting
/// (https://github.com/moby/moby/issues/49291). Its log says so.
const CONFLICT: &str = "networks have same bridge name";
const NETWORKS: &str = "network/files/local-kv.db";

/// Puts dockerd's networks aside if they are why it has ended. It makes the default one again.
pub fn set_networks_aside(log: &Path, data_root: &Path) {
    let log = fs::read_to_string(log).unwrap_or_default();
    if !reaper::tail(&log, 1).contains(CONFLICT) {
        return;
    }
    let (networks, aside) = (data_root.join(NETWORKS), data_root.join(NETWORKS).with_extension("db.conflict"));
    match fs::rename(&networks, &aside) {
        Ok(()) => {
            log::warn!(target: "dockerd", "a network was only half made when dockerd was killed: it starts without the networks that it had, which are in {}", aside.display())
        }
        Err(cause) => log::debug!(target: "dockerd", "cannot rename {}: {cause}", networks.display()),
    }
}

pub fn remove(file: &Path) {
    // Usually it does not exist.
    let _ = fs::remove_file(file);
}

/// Removes `docker*.pid` at any depth, as docker:dind does.
fn remove_pid_files(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().to_lowercase();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => remove_pid_files(&entry.path()),
            Ok(_) if name.starts_with("docker") && name.ends_with(".pid") => remove(&entry.path()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_dockers_own_is_removed() {
        let root = std::env::temp_dir().join(format!("kind-stale-{}", std::process::id()));
        let root_text = root.display().to_string();
        let config = Config::from_env(|name| (name == "KIND_ROOT").then(|| root_text.clone())).unwrap();
        let gone =
            ["run/docker.pid", "run/x/Docker-1.pid", "var/run/docker/containerd/containerd.pid", "run/docker/containerd/containerd.sock"];
        let kept = ["run/sshd.pid", "run/docker.sock", "run/containerd/containerd.sock", "run/docker/containerd/containerd.toml"];
        for file in gone.iter().chain(&kept) {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), "17").unwrap();
        }
        remove_all(&config);
        gone.iter().for_each(|file| assert!(!root.join(file).exists(), "{file}"));
        kept.iter().for_each(|file| assert!(root.join(file).exists(), "{file}"));
        fs::remove_dir_all(&root).unwrap();
    }
}
