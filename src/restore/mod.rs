//! Restores the control plane instead of starting it. The bake runs etcd, the API server, the controller-manager and the
//! scheduler once more and saves their processes with CRIU; a start restores them in the state in which they serve
//! already, which takes a fraction of the time and of the CPU.
//!
//! They remain kubeadm's static pods: the container that kubelet starts for each of them runs `stand_in`, which stands
//! for the restored program as long as that lives, and otherwise becomes the program itself. So everything that may
//! happen to a pod leads to what happens in any other cluster, and every start can be a cold start too.
//!
//! Where a restored start is decided, and its parts, in the order in which they act:
//!
//! | file | what |
//! |---|---|
//! | `start` | decides whether this start restores, restores beside the rest of the boot, and falls back to a cold start |
//! | `saved`, `files` | what the bake has saved |
//! | `machine` | whether this machine can restore it |
//! | `held_port` | keeps clients of the API server waiting meanwhile |
//! | `criu` | CRIU's command lines |
//! | `priority` | leaves the CPU to Docker |
//! | `parent` | the process above the programs, which comes back with them |
//! | `tree`, `owner` | find the restored programs, and look after them |
//! | `order` | beside all of these: brings up Docker and kubelet, in the order that suits a restore or a cold start |
//! | `kubelet_log` | has kubelet wait for the restore, at a line of its log |
//! | `manifests` | when kubelet starts the control plane's containers |
//! | `stand_in` | the command of these containers |
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
