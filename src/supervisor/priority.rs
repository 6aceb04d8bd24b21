//! Has programs wait for others, by their niceness (sched(7)).

use std::fs;

use crate::sys;

/// How much nicer than the init: about a tenth of the CPU time of what they compete with.
const NICER: i32 = 10;
/// While all threads get a niceness, one of them may start another that still has the old one.
const PASSES: usize = 10;

/// Has a process and its threads wait for others.
pub fn lower(pid: i32) {
    set(pid, sys::niceness(0) + NICER);
}

/// Takes that back, which needs CAP_SYS_NICE.
pub fn restore(pid: i32) {
    set(pid, sys::niceness(0));
}

fn set(pid: i32, niceness: i32) {
    for _ in 0..PASSES {
        let mut changed = false;
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for thread in threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            changed |= sys::niceness(thread) != niceness && sys::set_niceness(thread, niceness);
        }
        if !changed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::supervisor::reaper;

    #[test]
    fn a_process_is_made_to_wait_and_gets_its_share_back() {
        let before = sys::niceness(0);
        let child = reaper::spawn(Command::new("sleep").arg("60")).unwrap();
        let pid = child.handle().pid();
        lower(pid);
        assert_eq!(sys::niceness(pid), before + NICER);
        // Without CAP_SYS_NICE, which root has, it stays as it is.
        let is_root = nix::unistd::geteuid().is_root();
        restore(pid);
        assert_eq!(sys::niceness(pid) == before, is_root);
        child.handle().kill_group();
    }
}
