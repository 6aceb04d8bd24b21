//! Processes that others have started.

use std::fs;

use crate::error::{Error, Result};

/// The children of a process: those of each of its threads, in the order in which it started them.
pub fn children(parent: i32) -> Result<Vec<i32>> {
    let path = format!("/proc/{parent}/task");
    let threads = fs::read_dir(&path).map_err(|cause| Error::io("read", &path, cause))?.flatten();
    // A thread that has ended has no children: they have become another one's.
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    Ok(texts.flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect())
}

/// The state of a process, such as `Z`, and its parent, while it is there (proc_pid_stat(5)).
pub fn state_and_parent(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // They follow the name, which is in parentheses and may have any in it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Visits a process and everything below it, each before those below it. Returns them in that order.
pub fn visit(root: i32, visit: fn(i32)) -> Vec<i32> {
    let mut pids = vec![root];
    let mut next = 0;
    while let Some(pid) = pids.get(next).copied() {
        visit(pid);
        pids.extend(children(pid).unwrap_or_default());
        next += 1;
    }
    pids
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;
    use crate::supervisor::reaper;

    #[test]
    fn a_child_that_another_thread_has_started_is_found() {
        let (tells, told) = channel();
        let (ends, ended) = channel::<()>();
        let thread = thread::spawn(move || {
            let child = reaper::spawn(Command::new("sleep").arg("60")).unwrap();
            tells.send(child.handle().pid()).unwrap();
            let _ = ended.recv();
            child.handle().kill_group();
        });
        let pid = told.recv().unwrap();
        let own = std::process::id() as i32;
        assert!(children(own).unwrap().contains(&pid));
        assert!(visit(own, |_| {}).contains(&pid));
        assert_eq!(state_and_parent(pid).map(|(_, parent)| parent), Some(own));
        assert_eq!(state_and_parent(i32::MAX), None);
        drop(ends);
        thread.join().unwrap();
    }
}
