//! Makes persistent volumes writable: kube-controller-manager's host-path provisioner creates directories of mode
//! 0750 owned by root, which a pod that does not run as root cannot use.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::config::HOSTPATH_DIR;
use crate::error::{Error, Result};
use crate::threads;

/// The mode of /tmp without the sticky bit, since pods of different users share the files of a volume.
const MODE: u32 = 0o777;
/// That of the provisioner's directories. What has another one is a baked volume that a reset puts back.
const PROVISIONERS: u32 = 0o750;

/// Starts a thread that makes each new volume writable. It sleeps until one appears.
pub fn watch() -> Result<()> {
    let fail = |cause| Error::io("watch", HOSTPATH_DIR, cause);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).map_err(fail)?;
    inotify.add_watch(HOSTPATH_DIR, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR).map_err(fail)?;
    let watch = move || loop {
        match inotify.read_events() {
            Ok(events) => {
                events.iter().filter_map(|event| event.name.as_ref()).for_each(|name| make_writable(&Path::new(HOSTPATH_DIR).join(name)))
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(cause) => {
                return log::error!(target: "volumes", "cannot watch {HOSTPATH_DIR}: {cause}. Pods that do not run as root cannot write to new volumes")
            }
        }
    };
    threads::start("volumes", watch)
}

fn make_writable(path: &Path) {
    let widen = || match fs::metadata(path)?.permissions().mode() & 0o777 {
        PROVISIONERS => fs::set_permissions(path, Permissions::from_mode(MODE)),
        _ => Ok(()),
    };
    if let Err(cause) = widen() {
        // A volume may be deleted right after it was created.
        if cause.kind() != std::io::ErrorKind::NotFound {
            log::warn!(target: "volumes", "cannot make {} writable: {cause}", path.display());
        }
    }
}
