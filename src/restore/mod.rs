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
//!
//! Beside these: `boot` begins a restore before the node's own steps are done, and `boot::cluster` in a reset;
//! `supervisor::daemon` starts kubelet in the way that a restore needs, once (`FirstStart`); `cluster::pods` counts a pod whose
//! program runs restored; `bake::programs` puts the stand-ins into the bake, and `save::dump` saves the programs.

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
