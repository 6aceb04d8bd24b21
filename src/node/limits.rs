//! Raises limits of the kernel that a node with many pods reaches. Never lowers one.

use std::fs;

use nix::sys::resource::{getrlimit, setrlimit, Resource};

use crate::config::Config;

const SYSCTL_DIR: &str = "/proc/sys";
/// The inotify limits are from kind.sigs.k8s.io/docs/user/known-issues (pods with "too many open files"), the last
/// is what databases and search engines ask for (elastic.co, "Increase virtual memory").
const SYSCTLS: [(&str, u64); 3] =
    [("fs/inotify/max_user_instances", 8192), ("fs/inotify/max_user_watches", 524_288), ("vm/max_map_count", 262_144)];
/// Open files per process: below the first, containerd runs out with many pods; the second is Docker's own limit.
const FEW_FILES: u64 = 65_536;
const FILES: u64 = 1_048_576;

pub fn raise(config: &Config) {
    for (name, wanted) in SYSCTLS {
        let path = config.path(SYSCTL_DIR).join(name);
        let current = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        let Some(value) = current.and_then(|current| raised(current, wanted)) else { continue };
        match fs::write(&path, value.to_string()) {
            Ok(()) => log::debug!(target: "limits", "raised {name} to {value}"),
            Err(cause) => log::info!(target: "limits", "cannot raise {name} above {}: {cause}", current.unwrap_or_default()),
        }
    }
    raise_files();
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
