//! Has the pods of a start probed as soon as they answer.
//!
//! kubelet probes a container at once when it learns that it runs, which is often a moment too early, and then once per
//! period, a second at least. It also probes when it looks at the pod again, and that it does when one of the pod's
//! annotations changes (`UpdatePodStatus` in pkg/kubelet/prober/prober_manager.go). So as long as the start waits for a
//! pod whose containers run, this changes an annotation a few times. It is removed when the cluster is ready.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{json, Value};

use crate::cluster::api::Api;
use crate::cluster::follow;
use crate::cluster::pods::Known;
use crate::error::Result;
use crate::supervisor::Init;

/// Nobody else's.
const ANNOTATION: &str = "kind-init/probe";
/// Most programs that a start waits for answer a few tenths of a second after they have started.
const INTERVAL: Duration = Duration::from_millis(100);
/// Per pod. One that needs longer has its own period.
const MOST: u32 = 6;

/// The pods whose containers run and that are not Ready, as `namespace/name`.
#[derive(Default)]
pub struct Probes(Mutex<BTreeSet<String>>);

impl Probes {
    /// Starts the thread, which ends when the cluster is ready for the first time.
    pub fn start(init: &Arc<Init>, api: Arc<Api>) -> Result<Arc<Probes>> {
        let probes = Arc::new(Probes::default());
        let (ours, init) = (probes.clone(), init.clone());
        follow::start_once("probes", move || {
            let mut asked = BTreeMap::new();
            while init.readiness.wait_until(|state| state.api_server) && !init.readiness.has_reached("pods") {
                ours.ask(&api, &mut asked);
                init.shutdown.pause(INTERVAL);
            }
            if init.readiness.wait_until(|state| state.kubernetes_ready()) {
                asked.keys().for_each(|pod| annotate(&api, pod, &Value::Null));
            }
        })?;
        Ok(probes)
    }

    pub fn tell(&self, known: &Known) {
        let unready = known.iter().filter(|(_, pod)| pod.is_unready).map(|(name, _)| name.clone()).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = unready;
    }

    fn ask(&self, api: &Api, asked: &mut BTreeMap<String, u32>) {
        let unready = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for pod in unready {
            let times = asked.entry(pod.clone()).or_default();
            if *times < MOST {
                *times += 1;
                annotate(api, &pod, &json!(times.to_string()));
            }
        }
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
