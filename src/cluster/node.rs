//! Whether the node is Ready and DNS answers, which is asked anew whenever the baked pods have become Ready.
//!
//! Pods can be Ready before the node: kubelet reports the node at times of its own, and until then the scheduler places
//! nothing on it. When the node no longer is, the control plane says of its pods that they are not.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::api::Api;
use crate::cluster::dns::Queries;
use crate::cluster::objects::Node;
use crate::cluster::{watcher, Cluster};
use crate::config::NODE_NAME;
use crate::error::Result;
use crate::readiness::{Pods, State};
use crate::supervisor::Init;

/// It is a matter of at most a second, in which new kubelets look at the node every 100 ms.
const POLL: Duration = Duration::from_millis(100);

/// The milestone at which every baked pod is Ready for the first time.
pub const PODS: &str = "pods";

/// Asks until the answers are yes. A cluster without a Service for its DNS counts as answered.
pub fn start(init: &Arc<Init>, api: Arc<Api>, cluster: &Cluster) -> Result<()> {
    let (asking, dns, has_bridge) = (init.clone(), cluster.dns, cluster.network.has_bridge);
    watcher::start(init, "node", is_unknown, move || {
        ask(&asking, &api, dns.map(|dns| Queries::new(dns, has_bridge)));
        Ok(())
    })
}

fn is_unknown(state: &State) -> bool {
    state.pods == Pods::Ready && !(state.node && state.dns) && !state.ending
}

fn ask(init: &Init, api: &Api, mut queries: Option<Queries>) {
    if !init.readiness.has_reached(PODS) {
        log::info!(target: "cluster", "every baked pod is Ready");
        init.readiness.milestone(PODS);
    }
    let asked = init.readiness.state();
    loop {
        let state = init.readiness.state();
        if !is_unknown(&state) || state.outages != asked.outages {
            return;
        }
        if let (Some(queries), false) = (&mut queries, state.dns) {
            queries.send();
        }
        let node = state.node || api.get(&format!("/api/v1/nodes/{NODE_NAME}")).is_ok_and(|node| is_ready(&node));
        let dns = state.dns || queries.as_mut().is_none_or(Queries::wait_for_answer);
        if dns && !state.dns && queries.is_some() {
            init.readiness.milestone("dns");
        }
        init.readiness.update(|state| confirm(state, &asked, node, dns));
        if dns && !node {
            init.readiness.pause(POLL);
        }
    }
}

/// What was true before an outage of the pods does not count.
fn confirm(state: &mut State, asked: &State, node: bool, dns: bool) {
    if state.pods == Pods::Ready && state.outages == asked.outages {
        (state.node, state.dns) = (state.node || node, state.dns || dns);
    }
}

pub fn is_ready(node: &Node) -> bool {
    node.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_count_until_the_pods_are_not_ready() {
        let state = |outages, pods, node, dns| State { outages, pods, node, dns, ..State::default() };
        let asked = state(1, Pods::Ready, false, false);
        for (what, mut now, answers, expected) in [
            ("nothing is answered", state(1, Pods::Ready, false, false), (false, false), (false, false)),
            ("the node alone", state(1, Pods::Ready, false, false), (true, false), (true, false)),
            ("DNS alone", state(1, Pods::Ready, false, false), (false, true), (false, true)),
            ("the rest", state(1, Pods::Ready, true, false), (true, true), (true, true)),
            ("the pods are not ready", state(2, Pods::Unknown, false, false), (true, true), (false, false)),
            ("they are ready again", state(2, Pods::Ready, false, false), (true, true), (false, false)),
        ] {
            confirm(&mut now, &asked, answers.0, answers.1);
            assert_eq!((now.node, now.dns), expected, "{what}");
            assert_eq!(is_unknown(&now), now.pods == Pods::Ready && expected != (true, true), "{what}");
        }
    }

    #[test]
    fn a_node_is_ready_when_its_condition_is_true() {
        for (conditions, expected) in [
            (serde_json::json!([{"type": "MemoryPressure", "status": "True"}, {"type": "Ready", "status": "True"}]), true),
            (serde_json::json!([{"type": "Ready", "status": "False"}]), false),
            (serde_json::json!([{"type": "Ready", "status": "Unknown"}]), false),
            (serde_json::json!([{"type": "MemoryPressure", "status": "True"}]), false),
            (serde_json::json!(null), false),
        ] {
            let node: Node = serde_json::from_value(serde_json::json!({"status": {"conditions": conditions}})).unwrap();
            assert_eq!(is_ready(&node), expected, "{conditions}");
        }
    }
}
