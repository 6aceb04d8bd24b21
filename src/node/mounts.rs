//! The mounts and device files that a node needs and a new container does not have.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{mount, umount2, MntFlags, MsFlags};

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
    files::make_dir(target)?;
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
        .map_err(|cause| Error::io("mount a tmpfs on", target, cause))
}

/// Mounts a directory or a file on another, which must exist.
pub fn bind(source: &Path, target: impl AsRef<Path>) -> Result<()> {
    mount(Some(source), target.as_ref(), NONE, MsFlags::MS_BIND, NONE)
        .map_err(|cause| Error::io(&format!("bind-mount {} on", source.display()), target, cause))
}

pub fn is_mount_point(path: impl AsRef<Path>) -> bool {
    mounts().iter().any(|mount| mount.point == path.as_ref())
}

/// Unmounts what has been mounted below a directory that is a mount point itself.
///
/// # Errors
/// Something is still mounted there, so nothing below it may be removed: it could be the files of somebody else.
pub fn unmount_below(directory: &str) -> Result<()> {
    // The latest first, which may be on an earlier one. One that is in use goes when it no longer is.
    let unmount = |point: &PathBuf| umount2(point, MntFlags::MNT_DETACH).err();
    let failed: Vec<_> = mounts_on(directory, &mounts()).iter().rev().filter_map(unmount).collect();
    match mounts_on(directory, &mounts()).first() {
        Some(left) => {
            let cause = failed.first().map(|cause| format!(": {cause}")).unwrap_or_default();
            Err(Error::new(format!("{} cannot be unmounted{cause}", left.display())))
        }
        None => Ok(()),
    }
}

/// Whether `path` or anything below it is a mount point.
pub fn has_mounts_below(path: &str) -> bool {
    mounts().iter().any(|mount| mount.point.starts_with(path))
}

pub struct Mount {
    id: u32,
    parent: u32,
    pub point: PathBuf,
    /// Of the file system.
    pub kind: String,
    pub options: String,
}

/// In the order in which they were mounted.
pub fn mounts() -> Vec<Mount> {
    parse_mounts(&fs::read("/proc/self/mountinfo").unwrap_or_default())
}

/// Parses `/proc/self/mountinfo` (proc_pid_mountinfo(5)), in which blanks and backslashes are written in octal digits.
pub fn parse_mounts(text: &[u8]) -> Vec<Mount> {
    let parse = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
        let (id, parent, point) = (number()?, number()?, OsString::from_vec(unescape(fields.nth(2)?)).into());
        let mut filesystem = fields.skip_while(|field| *field != b"-").skip(1).map(|field| String::from_utf8_lossy(field).into_owned());
        Some(Mount { id, parent, point, kind: filesystem.next()?, options: filesystem.nth(1)? })
    };
    text.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

/// The mount points on the last mount of `directory`. Those on an earlier one are hidden by it, and so are their files.
fn mounts_on(directory: &str, mounts: &[Mount]) -> Vec<PathBuf> {
    let Some(last) = mounts.iter().rfind(|mount| mount.point == Path::new(directory)) else { return vec![] };
    let mut on = BTreeSet::from([last.id]);
    let is_on = |mount: &&Mount| on.contains(&mount.parent) && on.insert(mount.id);
    mounts.iter().filter(is_on).map(|mount| mount.point.clone()).collect()
}

fn unescape(mut escaped: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    while let [first, rest @ ..] = escaped {
        let code = rest.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        let (byte, left) = match code.filter(|_| *first == b'\\') {
            Some(byte) => (byte, &rest[3..]),
            None => (*first, rest),
        };
        bytes.push(byte);
        escaped = left;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_on_a_directory_is_found_but_not_what_its_mount_hides() {
        let text = b"22 1 0:21 / / rw - overlay overlay rw
30 22 0:30 / /var/lib/kubelet/pki rw,shared:1 - ext4 /dev/sda rw
36 22 0:30 / /var/lib/kubelet rw,shared:1 - ext4 /dev/sda rw
37 36 0:31 / /var/lib/kubelet/a\\040b\\134c\\303\\244\\12 rw - tmpfs tmpfs rw
38 37 0:32 / /var/lib/kubelet/a\\040b/d rw - tmpfs tmpfs rw
39 22 0:33 / /var/lib/kubelets rw - tmpfs tmpfs rw
";
        let mounts = parse_mounts(text);
        assert_eq!(
            mounts_on("/var/lib/kubelet", &mounts),
            ["/var/lib/kubelet/a b\\c\u{e4}\\12", "/var/lib/kubelet/a b/d"].map(PathBuf::from)
        );
        assert_eq!(mounts_on("/var/lib/kubelets", &mounts), [] as [PathBuf; 0]);
        assert_eq!(mounts_on("/var/lib/other", &mounts), [] as [PathBuf; 0]);
    }
}
