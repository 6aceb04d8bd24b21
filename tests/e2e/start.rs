//! The two ways in which a cluster comes up: its control plane is restored from the bake's checkpoint, or started cold.

use crate::cluster::{Cluster, LIMIT};
use crate::process::wait_for;

/// What the log says of each.
pub const RESTORED: &str = "the control plane is restored in";
pub const COLD: &str = "the control plane is started, not restored";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    Restored,
    Cold,
}

impl Start {
    /// Options of `docker create`. Some versions of Kubernetes are restored only when that is asked for.
    pub fn options(self) -> [&'static str; 2] {
        ["--env", if self == Start::Restored { "KIND_RESTORE=1" } else { "KIND_RESTORE=0" }]
    }

    /// A container that is not started yet.
    pub fn create(self, arguments: &[&str]) -> Cluster {
        Cluster::create(&[&self.options(), arguments].concat())
    }

    /// A cluster that is ready, and has come up in this way.
    pub fn ready(self, arguments: &[&str]) -> Cluster {
        let cluster = self.create(arguments);
        cluster.container.start();
        cluster.wait_until_ready();
        self.check(&cluster);
        cluster
    }

    /// Panics unless the latest start of a container that is ready was of this kind.
    pub fn check(self, cluster: &Cluster) {
        // The engine may have the line a moment after the files are served.
        let said = || cluster.container.logs().lines().rfind(|line| line.contains(RESTORED) || line.contains(COLD)).map(str::to_string);
        let said = wait_for("the log says how the control plane came up", LIMIT, said);
        let (expected, other) = if self == Start::Restored { (RESTORED, COLD) } else { (COLD, RESTORED) };
        assert!(said.contains(expected) && !said.contains(other), "this start was not {self:?}: {said}");
    }
}

/// Makes two tests of each function, `restored::NAME` and `cold::NAME`: for what differs between the two.
macro_rules! on_both_starts {
    ($($name:ident)+) => {
        $crate::start::on_each_start! { restored Restored $($name)+ }
        $crate::start::on_each_start! { cold Cold $($name)+ }
    };
}
pub(crate) use on_both_starts;

macro_rules! on_each_start {
    ($module:ident $start:ident $($name:ident)+) => {
        mod $module {
            $(
                #[test]
                #[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
                fn $name() {
                    super::$name($crate::start::Start::$start);
                }
            )+
        }
    };
}
pub(crate) use on_each_start;
