//! Has kubelet sync the pods of a start again, sooner than it would.
//!
//! Once the random part of a period is over with which it begins (`save/probes.rs`), it probes a container when it learns that it
//! runs, which is often a moment too early, and then once per period, which is 10 s unless the pod says otherwise. And when it
//! could not start a pod, for example because a network plugin has failed, it tries again after 10 to 15 s (`backOffPeriod` in
//! pkg/kubelet/kubelet.go). It does both when it syncs the pod again, which it does when one of the pod's annotations changes
//! (`UpdatePodStatus` in pkg/kubelet/prober/prober_manager.go, `UpdatePod` in pkg/kubelet/pod_workers.go). So as long as the
//! start waits for a pod, this changes an annotation a few times. It is removed when the cluster is ready.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::cluster::alive::Alive;
use crate::cluster::api::Api;
use crate::cluster::node::PODS;
use crate::cluster::pods::Lag;
use crate::error::Result;
use crate::supervisor::Init;
use crate::threads;

/// Nobody else's.
const ANNOTATION: &str = "kind-init/probe";
/// How often the pods are looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// kubelet syncs a pod again only when it has looked which containers run, which it does once a second
/// (`genericPlegRelistPeriod` in pkg/kubelet/kubelet.go).
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Most pods that kubelet could start take less.
const RETRY_INTERVAL: Duration = Duration::from_millis(1500);
/// Per pod. One that takes longer is left to kubelet.
const MOST_REQUESTS: u32 = 30;

/// What kubelet has been asked for a pod.
struct Asked {
    probes: u32,
    retries: u32,
    /// The latest time, or when the pod was first seen.
    at: Instant,
}

/// Starts the thread, which ends when the cluster is ready for the first time.
pub fn start(init: &Arc<Init>, api: Arc<Api>, alive: Arc<Alive>) -> Result<()> {
    let init = init.clone();
    threads::start("resync", move || {
        let mut asked: BTreeMap<String, Asked> = BTreeMap::new();
        while init.readiness.wait_until(|state| state.api_server && state.kubelet) && !init.readiness.has_reached(PODS) {
            let now = Instant::now();
            for (pod, lag) in alive.lagging() {
                let asked = asked.entry(pod.clone()).or_insert(Asked { probes: 0, retries: 0, at: now });
                if asked.is_due(lag, now) {
                    annotate(&api, &pod, &json!(asked.times().to_string()));
                }
            }
            init.readiness.pause(INTERVAL);
        }
        if init.readiness.wait_until(|state| state.kubernetes_ready()) {
            let annotated = asked.iter().filter(|(_, asked)| asked.times() > 0);
            annotated.for_each(|(pod, _)| annotate(&api, pod, &Value::Null));
        }
    })
}

impl Asked {
    fn times(&self) -> u32 {
        self.probes + self.retries
    }

    /// Whether kubelet is to be asked now, and counts it.
    fn is_due(&mut self, lag: Lag, now: Instant) -> bool {
        let (count, interval) = match lag {
            Lag::Unready if self.probes == 0 => (&mut self.probes, Duration::ZERO),
            Lag::Unready => (&mut self.probes, PROBE_INTERVAL),
            Lag::NotStarted => (&mut self.retries, RETRY_INTERVAL),
        };
        let is_due = *count < MOST_REQUESTS && now - self.at >= interval;
        if is_due {
            *count += 1;
            self.at = now;
        }
        is_due
    }
}

fn annotate(api: &Api, pod: &str, value: &Value) {
    let Some((namespace, name)) = pod.split_once('/') else { return };
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    if let Err(error) = api.patch(&path, &json!({"metadata": {"annotations": {ANNOTATION: value}}})) {
        // It has been deleted, for example. Its own period remains.
        log::debug!(target: "cluster", "{error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelet_is_asked_for_a_probe_at_once_and_then_now_and_again() {
        let began = Instant::now();
        let mut asked = Asked { probes: 0, retries: 0, at: began };
        let mut retries = |lag| (0..600).filter(|tick| asked.is_due(lag, began + INTERVAL * *tick)).collect::<Vec<_>>();
        assert_eq!(retries(Lag::NotStarted), (15..=450).step_by(15).collect::<Vec<_>>());
        asked = Asked { probes: 0, retries: 0, at: began };
        let mut probes = |lag| (0..600).filter(|tick| asked.is_due(lag, began + INTERVAL * *tick)).collect::<Vec<_>>();
        assert_eq!(probes(Lag::Unready), (0..300).step_by(10).collect::<Vec<_>>());
    }
}
