//! How the start of the cluster leaves the CPU to that of Docker, which a job needs first: for a while its processes run only
//! on CPUs that nothing else wants (SCHED_IDLE, sched(7)).

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::libc::{SCHED_IDLE, SCHED_OTHER};

use crate::node::{self, capacity};
use crate::supervisor::daemon::Daemon;
use crate::supervisor::descendants;
use crate::supervisor::reaper::Handle;
use crate::{sys, threads};

/// After this, whoever waits gets its share, even if what it waits for is not done: when Docker has much to load, or hangs.
/// It answers after half a second, and on a machine that is several times slower within this.
pub const YIELD_LIMIT: Duration = Duration::from_secs(4);
/// While the threads of a process are changed, one of them may start another that is still as before.
const PASSES: usize = 10;

/// Longer than a program takes to start a thread, even if others have the CPU meanwhile.
const STARTS_THREAD: Duration = Duration::from_millis(200);

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

/// Has a process and its threads wait for others. They have the init's policy.
pub fn lower(process: Handle) {
    process.while_it_runs(|pid| change(pid, SCHED_OTHER, SCHED_IDLE));
}

/// Takes that back, also from what they have started meanwhile. Needs CAP_SYS_NICE or an RLIMIT_NICE.
pub fn restore(process: Handle) {
    process.while_it_runs(|pid| drop(descendants::visit(pid, |pid| change(pid, SCHED_IDLE, SCHED_OTHER))));
}

/// Lowers a process until a daemon answers, or for `YIELD_LIMIT`.
pub fn yield_to(other: Arc<Daemon>, process: Handle) {
    lower(process);
    let wait = move || {
        other.wait_until_answers(YIELD_LIMIT);
        restore(process);
        // A thread that was being started at that moment shows up only now.
        thread::sleep(STARTS_THREAD);
        restore(process);
    };
    if threads::start("priority", wait).is_err() {
        restore(process);
    }
}

/// An init that has another policy, because the engine was asked for it, keeps it, and so do its children.
fn change(pid: i32, from: i32, to: i32) {
    if sys::scheduling_policy(0) != Some(SCHED_OTHER) {
        return;
    }
    for _ in 0..PASSES {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let threads = threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let changed = threads.filter(|thread| sys::scheduling_policy(*thread) == Some(from) && sys::set_scheduling_policy(*thread, to));
        if changed.count() == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::config::{DAEMON_LIMIT, POLL};
    use crate::node;
    use crate::supervisor::reaper;

    #[test]
    fn a_process_is_made_to_wait_and_gets_its_share_back_with_its_children() {
        let go = std::env::temp_dir().join(format!("kind-priority-{}", std::process::id()));
        let mut command = Command::new("sh");
        let child = reaper::spawn(command.args(["-c", "until [ -e $0 ]; do :; done; sleep 60 & wait"]).arg(&go)).unwrap();
        let pid = child.handle().pid();
        lower(child.handle());
        assert_eq!(sys::scheduling_policy(pid), Some(SCHED_IDLE));
        fs::write(&go, "").unwrap();
        let sleep = reaper::poll(POLL, DAEMON_LIMIT, || descendants::children(pid).unwrap().first().copied()).unwrap();
        assert_eq!(sys::scheduling_policy(sleep), Some(SCHED_IDLE));
        restore(child.handle());
        // Otherwise it depends on a limit (RLIMIT_NICE).
        if node::can_raise_priority() {
            assert_eq!([pid, sleep].map(sys::scheduling_policy), [Some(SCHED_OTHER); 2]);
        }
        child.handle().kill_group();
        fs::remove_file(go).unwrap();
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a process that the reaper does not know")]
    fn a_process_that_has_got_the_process_id_of_one_that_ended_is_left_alone() {
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = other.id() as i32;
        lower(Handle::of_another(pid));
        assert_eq!(sys::scheduling_policy(pid), Some(SCHED_OTHER));
        assert!(sys::set_scheduling_policy(pid, SCHED_IDLE));
        restore(Handle::of_another(pid));
        assert_eq!(sys::scheduling_policy(pid), Some(SCHED_IDLE));
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
