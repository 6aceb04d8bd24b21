//! The mounts that a node needs and that a fresh container lacks.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{mount, MsFlags};

use crate::config::RUN_DIR;
use crate::error::{Error, Result};

const NONE: Option<&str> = None;

/// Mounts that Docker alone needs as well.
pub fn prepare() -> Result<()> {
    // Volumes with Bidirectional or HostToContainer propagation need a shared root.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SHARED, NONE)
        .map_err(|cause| Error::io("make mounts shared below", "/", cause))?;
    // As dind does: without it AppArmor and others cannot be seen; some hosts have none.
    let security = "/sys/kernel/security";
    if Path::new(security).exists() && !is_mount_point(security) {
        let _ = mount(Some("none"), security, Some("securityfs"), MsFlags::empty(), NONE);
    }
    Ok(())
}

/// Mounts that the cluster needs.
pub fn prepare_for_cluster() -> Result<()> {
    // Sockets, pid files and network namespaces of a former start must not be taken for live ones.
    if has_mounts_below("/run") {
        // What the user mounted there, a secret for example, must stay visible.
        ["/run/containerd", "/run/docker", "/run/cni", "/run/netns", RUN_DIR].iter().try_for_each(|part| tmpfs(part, "mode=755"))?;
        let _ = fs::remove_file("/run/docker.pid");
    } else {
        tmpfs("/run", "mode=755")?;
    }
    // kubelet reads the kernel's log and does not start without it.
    if !Path::new("/dev/kmsg").exists() {
        symlink("/dev/console", "/dev/kmsg").map_err(|cause| Error::io("make", "/dev/kmsg", cause))?;
    }
    // The node's identity, which containers of one image must not share.
    let uuid = "/proc/sys/kernel/random/uuid";
    let id = fs::read_to_string(uuid).map_err(|cause| Error::io("read", uuid, cause))?.replace('-', "");
    fs::write("/etc/machine-id", id).map_err(|cause| Error::io("write", "/etc/machine-id", cause))
}

pub fn tmpfs(target: &str, options: &str) -> Result<()> {
    make_dir(target)?;
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
        .map_err(|cause| Error::io("mount a tmpfs on", target, cause))
}

pub fn bind(source: &Path, target: &str) -> Result<()> {
    make_dir(target)?;
    mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE)
        .map_err(|cause| Error::io(&format!("bind {} to", source.display()), target, cause))
}

pub fn make_dir(path: impl AsRef<Path>) -> Result<()> {
    fs::create_dir_all(&path).map_err(|cause| Error::io("make the directory", &path, cause))
}

pub fn is_mount_point(path: impl AsRef<Path>) -> bool {
    mount_points().iter().any(|point| Path::new(point) == path.as_ref())
}

/// Whether `path` or anything below it is a mount.
fn has_mounts_below(path: &str) -> bool {
    mount_points().iter().any(|point| Path::new(point).starts_with(path))
}

fn mount_points() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_string)).collect()
}
