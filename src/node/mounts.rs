//! The mounts and device files that a node needs and a new container does not have.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{mount, MsFlags};

use crate::config::RUN_DIR;
use crate::error::{Error, Result};
use crate::files;

const NONE: Option<&str> = None;

/// Mounts that Docker needs, even without a cluster.
pub fn prepare() -> Result<()> {
    // Volumes with Bidirectional or HostToContainer propagation need a shared root.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SHARED, NONE)
        .map_err(|cause| Error::io("make mounts shared below", "/", cause))?;
    // As dind does: Docker looks for AppArmor there. Some hosts do not have it.
    let security = "/sys/kernel/security";
    if Path::new(security).exists() && !is_mount_point(security) {
        let _ = mount(Some("none"), security, Some("securityfs"), MsFlags::empty(), NONE);
    }
    Ok(())
}

/// Mounts and files that the cluster needs.
pub fn prepare_for_cluster() -> Result<()> {
    // Hide sockets, pid files and network namespaces of an earlier start, which the daemons would take for live ones.
    if has_mounts_below("/run") {
        // A mount of the user's there, such as a secret, must stay visible.
        ["/run/containerd", "/run/docker", "/run/cni", "/run/netns", RUN_DIR].iter().try_for_each(|part| tmpfs(part, "mode=755"))?;
        let _ = fs::remove_file("/run/docker.pid");
    } else {
        tmpfs("/run", "mode=755")?;
    }
    // kubelet does not start without the kernel's log.
    if !Path::new("/dev/kmsg").exists() {
        symlink("/dev/console", "/dev/kmsg").map_err(|cause| Error::io("create", "/dev/kmsg", cause))?;
    }
    // The node's identity: containers of one image must not share it.
    files::write("/etc/machine-id", files::read("/proc/sys/kernel/random/uuid")?.replace('-', ""))
}

pub fn tmpfs(target: &str, options: &str) -> Result<()> {
    make_dir(target)?;
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
        .map_err(|cause| Error::io("mount a tmpfs on", target, cause))
}

/// Mounts a directory or a file on another, which must exist.
pub fn bind(source: &Path, target: impl AsRef<Path>) -> Result<()> {
    mount(Some(source), target.as_ref(), NONE, MsFlags::MS_BIND, NONE)
        .map_err(|cause| Error::io(&format!("bind-mount {} on", source.display()), target, cause))
}

pub fn make_dir(path: impl AsRef<Path>) -> Result<()> {
    fs::create_dir_all(&path).map_err(|cause| Error::io("create the directory", &path, cause))
}

pub fn is_mount_point(path: impl AsRef<Path>) -> bool {
    mount_points().iter().any(|point| Path::new(point) == path.as_ref())
}

/// Whether `path` or anything below it is a mount point.
fn has_mounts_below(path: &str) -> bool {
    mount_points().iter().any(|point| Path::new(point).starts_with(path))
}

fn mount_points() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_string)).collect()
}
