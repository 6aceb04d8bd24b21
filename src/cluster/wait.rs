//! What in the cluster is not Ready, and waiting until everything is: for the bake, for the user's manifests, and
//! for `kind status`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::cluster::api::Api;
use crate::cluster::objects::{List, Node, Pod, Workload};
use crate::cluster::{node, pods, postmortem, API_SERVER};
use crate::config::{CLUSTER_LIMIT, POD_LOG_DIR};
use crate::error::{Error, Result};
use crate::readiness::NoValue;
use crate::supervisor::Init;

const POLL: Duration = Duration::from_millis(250);

/// An API server ends by itself, and is started again, if etcd is slow to come up; with settings that it does not take it
/// does so for ever.
const MOST_RESTARTS: u32 = 3;

/// # Errors
/// It is not ready in time, or ends again and again.
pub fn for_api_server(init: &Init, api: &Api) -> Result<()> {
    until(init, || {
        let restarts = postmortem::restarts(Path::new(POD_LOG_DIR), API_SERVER);
        match api.is_ready() {
            true => Ok(vec![]),
            false if restarts > MOST_RESTARTS => {
                Err(Error::new(format!("the API server does not stay up: it was started again {restarts} times")))
            }
            false => Ok(vec!["the API server".to_string()]),
        }
    })
}

/// Waits until the node, every workload and every pod is Ready.
pub fn for_everything(init: &Init, api: &Api) -> Result<()> {
    until(init, || Ok(unready(api, &BTreeSet::new()).unwrap_or_else(|error| vec![error.to_string()])))
}

fn until(init: &Init, mut unready: impl FnMut() -> Result<Vec<String>>) -> Result<()> {
    let gave_up = || Err(Error::new("gave up waiting: a daemon has failed, or the container is stopping"));
    let mut last = vec![];
    let ready = init.readiness.poll(POLL, CLUSTER_LIMIT, || {
        // A failure was logged when it happened.
        if init.readiness.state().failure.is_some() {
            return Some(gave_up());
        }
        match unready() {
            Ok(unready) => last = unready,
            Err(error) => return Some(Err(error)),
        }
        last.is_empty().then_some(Ok(()))
    });
    ready.unwrap_or_else(|why| match why {
        NoValue::IsOver => gave_up(),
        NoValue::Late => Err(Error::new(format!("not ready after {} s: {}", CLUSTER_LIMIT.as_secs(), last.join(", ")))),
    })
}

/// What is not Ready, and why. Containers with an id in `baked` count as not started.
pub fn unready(api: &Api, baked: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut unready = vec![];
    for node in api.get::<List<Node>>("/api/v1/nodes")?.items {
        if !node::is_ready(&node) {
            unready.push("the node".to_string());
        }
    }
    // A workload that was just applied has no pods yet, so the list of pods is not enough.
    for kind in ["daemonsets", "deployments", "statefulsets"] {
        for Workload { metadata, spec, status } in api.get::<List<Workload>>(&format!("/apis/apps/v1/{kind}"))?.items {
            let (wanted, ready) = match kind {
                "daemonsets" => (status.desired_number_scheduled, status.number_ready),
                _ => (spec.replicas, status.ready_replicas),
            };
            if status.observed_generation != metadata.generation || ready < wanted {
                unready.push(format!("{kind} {}", metadata.full_name()));
            }
        }
    }
    let pods = api.get::<List<Pod>>("/api/v1/pods")?.items;
    // kubelet reports static pods to the API server some time after it has started them.
    for pod in api.kubelets_pods()?.iter().filter(|pod| pods::is_from_file(pod)) {
        let name = pod.metadata.full_name();
        if !pods.iter().any(|pod| pod.metadata.full_name() == name) {
            unready.push(format!("{name}: does not exist"));
        }
    }
    for pod in &pods {
        if let Err(why) = pods::explain(pod, baked) {
            unready.push(format!("{}: {why}", pod.metadata.full_name()));
        }
    }
    Ok(unready)
}
