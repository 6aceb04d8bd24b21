//! Raises limits of the kernel that a node with many pods reaches. Never lowers one.

use std::fs;
use std::path::Path;

use nix::sys::resource::{getrlimit, setrlimit, Resource};

use crate::config::{Config, RUN_DIR, SYSCTLS as SETTING};
use crate::error::Result;
use crate::files;
use crate::files::make_dir;
use crate::node::mounts::bind;

const SYSCTL_DIR: &str = "/proc/sys";
/// The inotify limits are from kind.sigs.k8s.io/docs/user/known-issues (pods with "too many open files"), the last
/// is what databases and search engines ask for (elastic.co, "Increase virtual memory").
const SYSCTLS: [(&str, u64); 3] =
    [("fs/inotify/max_user_instances", 8192), ("fs/inotify/max_user_watches", 524_288), ("vm/max_map_count", 262_144)];
/// What kubelet sets when it starts (`setupKernelTunables` in pkg/kubelet/cm/container_manager_linux.go).
const KUBELETS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
/// Open files per process: below the first, containerd runs out with many pods; the second is Docker's own limit.
const FEW_FILES: u64 = 65_536;
const FILES: u64 = 1_048_576;

pub fn raise(config: &Config) {
    let sysctls: &[(&str, u64)] = if config.sysctls { &SYSCTLS } else { &[] };
    for (name, wanted) in sysctls {
        let path = config.path(SYSCTL_DIR).join(name);
        let current = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        let Some(value) = current.and_then(|current| raised(current, *wanted)) else { continue };
        match fs::write(&path, value.to_string()) {
            Ok(()) => log::debug!(target: "limits", "raised {name} to {value}"),
            Err(cause) => log::info!(target: "limits", "cannot raise {name} above {}: {cause}", current.unwrap_or_default()),
        }
    }
    if !config.sysctls {
        log::info!(target: "limits", "{SETTING}=0: the machine's kernel settings stay as they are");
    }
    raise_files();
}

/// Shows the node copies of what kubelet sets, so that it writes to these. It has no setting that leaves the kernel's
/// alone: it either changes them, or does not start when they are different (`protectKernelDefaults`).
pub fn keep_from_kubelet() -> Result<()> {
    for name in KUBELETS {
        let (original, copy) = (Path::new(SYSCTL_DIR).join(name), Path::new(RUN_DIR).join("sysctls").join(name));
        // Old kernels lack some.
        let Ok(value) = fs::read(&original) else { continue };
        copy.parent().map_or(Ok(()), make_dir)?;
        files::write(&copy, value)?;
        bind(&copy, &original)?;
    }
    Ok(())
}

/// Raises the hard limit, which containers inherit. The soft limit stays, since some programs close every possible
/// descriptor, which takes long with a high one.
fn raise_files() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if hard >= FEW_FILES {
        return;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, soft, FILES) {
        Ok(()) => log::debug!(target: "limits", "raised the limit of open files from {hard} to {FILES}"),
        Err(cause) => {
            log::debug!(target: "limits", "cannot raise the limit of {hard} open files per process: {cause}. docker run --ulimit nofile={FILES}")
        }
    }
}

/// The value to write if the current one is lower. 0 may mean that there is no limit.
fn raised(current: u64, wanted: u64) -> Option<u64> {
    (current != 0 && current < wanted).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_never_lowered() {
        for (current, wanted, expected) in [(128, 8192, Some(8192)), (8192, 8192, None), (1 << 30, 8192, None), (0, 8192, None)] {
            assert_eq!(raised(current, wanted), expected, "{current}");
        }
    }
}
