//! `kind status` and `kind healthcheck`, from the files under `/var/kind`.

use crate::cluster::api::Api;
use crate::cluster::wait;
use crate::cluster::Cluster;
use crate::config::{Config, CLUSTER_FILE, CREDENTIALS_DIR, STATE_DIR};
use crate::error::Result;
use crate::readiness::files::{CONTROL_PLANE, DOCKER_READY, FAILED, KUBERNETES_READY, TIMELINE, WAITING};
use std::fs;
use std::path::{Path, PathBuf};

/// What `kind status` prints: the states, what is not ready, and the timeline.
pub fn text() -> Result<String> {
    let states = States::read()?;
    let yes_no = |name| if states.exists(name) { "yes" } else { "no" };
    let mut text = format!("docker-ready      {}\nkubernetes-ready  {}\n", yes_no(DOCKER_READY), yes_no(KUBERNETES_READY));
    if let Some(how) = states.text(CONTROL_PLANE) {
        text.push_str(&format!("control plane     {how}\n"));
    }
    if let Some(why) = states.text(FAILED) {
        text.push_str(&format!("failed            {}\n", why.trim_end()));
    }
    if states.has_cluster {
        let waiting = states.not_ready();
        if !waiting.is_empty() {
            text.push_str("\nnot ready\n");
            text.extend(waiting.iter().map(|line| format!("  {line}\n")));
        }
    }
    if let Some(timeline) = states.text(TIMELINE) {
        text.push_str("\nseconds  milestone\n");
        let lines = timeline.lines().filter_map(|line| line.split_once(' '));
        text.extend(lines.map(|(seconds, name)| format!("{seconds:>7}  {name}\n")));
    }
    Ok(text)
}

/// Whether the node is ready: Kubernetes if a cluster is baked in, otherwise Docker.
pub fn is_healthy() -> Result<bool> {
    let states = States::read()?;
    let wanted = if states.has_cluster { KUBERNETES_READY } else { DOCKER_READY };
    Ok(states.exists(wanted) && !states.exists(FAILED))
}

struct States {
    dir: PathBuf,
    has_cluster: bool,
}

impl States {
    fn read() -> Result<States> {
        let config = Config::from_env(|name| std::env::var(name).ok())?;
        Ok(States { dir: config.path(STATE_DIR), has_cluster: config.path(CLUSTER_FILE).exists() })
    }

    fn exists(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    /// Every pod and workload that is not ready, the user's included, as the API server reports them. If it does
    /// not answer, what the init is waiting for.
    fn not_ready(&self) -> Vec<String> {
        let ask = || {
            let cluster = Cluster::load(Path::new(CLUSTER_FILE)).ok()??;
            let api = Api::new(Path::new(CREDENTIALS_DIR), cluster.static_ip).ok()?;
            wait::unready(&api, &cluster.containers).ok()
        };
        ask().unwrap_or_else(|| self.text(WAITING).unwrap_or_default().lines().map(str::to_string).collect())
    }

    fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(name)).ok()
    }
}
