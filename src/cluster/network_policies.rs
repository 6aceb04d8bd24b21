//! Says of each NetworkPolicy that the bridge of this cluster does not enforce it: the API server accepts
//! them whether or not anybody does, and a test that rests on one would pass or fail for a wrong reason.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cluster::api::{Api, Change};
use crate::cluster::objects::Meta;
use crate::cluster::{events, watcher};
use crate::error::Result;
use crate::readiness::State;
use crate::supervisor::Init;

const API_VERSION: &str = "networking.k8s.io/v1";
const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
const MESSAGE: &str = "this cluster's own network does not enforce NetworkPolicies: traffic is restricted only where you have \
                       installed a network or a controller that does";

/// Follows them from the moment on in which the cluster is up, so that this costs its start nothing.
pub fn start(init: &Arc<Init>, api: Arc<Api>) -> Result<()> {
    let mut reported = BTreeSet::new();
    watcher::start(init, "policies", State::cluster_up, move || {
        api.watch(POLICIES, |change| {
            match change {
                Change::All(policies) => policies.iter().for_each(|policy| report(&api, &mut reported, policy)),
                Change::Put(policy) => report(&api, &mut reported, &policy),
                Change::Deleted(_) => {}
            }
            Ok(())
        })
    })
}

/// Once for each policy.
fn report(api: &Api, reported: &mut BTreeSet<String>, policy: &Meta) {
    if !reported.insert(policy.metadata.uid.clone()) {
        return;
    }
    log::warn!(target: "network", "NetworkPolicy {}: {MESSAGE}", policy.metadata.full_name());
    let event = events::Report {
        api_version: API_VERSION,
        kind: "NetworkPolicy",
        metadata: &policy.metadata,
        is_warning: true,
        reason: "NotEnforced",
        message: MESSAGE,
    };
    // The log has it.
    let _ = events::create(api, &event);
}
