//! Saves a cluster as it is, so that starts and resets bring it up again: the end of a bake, and `kind save`.
//!
//! Its workloads are stopped, then its control plane, and etcd keeps nothing of what was deleted (`finish`, `etcd`). Where the
//! image is to have the images of containerd's store, they are put into it (`images`, `pack`). Then the control plane runs once
//! more, from the final data, and its processes are saved (`dump`). What a start needs goes to a directory of its own
//! (`node::state_dir`), its description last.

mod archives;
mod bolt;
pub mod control_plane;
mod controller_tokens;
pub mod dump;
mod etcd;
pub mod finish;
mod images;
pub mod manifest;
pub mod pack;
mod probes;

pub use archives::{keeps_all, VARIABLE as KEEP_ARCHIVES};
