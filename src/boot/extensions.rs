//! What the user adds to the cluster before `kubernetes-ready`: images in `/kind/images`, manifests in
//! `/kind/manifests`, then `/kubernetes-ready.sh`, then the scripts in `/kubernetes-ready.d`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::boot::{image_archives, scripts};
use crate::cluster::api::Api;
use crate::cluster::Cluster;
use crate::cluster::{kubectl, wait};
use crate::config::{EXTENSIONS_LIMIT, IMAGES_DIR, MANIFESTS_DIR, READY_SCRIPT, READY_SCRIPTS_DIR};
use crate::error::{Error, Result};
use crate::files::{below, with_extensions};
use crate::node::cluster_network::ClusterNetwork;
use crate::readiness::{Extensions, NoValue, State};
use crate::supervisor::Init;
use crate::threads;

/// The milestone at which the cluster is up, and the user's manifests and scripts start.
pub const CLUSTER_UP: &str = "cluster";
/// In the environment of scripts that run again, after a reset.
const RESET: &str = "KIND_RESET";
const WAIT_POLL: Duration = Duration::from_millis(250);

/// The images, manifests and scripts, in order.
#[derive(Debug, Default, PartialEq)]
struct Work {
    images: Vec<PathBuf>,
    manifests: Vec<PathBuf>,
    scripts: Vec<PathBuf>,
}

/// Loads the images once Docker answers; applies the manifests and runs the scripts once the cluster is up. Starts no
/// thread if there are none. Scripts are told whether this is a reset.
pub fn start(init: &Arc<Init>, api: Arc<Api>, cluster: &Cluster, network: &ClusterNetwork, is_reset: bool) -> Result<()> {
    let work = Work::find(Path::new("/"))?;
    if work == Work::default() {
        init.readiness.update(|state| state.extensions = Extensions::Done);
        return Ok(());
    }
    let mut environment = scripts::environment(cluster.static_ip, network);
    environment.extend(is_reset.then(|| (RESET, "1".to_string())));
    let (init, cluster) = (init.clone(), cluster.clone());
    let body = move || match work.run(&init, &api, &cluster, &environment) {
        Ok(true) => init.readiness.update(|state| state.extensions = Extensions::Done),
        Ok(false) => {}
        Err(_) if init.readiness.is_over() => {}
        Err(error) => init.fail(&error),
    };
    threads::start("extensions", body)
}

impl Work {
    fn find(root: &Path) -> Result<Work> {
        let mut scripts: Vec<PathBuf> = Some(below(root, READY_SCRIPT)).into_iter().filter(|path| path.is_file()).collect();
        scripts.extend(with_extensions(below(root, READY_SCRIPTS_DIR), &["sh"])?);
        Ok(Work {
            images: with_extensions(below(root, IMAGES_DIR), &image_archives::EXTENSIONS)?,
            manifests: with_extensions(below(root, MANIFESTS_DIR), &["yaml", "yml", "json"])?,
            scripts,
        })
    }

    /// Returns whether all of it is done; if not, its cluster is over.
    fn run(&self, init: &Init, api: &Api, cluster: &Cluster, environment: &[(&'static str, String)]) -> Result<bool> {
        if !self.images.is_empty() {
            // Not earlier, so that clients who wait only for Docker do not wait longer.
            if !init.readiness.wait_until(State::docker_ready) {
                return Ok(false);
            }
            for path in &self.images {
                let waiting = vec![format!("{}: being loaded", path.display())];
                init.readiness.update(|state| state.extensions = Extensions::Waiting(waiting));
                image_archives::load(path)?;
            }
            init.readiness.milestone("images");
            init.readiness.update(|state| state.extensions = Extensions::default());
        }
        if !init.readiness.wait_until(State::cluster_up) {
            return Ok(false);
        }
        if self.manifests.is_empty() && self.scripts.is_empty() {
            return Ok(true);
        }
        init.readiness.milestone(CLUSTER_UP);
        let end = Instant::now() + EXTENSIONS_LIMIT;
        let left = || end.saturating_duration_since(Instant::now());
        let is_over = || init.readiness.is_over();
        if !self.manifests.is_empty() {
            let started = Instant::now();
            log::info!(target: "manifests", "the cluster is up: applying {} from {MANIFESTS_DIR}", with_plural(self.manifests.len(), "file"));
            for path in &self.manifests {
                if is_over() {
                    return Ok(false);
                }
                apply(path, left().min(kubectl::APPLY_LIMIT))?;
            }
            if !wait_for_everything(init, api, cluster, left())? {
                return Ok(false);
            }
            log::info!(target: "manifests", "applied, and all workloads Ready, after {:.1} s", started.elapsed().as_secs_f64());
            init.readiness.milestone("manifests");
        }
        if !self.scripts.is_empty() {
            for path in &self.scripts {
                if is_over() {
                    return Ok(false);
                }
                // At the stop it may go on as long as everything else.
                scripts::run(path, environment, left(), || is_over() && !init.shutdown.requested())?;
            }
            init.readiness.milestone("scripts");
        }
        Ok(true)
    }
}

fn with_plural(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn apply(path: &Path, limit: Duration) -> Result<()> {
    let said = kubectl::apply(path, limit).map_err(|error| Error::new(format!("{} cannot be applied: {error}", path.display())))?;
    said.lines().for_each(|line| log::info!(target: "manifests", "{line}"));
    Ok(())
}

/// Waits until every workload and pod is Ready, the user's and the cluster's. Returns false if the cluster is over before.
fn wait_for_everything(init: &Init, api: &Api, cluster: &Cluster, limit: Duration) -> Result<bool> {
    let mut waiting = vec![];
    let ready = init.readiness.poll(WAIT_POLL, limit, || {
        let now = wait::unready(api, &cluster.containers).unwrap_or_else(|error| vec![error.to_string()]);
        if now != waiting {
            init.readiness.update(|state| state.extensions = Extensions::Waiting(now.clone()));
            waiting = now;
        }
        waiting.is_empty().then_some(())
    });
    match ready {
        Ok(()) => Ok(true),
        Err(NoValue::IsOver) => Ok(false),
        Err(NoValue::Late) => {
            let (limit, waiting) = (EXTENSIONS_LIMIT.as_secs(), waiting.join(", "));
            Err(Error::new(format!("the manifests in {MANIFESTS_DIR} are not ready after {limit} s: {waiting}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn images_manifests_and_scripts_are_found_in_order() {
        let root = std::env::temp_dir().join(format!("kind-extensions-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        assert_eq!(Work::find(&root).unwrap(), Work::default());
        let file = |name: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        let ours = [
            "kind/images/b.tar",
            "kind/images/a.tar.gz",
            "kind/manifests/b.yml",
            "kind/manifests/a.yaml",
            "kubernetes-ready.d/20.sh",
            "kubernetes-ready.d/10.sh",
            "kubernetes-ready.sh",
        ];
        ours.iter().for_each(|name| file(name));
        // The directory that a ConfigMap's links point to, and files that are neither manifests nor scripts.
        ["kind/images/SHA256SUMS", "kind/manifests/..data/c.yaml", "kind/manifests/notes.txt", "kubernetes-ready.d/readme"]
            .iter()
            .for_each(|name| file(name));
        std::os::unix::fs::symlink(root.join("kind/manifests/..data/c.yaml"), root.join("kind/manifests/c.yaml")).unwrap();
        let found = Work::find(&root).unwrap();
        let names = |paths: &[PathBuf]| {
            paths.iter().map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&found.images), ["kind/images/a.tar.gz", "kind/images/b.tar"]);
        assert_eq!(names(&found.manifests), ["kind/manifests/a.yaml", "kind/manifests/b.yml", "kind/manifests/c.yaml"]);
        assert_eq!(names(&found.scripts), ["kubernetes-ready.sh", "kubernetes-ready.d/10.sh", "kubernetes-ready.d/20.sh"]);
        fs::remove_dir_all(&root).unwrap();
    }
}
