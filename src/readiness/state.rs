//! The state of the node, and everything that clients see of it, derived here: whether Docker and Kubernetes are
//! ready, what they wait for, and whether the boot has failed.

use std::collections::BTreeSet;

/// Why the boot failed, and the exit status of the container because of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub why: String,
    pub status: u8,
}

/// Of a reason, the end of which says most (bytes); and of a list of what is missing (lines). The file server sends no
/// file of any length.
const MOST_OF_REASON: usize = 16 * 1024;
const MOST_WAITING: usize = 100;
const EARLIER: &str = "the earlier cluster: still being removed";

impl Failure {
    /// A status of 0 becomes 1, since it would hide the failure.
    pub fn new(why: impl Into<String>, status: u8) -> Failure {
        let why = why.into();
        let begin = (why.len().saturating_sub(MOST_OF_REASON)..why.len()).find(|at| why.is_char_boundary(*at)).unwrap_or(0);
        let cut = if begin > 0 { "... " } else { "" };
        Failure { why: format!("{cut}{}", &why[begin..]), status: status.max(1) }
    }
}

/// The last known state of the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Whether a cluster is baked into the image. If not, only Docker counts.
    pub has_cluster: bool,
    pub containerd: bool,
    pub docker: bool,
    pub kubelet: bool,
    pub api_server: bool,
    pub pods: Pods,
    pub control_plane: ControlPlane,
    /// For users: how it came up, and why it was not restored.
    pub control_plane_note: Option<String>,
    /// The static pods, as `namespace/name`, whose programs run restored and whose containers are not there yet.
    pub restored_pods: BTreeSet<String>,
    /// Whether the API server calls the node Ready, without which no new pod is scheduled.
    pub node: bool,
    pub dns: bool,
    /// Whether Services of type LoadBalancer have the address of this start.
    pub services: bool,
    pub extensions: Extensions,
    pub failure: Option<Failure>,
    pub reset: Reset,
    /// The container is stopping: nothing is ready from now on.
    pub ending: bool,
    /// How often the pods have stopped being ready. An answer of the DNS counts only if this number has not
    /// changed since the query.
    pub outages: u32,
}

/// How the control plane comes up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ControlPlane {
    /// Not decided yet.
    #[default]
    Undecided,
    /// It is being restored.
    Restoring {
        /// Whether whoever connects to the API server meanwhile is answered when it is restored.
        port_is_held: bool,
    },
    Restored,
    /// kubelet starts it.
    Cold,
}

impl ControlPlane {
    /// Whether it may still be restored.
    pub fn is_coming(self) -> bool {
        matches!(self, ControlPlane::Undecided | ControlPlane::Restoring { .. })
    }
}

/// How far the earlier cluster has made way for this one, in a reset or after a save.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Reset {
    #[default]
    No,
    /// A client has asked for it: nothing of the cluster counts any more.
    Requested(Operation),
    /// Its pods are being ended. kubelet waits.
    Ending,
    /// What is left of them is removed once kubelet answers.
    Removing,
}

impl Reset {
    /// Whether kubelet could still mistake what it finds for the new cluster's.
    pub fn blocks_kubelet(self) -> bool {
        matches!(self, Reset::Requested(_) | Reset::Ending)
    }
}

/// What a client asks for. All but the last lead to another cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// The cluster as it was saved, or baked.
    Reset,
    /// The cluster as it was baked, from now on.
    ResetToBaked,
    /// What resets and starts lead to is the cluster as it is now.
    Save,
    /// The same, with all that an image of this container needs, and the container ends.
    SaveAndStop,
}

impl Operation {
    pub fn saves(self) -> bool {
        matches!(self, Operation::Save | Operation::SaveAndStop)
    }

    /// What the header that guards it must say (`operations::GUARD`).
    pub fn name(self) -> &'static str {
        if self.saves() {
            "save"
        } else {
            "reset"
        }
    }
}

/// The baked pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Pods {
    #[default]
    Unknown,
    /// The pods that are not ready, as `namespace/name: reason`.
    Waiting(Vec<String>),
    /// Every baked pod was started in this boot, or its program restored, and is Ready.
    Ready,
}

/// The user's own images, manifests and scripts.
#[derive(Clone, Debug, PartialEq)]
pub enum Extensions {
    /// They are not done yet; this is what is not Ready of them.
    Waiting(Vec<String>),
    Done,
}

impl Default for Extensions {
    fn default() -> Extensions {
        Extensions::Waiting(vec![])
    }
}

impl State {
    pub fn docker_ready(&self) -> bool {
        self.containerd && self.docker && !self.ending
    }

    /// Whether Docker and the baked cluster work. The user's manifests and scripts start then.
    pub fn cluster_up(&self) -> bool {
        let daemons = self.docker_ready() && self.kubelet && self.api_server;
        self.reset == Reset::No && daemons && self.pods == Pods::Ready && self.node && self.dns && self.services
    }

    /// Implies `docker_ready`.
    pub fn kubernetes_ready(&self) -> bool {
        self.cluster_up() && self.extensions == Extensions::Done && self.failure.is_none()
    }

    /// Why an operation cannot begin now, if so. `was_ready` is whether this cluster has been ready.
    pub fn refuses(&self, operation: Operation, was_ready: bool) -> Option<&'static str> {
        if self.ending {
            Some("the container is stopping")
        } else if !self.has_cluster {
            Some("no cluster is baked into this image")
        } else if !was_ready && self.failure.is_none() {
            Some("the cluster is still being started: wait for kubernetes-ready")
        } else if !self.docker_ready() {
            Some("Docker does not answer, which is needed. If it does not come back, start the container again")
        } else if operation.saves() && !self.kubernetes_ready() {
            Some("it is not ready, and would not be after a start either. `kind status` says what is missing")
        } else {
            None
        }
    }

    /// What the node still waits for, in order of dependency, without what cannot be known yet. Empty when it is
    /// ready.
    pub fn waiting(&self) -> Vec<String> {
        if self.ending {
            return vec![];
        }
        let daemons = [(self.containerd, "containerd"), (self.docker, "dockerd"), (self.kubelet || !self.has_cluster, "kubelet")];
        let mut waiting: Vec<String> = daemons.iter().filter(|(answers, _)| !answers).map(|(_, name)| no_answer(name)).collect();
        if !self.has_cluster {
            return waiting;
        }
        match self.reset {
            Reset::No => {}
            Reset::Requested(operation) if operation.saves() => waiting.insert(0, "the cluster: being saved".into()),
            Reset::Requested(_) | Reset::Ending => waiting.insert(0, EARLIER.into()),
            // kubelet comes first.
            Reset::Removing => waiting.push(EARLIER.into()),
        }
        if !self.api_server {
            waiting.push(no_answer("the API server"));
            return waiting;
        }
        match &self.pods {
            Pods::Unknown => waiting.push("the list of pods".into()),
            Pods::Waiting(pods) => waiting.extend(pods.iter().cloned()),
            Pods::Ready => {
                let (node, dns) = ((self.node, "the node: not Ready yet".to_string()), (self.dns, no_answer("the DNS")));
                waiting.extend([node, dns].into_iter().filter(|(is_ready, _)| !is_ready).map(|(_, line)| line));
            }
        }
        if !self.services {
            waiting.push("Services of type LoadBalancer: no address yet".into());
        }
        if waiting.is_empty() {
            match &self.extensions {
                Extensions::Waiting(what) if what.is_empty() => {
                    waiting.push("the images, manifests and scripts of this image or job".into())
                }
                Extensions::Waiting(what) => waiting.extend(what.iter().cloned()),
                Extensions::Done => {}
            }
        }
        if waiting.len() > MOST_WAITING {
            let more = waiting.len() - MOST_WAITING;
            waiting.truncate(MOST_WAITING);
            waiting.push(format!("{more} more"));
        }
        waiting
    }

    /// A restored program has ended: its pod counted as Ready because it ran.
    pub fn program_ended(&mut self, pod: &str) {
        if self.restored_pods.remove(pod) && self.pods == Pods::Ready {
            self.pods = Pods::Waiting(vec![format!("{pod}: its program has ended")]);
        }
    }

    /// Whether the cluster's time limit runs: it is not up, is not being saved, and has not failed. The user's manifests and scripts
    /// have a limit of their own.
    pub fn is_limited(&self) -> bool {
        let is_being_saved = matches!(self.reset, Reset::Requested(operation) if operation.saves());
        !is_being_saved && self.has_cluster && !self.cluster_up() && self.failure.is_none()
    }

    /// Clears what cannot be true given the rest. Called after every change.
    pub fn make_consistent(&mut self, before: &State) {
        if !self.api_server {
            self.pods = Pods::Unknown;
        }
        if self.pods != Pods::Ready {
            // CoreDNS is one of the pods, so it has to be queried again; and the node may be why they are not ready.
            (self.node, self.dns) = (false, false);
            self.outages += u32::from(before.pods == Pods::Ready);
        }
        // A cluster that failed because it was late, and is up now, has not failed.
        if self.cluster_up() && self.extensions == Extensions::Done {
            self.failure = None;
        }
    }
}

fn no_answer(of: &str) -> String {
    format!("{of}: no answer yet")
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn ready() -> State {
        State {
            control_plane_note: None,
            has_cluster: true,
            containerd: true,
            docker: true,
            kubelet: true,
            api_server: true,
            pods: Pods::Ready,
            control_plane: ControlPlane::Cold,
            restored_pods: BTreeSet::new(),
            node: true,
            dns: true,
            services: true,
            extensions: Extensions::Done,
            failure: None,
            reset: Reset::No,
            ending: false,
            outages: 0,
        }
    }

    #[test]
    fn what_clients_are_told_has_an_end() {
        let why = format!("etcd has lost its data:\n{}é", "x".repeat(1 << 20));
        let failure = Failure::new(why, 1).why;
        assert!(failure.starts_with("... x") && failure.ends_with("xé") && failure.len() <= MOST_OF_REASON + 4, "{}", failure.len());
        assert_eq!(Failure::new("", 1).why, "");
        let many = (0..1000).map(|number| format!("default/pod-{number}: ContainerCreating")).collect();
        let waiting = State { extensions: Extensions::Waiting(many), ..ready() }.waiting();
        assert_eq!((waiting.len(), waiting[MOST_WAITING].as_str()), (MOST_WAITING + 1, "900 more"));
    }

    type Break = fn(&mut State);

    /// Everything that can be missing, and the line for it in `waiting`.
    const MISSING: [(Break, &str); 10] = [
        (|state| state.containerd = false, "containerd: no answer yet"),
        (|state| state.docker = false, "dockerd: no answer yet"),
        (|state| state.kubelet = false, "kubelet: no answer yet"),
        (|state| state.api_server = false, "the API server: no answer yet"),
        (|state| state.pods = Pods::Unknown, "the list of pods"),
        (|state| state.pods = Pods::Waiting(vec!["kube-system/etcd-kind: does not exist".into()]), "kube-system/etcd-kind: does not exist"),
        (|state| state.node = false, "the node: not Ready yet"),
        (|state| state.dns = false, "the DNS: no answer yet"),
        (|state| state.services = false, "Services of type LoadBalancer: no address yet"),
        (|state| state.extensions = Extensions::Waiting(vec!["default/app: not started".into()]), "default/app: not started"),
    ];

    #[test]
    fn kubernetes_is_ready_unless_something_is_missing_which_is_in_waiting() {
        assert!(ready().kubernetes_ready() && ready().waiting().is_empty());
        for (break_it, line) in MISSING {
            let mut state = ready();
            break_it(&mut state);
            state.make_consistent(&ready());
            assert!(!state.kubernetes_ready(), "{line}");
            assert_eq!(state.waiting(), [line]);
        }
        // In a reset, kubelet comes before the removal that waits for it.
        let removing = State { reset: Reset::Removing, kubelet: false, ..ready() };
        assert_eq!(removing.waiting(), [no_answer("kubelet"), EARLIER.to_string()]);
        let ending = State { ending: true, ..ready() };
        assert!(!ending.kubernetes_ready() && !ending.docker_ready() && ending.waiting().is_empty());
    }

    #[test]
    fn a_late_cluster_that_comes_up_has_not_failed() {
        for (break_it, line) in MISSING {
            let mut late = ready();
            break_it(&mut late);
            late.failure = Some(Failure::new("late", 1));
            late.make_consistent(&ready());
            assert!(late.failure.is_some() && !late.kubernetes_ready(), "{line}");
            let mut up = State { failure: late.failure, ..ready() };
            up.make_consistent(&ready());
            assert!(up.failure.is_none() && up.kubernetes_ready(), "{line}");
        }
    }

    #[test]
    fn while_the_api_server_is_down_the_dns_is_not_in_waiting() {
        let mut state = State { api_server: false, dns: false, ..ready() };
        state.make_consistent(&ready());
        assert_eq!(state.waiting(), ["the API server: no answer yet"]);
    }

    #[test]
    fn an_answer_of_the_dns_counts_only_until_a_pod_is_not_ready() {
        let mut state = State { pods: Pods::Waiting(vec!["kube-system/coredns: not Ready".into()]), ..ready() };
        state.make_consistent(&ready());
        assert!(!state.dns);
        state.pods = Pods::Ready;
        state.make_consistent(&ready());
        assert!(!state.kubernetes_ready());
    }

    #[test]
    fn a_pod_that_counts_because_its_program_runs_is_ready_no_longer_than_that() {
        let restored = || BTreeSet::from(["a".to_string()]);
        let unready = Pods::Waiting(vec!["b: not Ready".into()]);
        for (pod, before, after) in [
            ("a", Pods::Ready, Pods::Waiting(vec!["a: its program has ended".into()])),
            ("a", unready.clone(), unready),
            // Its container has been seen: it is as every other pod.
            ("b", Pods::Ready, Pods::Ready),
        ] {
            let mut state = State { restored_pods: restored(), pods: before, ..ready() };
            state.program_ended(pod);
            assert_eq!((state.pods, state.restored_pods.contains("a")), (after, pod != "a"), "{pod}");
        }
    }

    #[test]
    fn without_a_cluster_only_docker_counts() {
        let mut state = State::default();
        assert_eq!(state.waiting(), ["containerd: no answer yet", "dockerd: no answer yet"]);
        (state.containerd, state.docker) = (true, true);
        assert!(state.docker_ready() && state.waiting().is_empty() && !state.kubernetes_ready());
    }
}
