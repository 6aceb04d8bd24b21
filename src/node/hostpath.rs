//! Persistent volumes that pods can write: kube-controller-manager's host-path provisioner makes
//! directories of mode 0750 owned by root, and a pod that is not root could not use them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::config::HOSTPATH_DIR;
use crate::error::{Error, Result};

/// Like /tmp itself, without the sticky bit: pods of any user share a volume's files.
const MODE: u32 = 0o777;

/// Opens new volumes to everyone as they appear, in a thread that sleeps until one does.
pub fn watch() -> Result<()> {
    let fail = |cause| Error::io("watch", HOSTPATH_DIR, cause);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).map_err(fail)?;
    inotify.add_watch(HOSTPATH_DIR, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR).map_err(fail)?;
    let watch = move || loop {
        match inotify.read_events() {
            Ok(events) => {
                events.iter().filter_map(|event| event.name.as_ref()).for_each(|name| open_up(&Path::new(HOSTPATH_DIR).join(name)))
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(cause) => {
                return log::error!(target: "volumes", "cannot watch {HOSTPATH_DIR}: {cause}: pods that are not root cannot write new volumes")
            }
        }
    };
    let started = thread::Builder::new().name("volumes".into()).spawn(watch);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the thread for volumes: {cause}")))
}

fn open_up(path: &Path) {
    if let Err(cause) = fs::set_permissions(path, Permissions::from_mode(MODE)) {
        // A volume may be deleted as soon as it was made.
        if cause.kind() != std::io::ErrorKind::NotFound {
            log::warn!(target: "volumes", "cannot open {} to everyone: {cause}", path.display());
        }
    }
}
