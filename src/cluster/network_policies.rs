//! Says of each NetworkPolicy that the bridge of this cluster does not enforce it: the API server accepts
//! them whether or not anybody does, and a test that rests on one would pass or fail for a wrong reason.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cluster::api::Api;
use crate::cluster::objects::{List, Meta};
use crate::cluster::{events, follow};
use crate::error::Result;
use crate::readiness::State;
use crate::supervisor::Init;

const API_VERSION: &str = "networking.k8s.io/v1";
const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
const MESSAGE: &str = "this cluster's own network does not enforce NetworkPolicies: traffic is restricted only where you have \
                       installed a network or a controller that does";

/// Follows them from the moment on in which the cluster is up, so that this costs its start nothing.
pub fn start(init: &Arc<Init>, api: Arc<Api>) -> Result<()> {
    let told = RefCell::new(BTreeSet::new());
    follow::start(init, "policies", State::cluster_up, move || follow(&api, &mut told.borrow_mut()))
}

/// Tells of each policy once, until the watch ends.
fn follow(api: &Api, told: &mut BTreeSet<String>) -> Result<()> {
    let list: List<Meta> = api.get(POLICIES)?;
    for policy in &list.items {
        tell(api, told, policy);
    }
    // Without bookmarks, which would wake us every minute.
    for event in api.watch::<Meta>(&format!("{POLICIES}?watch=1&resourceVersion={}", list.metadata.resource_version))? {
        let event = event?;
        if event.kind == "ADDED" {
            tell(api, told, &event.object);
        }
    }
    Ok(())
}

fn tell(api: &Api, told: &mut BTreeSet<String>, policy: &Meta) {
    if !told.insert(policy.metadata.uid.clone()) {
        return;
    }
    log::warn!(target: "network", "NetworkPolicy {}: {MESSAGE}", policy.metadata.full_name());
    let event = events::Told {
        api_version: API_VERSION,
        kind: "NetworkPolicy",
        metadata: &policy.metadata,
        is_warning: true,
        reason: "NotEnforced",
        message: MESSAGE,
    };
    // The log has it.
    let _ = events::tell(api, &event);
}
