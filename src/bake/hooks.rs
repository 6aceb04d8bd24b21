//! The user's scripts, run in the node while it is baked. build.sh puts them into the container.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::bake::home;
use crate::boot::scripts;
use crate::config::RUN_DIR;
use crate::error::Result;
use crate::files;
use crate::node::cluster_network::ClusterNetwork;
use crate::supervisor::reaper;

/// The script in the hooks directory, and the one next to build.sh, as in the first kind.
pub const BEFORE_CLUSTER: &[&str] = &["/hooks/before-cluster.sh", "/hooks/root-before-cluster.sh"];
pub const AFTER_CLUSTER: &[&str] = &["/hooks/after-cluster.sh", "/hooks/root-after-cluster.sh"];
pub const IMAGES: &str = "/images.sh";

/// Goes before the real docker in the scripts' PATH.
const DOCKER: &str = include_str!("docker.sh");

pub struct Hooks {
    environment: Vec<(&'static str, String)>,
}

impl Hooks {
    /// `complete`: the bundle contains everything that the scripts pull.
    pub fn prepare(static_ip: Ipv4Addr, cluster: &ClusterNetwork, complete: bool) -> Result<Hooks> {
        let directory = Path::new(RUN_DIR).join("bin");
        files::make_dir(&directory)?;
        files::replace(directory.join("docker"), DOCKER, 0o755)?;

        let mut environment = scripts::environment(static_ip, cluster);
        environment.extend(home::environment());
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
        environment.push(("PATH", format!("{}:{path}", directory.display())));
        if complete {
            environment.push(("KIND_BUNDLE_COMPLETE", "1".into()));
        }
        Ok(Hooks { environment })
    }

    /// Runs the scripts that exist. Their output becomes the build's output, and a failure fails the build.
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Runs the scripts' docker with `sh`, in front of an engine that has `app:1` for linux/arm64/v8 and `import:1` without
    /// a variant. Returns what it prints: the real docker's words begin with "real".
    fn docker(arguments: &str, environment: &[(&str, &str)]) -> String {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let dir = std::env::temp_dir().join(format!("kind-docker-{}-{}", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&dir).unwrap();
        let (real, ours) = (dir.join("real"), dir.join("docker"));
        let engine = r#"case "$*" in
            "image inspect "*" app:1") echo linux/arm64/v8 ;;
            "image inspect "*" import:1") echo linux/amd64/ ;;
            "image inspect "* | "login broken") exit 1 ;;
            *) echo "real $*" ;;
        esac"#;
        fs::write(&ours, DOCKER.replace("/usr/local/bin/docker", &real.to_string_lossy())).unwrap();
        #[allow(clippy::disallowed_methods, reason = "nobody else reaps in a test of a script")]
        let output = Command::new("sh")
            // While another thread's child has a descriptor of ours, a program that is being written cannot be run.
            .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$2\" && chmod 755 \"$2\" && shift 2 && exec sh \"$0\" \"$@\""])
            .args([ours.as_os_str(), engine.as_ref(), real.as_os_str()])
            .args(arguments.split(' '))
            .env_remove("DOCKER_DEFAULT_PLATFORM")
            .env_remove("KIND_BUNDLE_COMPLETE")
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_string()
    }

    #[test]
    fn a_pull_of_what_is_there_asks_nobody_and_everything_else_is_the_real_dockers() {
        for (arguments, is_there) in [
            ("pull app:1", true),
            ("image pull app:1", true),
            ("pull -q app:1", true),
            ("image pull app:1 --quiet", true),
            ("pull --platform linux/arm64 app:1", true),
            ("pull app:1 --platform=linux/arm64/v8", true),
            ("pull --quiet --platform linux/arm64 app:1", true),
            ("pull --platform linux/amd64 import:1", true),
            ("pull other:1", false),
            ("pull --platform linux/amd64 app:1", false),
            ("pull --platform=linux/arm64/v7 app:1", false),
            ("pull --platform linux/arm64 import:1", false),
            ("pull --platform", false),
            ("pull -a app:1", false),
            ("pull", false),
            ("image", false),
            ("images", false),
            ("image rm app:1", false),
            ("login registry", false),
        ] {
            let image = arguments.split(' ').find(|word| word.ends_with(":1")).unwrap_or_default();
            let expected = if is_there { image.to_string() } else { format!("real {arguments}") };
            assert_eq!(docker(arguments, &[]), expected, "{arguments}");
        }
        assert_eq!(docker("pull app:1", &[("DOCKER_DEFAULT_PLATFORM", "linux/amd64")]), "real pull app:1");
    }

    #[test]
    fn with_a_complete_bundle_a_login_that_fails_is_no_error() {
        assert_eq!(docker("login broken", &[("KIND_BUNDLE_COMPLETE", "1")]), "");
        assert_eq!(docker("login registry", &[("KIND_BUNDLE_COMPLETE", "1")]), "real login registry");
    }
}
