//! Shows kubelet other files than the machine's, in a mount namespace of its own: the container's limits
//! (`KIND_ENFORCE_CAPACITY`), and kernel settings that it may write to (`KIND_SYSCTLS=0`).

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{mount, MsFlags};
use nix::sched::{unshare, CloneFlags};

use crate::config::{Config, EXEC_WITH_VIEW};
use crate::error::{Error, Result};
use crate::node::{capacity, limits};

const NONE: Option<&str> = None;

/// How to start kubelet so that it sees them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KubeletView {
    wrapped: bool,
    flags: Vec<String>,
}

impl KubeletView {
    /// Prepares what the settings ask for.
    pub fn prepare(config: &Config) -> Result<KubeletView> {
        if !config.sysctls {
            limits::copy_kubelets()?;
        }
        let flags = if config.enforce_capacity { capacity::prepare()? } else { vec![] };
        Ok(KubeletView { wrapped: config.enforce_capacity || !config.sysctls, flags })
    }

    /// The kubelet command with these files in view; the caller adds flags.
    pub fn kubelet(&self) -> Command {
        let mut command = Command::new(if self.wrapped { "/proc/self/exe" } else { "kubelet" });
        if self.wrapped {
            command.args([EXEC_WITH_VIEW, "kubelet"]);
        }
        command.args(&self.flags);
        command
    }
}

/// Runs between fork and kubelet. All other mounts stay shared with the container, because containerd must
/// see the volumes that kubelet mounts for pods. Returns only if exec fails.
pub fn exec(argv: &[String]) -> Error {
    let Some((program, arguments)) = argv.split_first() else { return Error::new("nothing to exec") };
    if let Err(error) = disguise() {
        return error;
    }
    let cause = Command::new(program).args(arguments).exec();
    Error::new(format!("cannot run {program}: {cause}"))
}

fn disguise() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|cause| Error::new(format!("cannot unshare the mount namespace: {cause}")))?;
    for parent in ["/proc", "/sys"] {
        mount(NONE, parent, NONE, MsFlags::MS_PRIVATE, NONE).map_err(|cause| Error::io("make private", parent, cause))?;
    }
    let shown = [("meminfo", capacity::MEMINFO), ("node", capacity::NODES)];
    let shown = shown.map(|(part, target)| (capacity::directory().join(part), PathBuf::from(target)));
    for (source, target) in shown.into_iter().chain(limits::kubelets_copies()).filter(|(source, _)| source.exists()) {
        bind(&source, &target)?;
    }
    Ok(())
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    let done = mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE);
    done.map_err(|cause| Error::io(&format!("bind {} to", source.display()), target, cause))
}
