//! How the start of the cluster leaves the CPU to that of Docker, which a job needs first.

use crate::node::{self, capacity};

#[derive(Clone, Copy, PartialEq)]
pub enum Yielding {
    /// It is started later. With a limit of CPU time, it would take that from Docker on an idle CPU, too.
    Later,
    /// It runs on idle CPUs only.
    OnIdleCpus,
    /// Not at all, because it could not get its share of the CPU back.
    Not,
}

impl Yielding {
    /// What will do here.
    pub fn here() -> Yielding {
        if capacity::has_less_time_than_cpus() {
            Yielding::Later
        } else if node::can_raise_priority() {
            Yielding::OnIdleCpus
        } else {
            Yielding::Not
        }
    }
}
