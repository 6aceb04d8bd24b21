//! The order in which a start brings up Docker, the control plane and kubelet.

use std::sync::Arc;

use crate::cluster::api::Api;
use crate::cluster::{CONTROLLERS, PROGRAMS};
use crate::error::Result;
use crate::readiness::ControlPlane;
use crate::restore::priority::{self, Yielding, YIELD_LIMIT};
use crate::restore::start::Restore;
use crate::restore::{kubelet_log, manifests};
use crate::supervisor::daemon::{Daemon, FirstStart, Spec};

impl Restore {
    /// Starts kubelet, and Docker by calling `start_docker`.
    pub fn start_daemons(&self, kubelet: Spec, api: Arc<Api>, start_docker: impl FnOnce() -> Result<Arc<Daemon>>) -> Result<()> {
        let init = &self.init;
        let control_plane = || init.readiness.state().control_plane;
        init.readiness.wait_until(|state| state.control_plane != ControlPlane::Undecided);
        match control_plane() {
            // kubelet starts beside the restore: its first questions are answered when the API server is restored.
            ControlPlane::Restoring { port_is_held: true } | ControlPlane::Restored => {
                manifests::hide(&PROGRAMS);
                let docker = start_docker()?;
                if self.yielding == Yielding::Later {
                    docker.wait_until_answers(YIELD_LIMIT);
                }
                init.supervise(self.beside(kubelet, docker))?;
                init.readiness.wait_until(|state| !state.control_plane.is_coming());
                if control_plane() == ControlPlane::Cold {
                    manifests::show()?;
                }
            }
            // kubelet finds its API server when it first looks; otherwise it would wait before it looks again.
            ControlPlane::Restoring { port_is_held: false } => {
                start_docker()?;
                init.readiness.wait_until(|state| !state.control_plane.is_coming() && !state.reset.blocks_kubelet());
                if control_plane() == ControlPlane::Cold {
                    manifests::hide(&CONTROLLERS);
                }
                init.supervise(kubelet)?;
            }
            // The API server takes longest, so it is started first.
            ControlPlane::Undecided | ControlPlane::Cold => {
                manifests::hide(&CONTROLLERS);
                init.readiness.wait_until(|state| !state.reset.blocks_kubelet());
                init.supervise(kubelet)?;
                start_docker()?;
            }
        }
        manifests::show_when_needed(init, api)
    }

    /// kubelet as it is started beside the restore, and beside Docker.
    fn beside(&self, mut kubelet: Spec, docker: Arc<Daemon>) -> Spec {
        let (readiness, yielding) = (self.init.readiness.clone(), self.yielding);
        kubelet.first_start = Some(FirstStart {
            log: Box::new(|log| kubelet_log::start(log, readiness)),
            started: Box::new(move |kubelet| {
                if yielding == Yielding::OnIdleCpus {
                    priority::yield_to(docker, kubelet);
                }
            }),
        })
        .into();
        kubelet
    }
}
