//! `kind status` and `kind healthcheck`, from the files under `/var/kind`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::cluster::api::Api;
use crate::cluster::wait;
use crate::cluster::Cluster;
use crate::config::{Config, CLUSTER_FILE, CREDENTIALS_DIR, DOCKER_DIR, STATE_DIR};
use crate::error::{Error, Result};
use crate::node::state_dir::StateDir;
use crate::node::store;
use crate::readiness::document::Document;
use crate::readiness::files::{DOCKER_READY, FAILED, KUBERNETES_READY, STATUS};

/// What `kind status` prints: the states, what is not ready, and the timeline.
pub fn text() -> Result<String> {
    let mut status = read()?;
    if status.has_cluster {
        status.waiting = not_ready().unwrap_or(status.waiting);
    }
    let volume = Config::from_env(|name| std::env::var(name).ok())?.path(DOCKER_DIR);
    let full = store::lack_of_room(&volume).ok().flatten();
    Ok(full.map(|why| format!("{why}\n\n")).unwrap_or_default() + &status.to_text())
}

/// What `kind status --output json` prints, which `/status.json` serves too.
pub fn json() -> Result<String> {
    let path = Config::from_env(|name| std::env::var(name).ok())?.path(STATE_DIR).join(STATUS);
    fs::read_to_string(&path).map_err(|cause| match (cause.kind(), path.parent().is_some_and(Path::exists)) {
        (ErrorKind::NotFound, false) => Error::does_not_run_here(),
        (ErrorKind::NotFound, true) => {
            Error::new(format!("kind could not write {}", path.display())).advise("Its log, `docker logs`, has the reason")
        }
        _ => Error::io("read", path, cause),
    })
}

/// What `kind healthcheck` can be asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Service {
    Docker,
    Kubernetes,
}

/// Whether this is ready; if nothing is named, whether the node is: Kubernetes if a cluster is baked in, otherwise Docker.
pub fn is_healthy(service: Option<Service>) -> Result<bool> {
    let config = Config::from_env(|name| std::env::var(name).ok())?;
    let exists = |name| config.path(STATE_DIR).join(name).exists();
    let has_cluster = config.path(CLUSTER_FILE).exists();
    match service {
        // Docker goes on without a cluster that has failed.
        Some(Service::Docker) => return Ok(exists(DOCKER_READY)),
        Some(Service::Kubernetes) if !has_cluster => {
            return Err(Error::new("no cluster is baked into this image").advise("`kind healthcheck docker` asks for Docker alone"));
        }
        _ => {}
    }
    Ok(exists(if has_cluster { KUBERNETES_READY } else { DOCKER_READY }) && !exists(FAILED))
}

fn read() -> Result<Document> {
    serde_json::from_str(&json()?).map_err(|cause| Error::new(format!("{STATUS} is not what this version of kind writes: {cause}")))
}

/// Every pod and workload that is not ready, the user's included, as the API server reports them, if it answers.
fn not_ready() -> Option<Vec<String>> {
    let cluster = Cluster::load(&StateDir::current().cluster_file()).ok()??;
    let api = Api::new(Path::new(CREDENTIALS_DIR), cluster.static_ip).ok()?;
    wait::unready(&api, &cluster.containers).ok()
}
