//! The user's scripts, run in the node while it is baked. build.sh puts them into the container.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::config::ADMIN_KUBECONFIG;
use crate::error::Result;
use crate::reaper;

pub const BEFORE_CLUSTER: &str = "/hooks/before-cluster.sh";
pub const AFTER_CLUSTER: &str = "/hooks/after-cluster.sh";
pub const IMAGES: &str = "/images.sh";

/// Runs a script where there is one; its output is the build's, and its failure the build's failure.
pub fn run(path: &str) -> Result<()> {
    if !Path::new(path).exists() {
        return Ok(());
    }
    log::info!(target: "hook", "running {path}");
    let started = Instant::now();
    reaper::run_visibly(Command::new("bash").arg(path).current_dir("/").env("KUBECONFIG", ADMIN_KUBECONFIG))
        .map_err(|error| error.advise("Its own output is above; nothing was committed"))?;
    log::info!(target: "hook", "{path} done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}
