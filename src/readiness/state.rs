//! The one state of the node, and what follows from it: whether Docker and Kubernetes are ready, what is
//! waited for, and whether the boot has failed. Everything that clients see is derived here.

/// Why the boot gave up, and the exit status that the container ends with for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub why: String,
    pub status: u8,
}

impl Failure {
    /// A status of 0 would hide the failure: it becomes 1.
    pub fn new(why: impl Into<String>, status: u8) -> Failure {
        Failure { why: why.into(), status: status.max(1) }
    }
}

/// What is known of the node, as last seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Whether a cluster is baked into the image; without one, Docker alone counts.
    pub has_cluster: bool,
    pub containerd: bool,
    pub docker: bool,
    pub kubelet: bool,
    pub etcd: bool,
    pub api_server: bool,
    pub pods: Pods,
    pub dns: bool,
    /// Services of type LoadBalancer have this start's address.
    pub services: bool,
    pub extensions: Extensions,
    pub failure: Option<Failure>,
    /// The container is stopping: nothing becomes true any more.
    pub ending: bool,
    /// How often the pods have ceased to be ready. An answer of the DNS belongs to the outage after which
    /// it was asked for.
    pub outages: u32,
}

/// The baked pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Pods {
    #[default]
    Unknown,
    /// Why each that is not ready is not, as `namespace/name: reason`.
    Waiting(Vec<String>),
    /// Every one was started in this boot and is Ready.
    Ready,
}

/// The user's own manifests and scripts.
#[derive(Clone, Debug, PartialEq)]
pub enum Extensions {
    /// They are under way: what of theirs is not Ready.
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

    /// The baked cluster and Docker are whole: what the user's own manifests and scripts wait for.
    pub fn cluster_up(&self) -> bool {
        self.docker_ready() && self.kubelet && self.etcd && self.api_server && self.pods == Pods::Ready && self.dns && self.services
    }

    /// A client that sees this may rely on Docker too.
    pub fn kubernetes_ready(&self) -> bool {
        self.cluster_up() && self.extensions == Extensions::Done && self.failure.is_none()
    }

    /// What the node is not ready for want of, in the order in which one thing needs the other; what
    /// cannot be known yet is left out. Empty when all is there.
    pub fn waiting(&self) -> Vec<String> {
        if self.ending {
            return vec![];
        }
        let wanted = [(self.containerd, "containerd"), (self.docker, "dockerd"), (self.kubelet || !self.has_cluster, "kubelet")];
        let mut waiting: Vec<String> = wanted.iter().filter(|(there, _)| !there).map(|(_, name)| no_answer(name)).collect();
        if !self.has_cluster {
            return waiting;
        }
        if !self.api_server {
            waiting.push(no_answer("the API server"));
            return waiting;
        }
        if !self.etcd {
            waiting.push(no_answer("etcd"));
        }
        match &self.pods {
            Pods::Unknown => waiting.push("the list of pods".into()),
            Pods::Waiting(pods) => waiting.extend(pods.iter().cloned()),
            Pods::Ready if !self.dns => waiting.push(no_answer("the DNS")),
            Pods::Ready => {}
        }
        if !self.services {
            waiting.push("Services of type LoadBalancer: no address yet".into());
        }
        if waiting.is_empty() {
            match &self.extensions {
                Extensions::Waiting(what) if what.is_empty() => waiting.push("the manifests and scripts of this image or job".into()),
                Extensions::Waiting(what) => waiting.extend(what.iter().cloned()),
                Extensions::Done => {}
            }
        }
        waiting
    }

    /// Whether a limit runs: the cluster is not up (what the user's own scripts wait for is theirs to
    /// limit), and was not given up either.
    pub fn is_awaited(&self) -> bool {
        self.has_cluster && !self.cluster_up() && self.failure.is_none()
    }

    /// Makes untrue what cannot be true beside the rest. Called after every change.
    pub fn make_consistent(&mut self, before: &State) {
        if !self.api_server {
            self.pods = Pods::Unknown;
        }
        if self.pods != Pods::Ready {
            // It is asked again: CoreDNS is one of the pods.
            self.dns = false;
            self.outages += u32::from(before.pods == Pods::Ready);
        }
        // A cluster that was given up for being late, and is whole after all, has not failed.
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
            has_cluster: true,
            containerd: true,
            docker: true,
            kubelet: true,
            etcd: true,
            api_server: true,
            pods: Pods::Ready,
            dns: true,
            services: true,
            extensions: Extensions::Done,
            failure: None,
            ending: false,
            outages: 0,
        }
    }

    type Spoil = fn(&mut State);

    /// Everything that can be missing, and what is said of it.
    const SPOILS: [(Spoil, &str); 10] = [
        (|state| state.containerd = false, "containerd: no answer yet"),
        (|state| state.docker = false, "dockerd: no answer yet"),
        (|state| state.kubelet = false, "kubelet: no answer yet"),
        (|state| state.etcd = false, "etcd: no answer yet"),
        (|state| state.api_server = false, "the API server: no answer yet"),
        (|state| state.pods = Pods::Unknown, "the list of pods"),
        (|state| state.pods = Pods::Waiting(vec!["kube-system/etcd-kind: not there".into()]), "kube-system/etcd-kind: not there"),
        (|state| state.dns = false, "the DNS: no answer yet"),
        (|state| state.services = false, "Services of type LoadBalancer: no address yet"),
        (|state| state.extensions = Extensions::Waiting(vec!["default/app: not started".into()]), "default/app: not started"),
    ];

    #[test]
    fn kubernetes_is_ready_only_when_nothing_is_missing_and_what_is_missing_is_said() {
        assert!(ready().kubernetes_ready() && ready().waiting().is_empty());
        for (spoil, said) in SPOILS {
            let mut state = ready();
            spoil(&mut state);
            state.make_consistent(&ready());
            assert!(!state.kubernetes_ready(), "{said}");
            assert_eq!(state.waiting(), [said]);
        }
        let ending = State { ending: true, ..ready() };
        assert!(!ending.kubernetes_ready() && !ending.docker_ready() && ending.waiting().is_empty());
    }

    #[test]
    fn a_late_cluster_has_not_failed_whatever_is_the_last_to_come_back() {
        for (spoil, said) in SPOILS {
            let mut late = ready();
            spoil(&mut late);
            late.failure = Some(Failure::new("late", 1));
            late.make_consistent(&ready());
            assert!(late.failure.is_some() && !late.kubernetes_ready(), "{said}");
            let mut whole = State { failure: late.failure, ..ready() };
            whole.make_consistent(&ready());
            assert!(whole.failure.is_none() && whole.kubernetes_ready(), "{said}");
        }
    }

    #[test]
    fn the_dns_is_not_blamed_for_an_api_server_that_is_gone() {
        let mut state = State { api_server: false, dns: false, ..ready() };
        state.make_consistent(&ready());
        assert_eq!(state.waiting(), ["the API server: no answer yet"]);
    }

    #[test]
    fn an_answer_of_the_dns_does_not_outlive_the_pods() {
        let mut state = State { pods: Pods::Waiting(vec!["kube-system/coredns: not Ready".into()]), ..ready() };
        state.make_consistent(&ready());
        assert!(!state.dns);
        state.pods = Pods::Ready;
        state.make_consistent(&ready());
        assert!(!state.kubernetes_ready());
    }

    #[test]
    fn without_a_cluster_docker_is_all_there_is() {
        let mut state = State::default();
        assert_eq!(state.waiting(), ["containerd: no answer yet", "dockerd: no answer yet"]);
        (state.containerd, state.docker) = (true, true);
        assert!(state.docker_ready() && state.waiting().is_empty() && !state.kubernetes_ready());
    }
}
