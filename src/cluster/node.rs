//! Whether the node is Ready. Pods can be before it: kubelet tells of the node at times of its own, and until then the
//! scheduler places nothing on it.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::api::Api;
use crate::cluster::follow;
use crate::cluster::objects::Node;
use crate::config::NODE_NAME;
use crate::error::Result;
use crate::readiness::{Pods, State};
use crate::supervisor::Init;

/// It is a matter of at most a second, in which new kubelets look at the node every 100 ms.
const POLL: Duration = Duration::from_millis(100);

/// Asks whenever the pods have become ready, until the node is. When it no longer is, the control plane says of its pods
/// that they are not.
pub fn start(init: &Arc<Init>, api: Arc<Api>) -> Result<()> {
    let asking = init.clone();
    follow::start(init, "node", is_unknown, move || ask_until_ready(&asking, &api))
}

fn is_unknown(state: &State) -> bool {
    state.pods == Pods::Ready && !state.node && !state.ending
}

fn ask_until_ready(init: &Init, api: &Api) -> Result<()> {
    let outages = init.readiness.state().outages;
    while is_unknown(&init.readiness.state()) {
        if is_ready(&api.get(&format!("/api/v1/nodes/{NODE_NAME}"))?) {
            // What was true before an outage of the pods does not count.
            init.readiness.update(|state| state.node |= state.pods == Pods::Ready && state.outages == outages);
            return Ok(());
        }
        init.shutdown.pause(POLL);
    }
    Ok(())
}

pub fn is_ready(node: &Node) -> bool {
    node.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True")
}
