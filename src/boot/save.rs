//! `kind save` in a running node: the end of a bake (`save`), while Docker goes on, and then the cluster begins again as it was
//! saved. With `--stop`, Docker stops too, and its images are put into the image.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::boot::stop_order::{stop_daemon, STOP_ORDER};
use crate::cluster::api::Api;
use crate::cluster::{wait, Cluster};
use crate::config::{CREDENTIALS_DIR, DOCKER_DIR, LOG_DIR, POLL};
use crate::daemons::containerd::CONTAINERD;
use crate::daemons::dockerd::DOCKERD;
use crate::daemons::image_names;
use crate::daemons::kubelet::KUBELET;
use crate::daemons::local_registry::Given;
use crate::daemons::tls;
use crate::error::{Error, Result};
use crate::files;
use crate::node::state_dir::StateDir;
use crate::node::{directories, mounts, store};
use crate::readiness::Operation;
use crate::save::{control_plane, dump, finish, pack};
use crate::supervisor::{reaper, stop, Init};

/// What BuildKit remembers of layers that are no longer there.
const BUILD_CACHE: &str = "buildkit";
/// Logins, which no image is to have.
const LOGINS: &str = "/root/.docker";
/// How long `kind save --stop` may take to say that it is done.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why the cluster must not be saved now, if so: a start would wait in vain for what is not Ready.
pub fn unfit() -> Option<String> {
    let unready = || {
        let cluster = Cluster::load(&StateDir::current().cluster_file())?.ok_or_else(|| Error::new("there is no cluster"))?;
        wait::unready(&Api::new(Path::new(CREDENTIALS_DIR), cluster.static_ip)?, &cluster.containers)
    };
    let unready = unready().unwrap_or_else(|error| vec![error.to_string()]);
    (!unready.is_empty()).then(|| format!("every start would wait for what is not Ready: {}", unready.join(", ")))
}

/// Stops the cluster as a bake does. Returns its description.
pub fn stop_cluster(init: &Init, cluster: &Cluster) -> Result<Cluster> {
    let api = Api::new(Path::new(CREDENTIALS_DIR), cluster.static_ip)?;
    control_plane::wait_until_it_runs()?;
    let cluster = finish::describe(&api, cluster.clone())?;
    stop_daemon(init, KUBELET);
    finish::stop_workloads(&api, &cluster)?;
    finish::stop_control_plane()?;
    Ok(cluster)
}

/// Saves a cluster whose programs have ended. If this fails, the one that was saved before still counts.
pub fn save(init: &Init, cluster: &Cluster, given: &Given, operation: Operation) -> Result<()> {
    let state = StateDir::create(&cluster.bake, operation == Operation::SaveAndStop)?;
    if operation == Operation::SaveAndStop {
        stop_docker(init, given, &state)?;
    } else {
        let names = StateDir::current().image_names();
        fs::copy(&names, state.image_names()).map_err(|cause| Error::io("copy", names, cause))?;
    }
    dump::control_plane(&state, dump::starts(), cluster.static_ip);
    directories::save_seeds(&state)?;
    finish::write(&state, cluster)?;
    store::add_to_stamp(&cluster.bake)?;
    if operation == Operation::SaveAndStop {
        remove_secrets()?;
        store::forget_starts()?;
    }
    state.make_current()?;
    log::info!(target: "save", "saved: resets and restarts return to the cluster as it is now");
    Ok(())
}

/// Stops Docker and containerd, and puts what they have into the image.
fn stop_docker(init: &Init, given: &Given, state: &StateDir) -> Result<()> {
    finish::remove_containers()?;
    finish::prune_images()?;
    image_names::tidy(given)?;
    stop_daemon(init, DOCKERD);
    finish::settle_images(state)?;
    stop_daemon(init, CONTAINERD);
    files::remove_tree(Path::new(DOCKER_DIR).join(BUILD_CACHE))?;
    pack::pack(state, &[])
}

/// Removes from the container's own layer what no image is to have, and what the next start makes again.
fn remove_secrets() -> Result<()> {
    let certificates = std::env::var(tls::DIRECTORY).unwrap_or_default();
    for path in [LOGINS, certificates.as_str(), LOG_DIR] {
        // A commit leaves out what is mounted.
        if !path.is_empty() && !mounts::has_mounts_below(path) {
            files::remove_tree(path)?;
        }
    }
    Ok(())
}

/// Ends the container once `kind save --stop` has seen that the cluster is saved.
pub fn end(init: &Init) -> ! {
    reaper::poll(POLL, LAST_WORDS, || (!is_waited_for()).then_some(()));
    std::process::exit(stop::everything(init, &STOP_ORDER).into())
}

fn is_waited_for() -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut arguments = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    arguments.any(|arguments| arguments.ends_with(b"\0save\0--stop\0"))
}
