//! The user's scripts, run in the node while it is baked. build.sh puts them into the container.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::boot::scripts;
use crate::config::RUN_DIR;
use crate::error::{Error, Result};
use crate::node::mounts;
use crate::supervisor::reaper;

/// The hooks folder's script, and the one that lay beside build.sh, as in the first kind.
pub const BEFORE_CLUSTER: &[&str] = &["/hooks/before-cluster.sh", "/hooks/root-before-cluster.sh"];
pub const AFTER_CLUSTER: &[&str] = &["/hooks/after-cluster.sh", "/hooks/root-after-cluster.sh"];
pub const IMAGES: &str = "/images.sh";

/// Goes before the real docker in the scripts' PATH. Whoever bakes from a bundle has no registry: what
/// is there is not pulled again, and a login that fails is no reason to stop when nothing is left to pull.
const DOCKER: &str = r#"#!/bin/sh
real=/usr/local/bin/docker
if [ "$1 $#" = "pull 2" ] && "$real" image inspect "$2" >/dev/null 2>&1; then
  echo "$2 is there already"
  exit 0
fi
if [ "$1 $2 $#" = "image pull 3" ] && "$real" image inspect "$3" >/dev/null 2>&1; then
  echo "$3 is there already"
  exit 0
fi
if [ "$1" = login ] && [ -n "$KIND_BUNDLE_COMPLETE" ]; then
  "$real" "$@" || echo "docker login failed: going on, as the bundle holds what the scripts pulled when it was made" >&2
  exit 0
fi
exec "$real" "$@"
"#;

pub struct Hooks {
    environment: Vec<(&'static str, String)>,
}

impl Hooks {
    /// `complete`: the bundle holds whatever the scripts pull.
    pub fn prepare(static_ip: Ipv4Addr, complete: bool) -> Result<Hooks> {
        let directory = Path::new(RUN_DIR).join("bin");
        mounts::make_dir(&directory)?;
        let docker = directory.join("docker");
        let made = fs::write(&docker, DOCKER).and_then(|()| fs::set_permissions(&docker, PermissionsExt::from_mode(0o755)));
        made.map_err(|cause| Error::io("write", &docker, cause))?;

        let mut environment = scripts::environment(static_ip);
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
        environment.push(("PATH", format!("{}:{path}", directory.display())));
        if complete {
            environment.push(("KIND_BUNDLE_COMPLETE", "1".into()));
        }
        Ok(Hooks { environment })
    }

    /// Runs those scripts that are there; their output is the build's, and a failure the build's failure.
    pub fn run(&self, paths: &[&str]) -> Result<()> {
        for path in paths.iter().filter(|path| Path::new(path).exists()) {
            log::info!(target: "hook", "running {path}");
            let started = Instant::now();
            reaper::run_visibly(Command::new("bash").arg(path).current_dir("/").envs(self.environment.iter().cloned()))
                .map_err(|error| error.advise("Its own output is above; nothing was committed"))?;
            log::info!(target: "hook", "{path} done in {:.1} s", started.elapsed().as_secs_f64());
        }
        Ok(())
    }
}
