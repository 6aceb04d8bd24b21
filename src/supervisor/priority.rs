//! Has processes run only on CPUs that nothing else wants (SCHED_IDLE, sched(7)), for a while.

use std::fs;
use std::time::Duration;

use nix::libc::{SCHED_IDLE, SCHED_OTHER};

use crate::supervisor::descendants;
use crate::sys;

/// After this, whoever waits gets its share, even if what it waits for is not done: on a slow machine, and when Docker
/// has much to load.
pub const YIELD_LIMIT: Duration = Duration::from_millis(1500);
/// While the threads of a process are changed, one of them may start another that is still as before.
const PASSES: usize = 10;

/// Has a process and its threads wait for others. They must be the init's children, or below: they have its policy.
pub fn lower(pid: i32) {
    change(pid, SCHED_OTHER, SCHED_IDLE);
}

/// Takes that back, also from what they have started meanwhile. Needs CAP_SYS_NICE or an RLIMIT_NICE.
pub fn restore(pid: i32) {
    descendants::visit(pid, |pid| change(pid, SCHED_IDLE, SCHED_OTHER));
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
        lower(pid);
        assert_eq!(sys::scheduling_policy(pid), Some(SCHED_IDLE));
        fs::write(&go, "").unwrap();
        let sleep = reaper::poll(POLL, DAEMON_LIMIT, || descendants::children(pid).unwrap().first().copied()).unwrap();
        assert_eq!(sys::scheduling_policy(sleep), Some(SCHED_IDLE));
        restore(pid);
        // Otherwise it depends on a limit (RLIMIT_NICE).
        if node::can_raise_priority() {
            assert_eq!([pid, sleep].map(sys::scheduling_policy), [Some(SCHED_OTHER); 2]);
        }
        child.handle().kill_group();
        fs::remove_file(go).unwrap();
    }
}
