//! Restores the control plane instead of starting it. The bake runs etcd, the API server, the controller-manager and the
//! scheduler once more and saves their processes with CRIU; a start restores them in the state in which they serve
//! already, which takes a fraction of the time and of the CPU.
//!
//! They remain kubeadm's static pods: the container that kubelet starts for each of them runs `stand_in`, which stands
//! for the restored program as long as that lives, and otherwise becomes the program itself. So everything that may
//! happen to a pod leads to what happens in any other cluster, and every start can be a cold start too.
//!
//! Where a restored start is decided, and its parts:
//!
//! | file | what |
//! |---|---|
//! | `order` | brings up Docker, the control plane and kubelet, in the order that suits a restore or a cold start |
//! | `start` | decides whether this start restores, restores beside the rest of the boot, and falls back to a cold start |
//! | `saved`, `files` | what the bake has saved |
//! | `machine` | whether this machine can restore it |
//! | `criu` | CRIU's command lines |
//! | `held_port` | keeps clients of the API server waiting meanwhile |
//! | `kubelet_log` | has kubelet wait meanwhile, at a line of its log |
//! | `priority` | leaves the CPU to Docker |
//! | `manifests` | when kubelet starts the control plane's containers |
//! | `owner`, `tree` | look after the restored programs |
//! | `parent` | the process above them |
//! | `stand_in` | the command of their containers |

pub mod criu;
mod files;
mod held_port;
pub mod kubelet_log;
pub mod machine;
mod manifests;
mod order;
mod owner;
pub mod parent;
mod priority;
pub mod saved;
pub mod stand_in;
pub mod start;
pub mod tree;

pub const ETCD: &str = "etcd";
pub const API_SERVER: &str = "kube-apiserver";
pub const CONTROLLER_MANAGER: &str = "kube-controller-manager";
pub const SCHEDULER: &str = "kube-scheduler";
/// The programs that need the API server.
pub const CONTROLLERS: [&str; 2] = [CONTROLLER_MANAGER, SCHEDULER];
/// The programs of the control plane, in the order in which they start. Each is also the name of its static pod.
pub const PROGRAMS: [&str; 4] = [ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER];
