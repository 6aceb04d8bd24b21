//! The cluster's half of the boot, which can be repeated: a reset ends the cluster and brings it up again on the same node. Each
//! cluster has an `Init` of its own (`Init::begin_cluster`): when another one begins, whatever was started here for the
//! earlier one changes nothing any more, and ends.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::boot::{extensions, save};
use crate::cluster::api::Api;
use crate::cluster::certificates::{self, ApiCertificate};
use crate::cluster::{monitor, Cluster};
use crate::config::{CREDENTIALS_DIR, ETCD_DIR, KILL_POLL, STOP_KUBELET};
use crate::daemons::cri;
use crate::daemons::dockerd::DOCKERD;
use crate::daemons::kubelet::{self, KUBELET};
use crate::daemons::local_registry::Given;
use crate::error::{Error, Result};
use crate::node::cluster_network::ClusterNetwork;
use crate::node::iptables::{self, Iptables};
use crate::node::network::forget_connections_of_pods;
use crate::node::state_dir::StateDir;
use crate::node::{capacity, cgroup, cni, directories};
use crate::readiness::{Operation, Reset};
use crate::restore;
use crate::restore::start::Restore;
use crate::supervisor::daemon::Daemon;
use crate::supervisor::{reaper, Init};
use crate::threads;

/// How long killed processes may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What clusters are brought up on.
pub struct Node {
    pub init: Arc<Init>,
    pub cluster: Cluster,
    /// The cluster's network in this container.
    pub network: ClusterNetwork,
    pub iptables: Iptables,
    pub certificate: Arc<ApiCertificate>,
    /// What pods were given by the node's registry.
    pub given: Arc<Given>,
}

impl Node {
    /// Brings a cluster up once containerd runs, and starts what follows it until it is over. `start_docker` returns the
    /// Docker to which the start of the cluster leaves the CPU.
    pub fn bring_up(
        &self,
        ours: &Arc<Init>,
        restore: &Restore,
        is_reset: bool,
        start_docker: impl FnOnce() -> Result<Arc<Daemon>>,
    ) -> Result<()> {
        let Node { cluster, network, iptables, certificate, .. } = self;
        let mut arguments = if ours.config.enforce_capacity { capacity::kubelet_flags()? } else { vec![] };
        arguments.extend(ours.config.kubelet_arguments.clone());
        let kubelet = kubelet::spec(cluster.static_ip, iptables.clone(), arguments);
        let api = Arc::new(Api::new(Path::new(CREDENTIALS_DIR), cluster.static_ip)?);
        certificates::start(ours, cluster.static_ip, certificate)?;
        restore.start_daemons(kubelet, api.clone(), start_docker)?;
        if let Err(error) = iptables::redirect_api_service(iptables, cluster.static_ip, network) {
            log::warn!(target: "network", "the first pods wait for kube-proxy: {error}");
        }
        extensions::start(ours, api.clone(), cluster, network, is_reset)?;
        monitor::start(ours, api, cluster, network)
    }

    /// Resets the cluster, or saves it, whenever a client asks for it, until the container stops. What goes wrong fails that
    /// cluster alone: the next reset tries again.
    pub fn serve_operations(mut self, restore: Restore) -> Result<()> {
        let mut restore = Some(restore);
        while let Some(operation) = self.init.readiness.wait_for_operation() {
            let began = Instant::now();
            let ended = match operation {
                Operation::Reset => self.end_programs(restore.take()),
                Operation::ResetToBaked => self.end_programs(restore.take()).and_then(|()| self.go_back_to_baked()),
                Operation::Save => self.save(restore.take(), operation),
                Operation::SaveAndStop => match self.save(restore.take(), operation) {
                    Ok(()) => save::end(&self.init),
                    // What an image needs is not there: the container ends, and starts with what it had before.
                    Err(error) => return Err(error),
                },
            };
            let ours = self.init.begin_cluster();
            let begun = ended.and_then(|()| self.begin_again(&ours, &mut restore));
            match begun {
                Ok(()) => {
                    ours.readiness.wait_until(|state| state.kubernetes_ready() || state.failure.is_some());
                    if ours.readiness.state().kubernetes_ready() {
                        log::info!(target: operation.name(), "done after {:.1} s", began.elapsed().as_secs_f64());
                    }
                }
                // Only a consequence of the stop.
                Err(error) if self.init.readiness.is_over() => log::debug!(target: operation.name(), "{error}"),
                Err(error) => ours.fail(&error),
            }
        }
        Ok(())
    }

    /// Saves the cluster, which ends it.
    fn save(&mut self, restore: Option<Restore>, operation: Operation) -> Result<()> {
        let described = save::stop_cluster(&self.init, &self.cluster);
        self.end_programs(restore)?;
        let cluster = described?;
        save::save(&self.init, &cluster, &self.given, operation)?;
        self.cluster = cluster;
        Ok(())
    }

    fn go_back_to_baked(&mut self) -> Result<()> {
        let state = StateDir::current().of_image();
        let cluster = Cluster::load(&state.cluster_file())?;
        self.cluster = cluster.ok_or_else(|| Error::new("the image has no cluster of its own"))?;
        state.make_current()
    }

    /// Ends everything that could write to the cluster: kubelet, the control plane, and all pods, without grace.
    fn end_programs(&self, restore: Option<Restore>) -> Result<()> {
        let kubelet = self.init.daemon(KUBELET);
        kubelet.iter().for_each(|kubelet| {
            kubelet.stop();
            kubelet.kill();
        });
        restore.map_or(Ok(()), Restore::end)?;
        if !kubelet.is_none_or(|kubelet| kubelet.ends_within(STOP_KUBELET)) {
            return Err(Error::new("kubelet has not ended after SIGKILL"));
        }
        kill_pods()
    }

    /// Restores the control plane and brings the cluster up, beside the removal of what pods have left.
    fn begin_again(&self, ours: &Arc<Init>, restore: &mut Option<Restore>) -> Result<()> {
        directories::renew(ETCD_DIR)?;
        let restore = restore.insert(restore::start::begin(ours, &self.cluster)?);
        let (of_removal, cluster, network) = (ours.clone(), self.cluster.clone(), self.network.clone());
        threads::start("removal", move || match remove_pods(&of_removal, &cluster, &network) {
            Err(error) if !of_removal.readiness.is_over() => of_removal.fail(&error),
            Ok(()) | Err(_) => {}
        })?;
        directories::renew_pods()?;
        let docker = || self.init.daemon(DOCKERD).ok_or_else(|| Error::new("Docker has not been started"));
        self.bring_up(ours, restore, true, docker)
    }
}

/// Kills every process of the pods' containers, and waits until they have ended.
fn kill_pods() -> Result<()> {
    // containerd's shim of a pod whose sandbox has ended before its containers never ends. A sandbox's process only waits.
    let sandboxes = cri::pods()?;
    let mut left = vec![];
    let ended = reaper::poll(KILL_POLL, KILL_LIMIT, || {
        let containers = cgroup::containers_of_pods();
        let waiting: Vec<i32> =
            sandboxes.iter().filter_map(|pod| containers.get(&pod.id)).flat_map(|cgroup| cgroup::processes_in(cgroup)).collect();
        left = cgroup::processes_of_pods();
        left.retain(|pid| !waiting.contains(pid));
        reaper::signal_all(&left, Signal::SIGKILL);
        left.is_empty().then_some(())
    });
    ended.ok_or_else(|| Error::new(format!("processes of pods have not ended after SIGKILL: {left:?}")))
}

/// Removes the pods of the earlier cluster from containerd: before kubelet looks, those that it would take for the new
/// cluster's; the others when it answers.
fn remove_pods(init: &Init, cluster: &Cluster, network: &ClusterNetwork) -> Result<()> {
    let began = Instant::now();
    let have_ended = end_sandboxes(init)?;
    if init.readiness.is_over() {
        return Ok(());
    }
    if !have_ended {
        log::info!(target: "reset", "kubelet waits until all pods are removed: containerd was just starting one, or is slow to end them");
    }
    // With a network plugin of the user's, a new pod could get the address of one that is not removed yet.
    let others_may_stay = have_ended && network.has_bridge && !cni::has_foreign_allocations();
    let (first, others): (Vec<_>, Vec<_>) = cri::pods()?.into_iter().partition(|pod| !others_may_stay || cluster.has_baked(&pod.name));
    cri::remove(&first)?;
    if init.readiness.is_over() {
        return Ok(());
    }
    cni::forget_addresses()?;
    forget_connections_of_pods(network);
    log_removal(&first, began);
    if !others.is_empty() {
        init.readiness.update(|state| state.reset = Reset::Removing);
        // kubelet's start needs the CPU, and for most of the time after it kubelet only waits. After a failure it may never answer.
        if !init.readiness.wait_until(|state| state.kubelet || state.failure.is_some()) {
            return Ok(());
        }
        let began = Instant::now();
        cri::remove(&others)?;
        log_removal(&others, began);
    }
    init.readiness.update(|state| state.reset = Reset::No);
    Ok(())
}

fn log_removal(pods: &[cri::Pod], began: Instant) {
    log::info!(target: "reset", "{} pods removed in {:.1} s", pods.len(), began.elapsed().as_secs_f64());
}

/// Kills the processes of the pods' sandboxes, so that no container has a cgroup any more: kubelet, when it starts, takes one that
/// is being removed for one that is being created, and looks at it for three seconds (`retry` in cAdvisor's
/// container/containerd/handler.go). Returns whether it has: not if it seems that a container is being started.
fn end_sandboxes(init: &Init) -> Result<bool> {
    let none = |of| reaper::poll(KILL_POLL, KILL_LIMIT, || cri::any(of).map(|any| (!any).then_some(())).transpose()).transpose();
    // In this order: a container that is created may run a moment later.
    if cri::any(cri::CREATED_CONTAINERS)? || none(cri::RUNNING_CONTAINERS)?.is_none() || init.readiness.is_over() {
        return Ok(false);
    }
    reaper::signal_all(&cgroup::processes_of_pods(), Signal::SIGKILL);
    Ok(none(cri::READY_SANDBOXES)?.is_some())
}
