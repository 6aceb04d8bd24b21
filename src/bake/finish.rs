//! What a bake alone has to clean up at its end.

use std::path::Path;

use crate::bake::bundle::BIN_DIR;
use crate::bake::hooks;
use crate::config::{LOG_DIR, STATE_DIR};
use crate::error::Result;
use crate::files;
use crate::readiness::files::{WAIT_SCRIPT, WAIT_SCRIPT_TEXT};
use crate::supervisor::Init;

/// Removes what must not be in the image: the hooks and the traces of the bake.
pub fn clean_up(init: &Init) -> Result<()> {
    init.readiness.clear()?;
    for path in [
        "/hooks",
        hooks::IMAGES,
        LOG_DIR,
        STATE_DIR,
        "/var/log/containers",
        "/etc/kubernetes/tmp",
        // 40 to 75 MB that only a bake needs.
        "/usr/local/bin/kubeadm",
    ] {
        files::remove_any(path)?;
    }
    // So that the image can also be a job's image.
    files::replace(Path::new(BIN_DIR).join(WAIT_SCRIPT), WAIT_SCRIPT_TEXT, 0o755)
}
