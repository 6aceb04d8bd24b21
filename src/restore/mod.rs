//! Restores the control plane instead of starting it. The bake runs etcd, the API server, the controller-manager and the
//! scheduler once more and saves their processes with CRIU; a start restores them in the state in which they serve
//! already, which takes a fraction of the time and of the CPU.
//!
//! They remain kubeadm's static pods: the container that kubelet starts for each of them runs `stand_in`, which stands
//! for the restored program as long as that lives, and otherwise becomes the program itself. So everything that may
//! happen to a pod leads to what happens in a plain cluster, and every start can be made the plain way too.
//!
//! `saved` describes what the bake has saved, `machine` decides whether this machine can restore it, `criu` runs CRIU,
//! `start` restores beside the rest of the boot, `held_port` keeps clients waiting meanwhile, `owner` looks after the restored programs, and `parent` is the process
//! above them.

pub mod criu;
mod files;
mod held_port;
pub mod machine;
mod owner;
pub mod parent;
pub mod saved;
pub mod stand_in;
pub mod start;
pub mod tree;

/// The programs, in the order in which they start. Each is also the name of its static pod.
pub const ETCD: &str = "etcd";
pub const API_SERVER: &str = "kube-apiserver";
pub const PROGRAMS: [&str; 4] = [ETCD, API_SERVER, "kube-controller-manager", "kube-scheduler"];
