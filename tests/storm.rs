//! Many processes that end at once: no status is lost, and signals still work.
// No reaper runs in this process, so std's own wait calls are safe.
#![allow(clippy::disallowed_methods)]

mod common;

use std::fs::OpenOptions;
use std::process::Command;
use std::time::{Duration, Instant};

use common::node::as_pid1;
use common::{children, code, process, wait_for, zombies, TempDir, KIND, LIMIT};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

const ORPHANS: usize = 5_000;
/// For creating, reaping and killing them, on a machine that is busy besides.
const FORK_LIMIT: Duration = Duration::from_secs(120);

/// Orphans that all wait for the FIFO `dir/start`, and end together once it is opened for writing.
fn waiting_orphans(dir: &TempDir) -> String {
    let fifo = dir.join("start");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    format!("i=0; while [ $i -lt {ORPHANS} ]; do ((read line <{}) &); i=$((i+1)); done; exec sleep 1000", fifo.display())
}

fn release(dir: &TempDir) {
    drop(OpenOptions::new().write(true).open(dir.join("start")).unwrap());
}

#[test]
fn a_sigterm_is_not_lost_while_five_thousand_orphans_end() {
    let dir = TempDir::new();
    let line = waiting_orphans(&dir);
    let Some(mut kind) = as_pid1(&dir, &[KIND, "run", "sh", "-c", &line]) else { return };
    wait_for("every orphan has started", FORK_LIMIT, || (children(kind.pid()).len() == ORPHANS + 1).then_some(()));
    release(&dir);
    let asked = Instant::now();
    kind.signal(Signal::SIGTERM);
    // How long it takes is printed, not judged: on a busy machine each of the orphans gets as much of the CPU as the init.
    assert_eq!(kind.wait(FORK_LIMIT), 143);
    println!("{ORPHANS} orphans ended; SIGTERM acted within {:.3} s", asked.elapsed().as_secs_f64());
}

#[test]
fn five_thousand_orphans_leave_no_zombie() {
    let dir = TempDir::new();
    let line = waiting_orphans(&dir);
    let Some(kind) = as_pid1(&dir, &[KIND, "run", "sh", "-c", &line]) else { return };
    wait_for("every orphan has started", FORK_LIMIT, || (children(kind.pid()).len() == ORPHANS + 1).then_some(()));
    release(&dir);
    let released = Instant::now();
    wait_for("only the command is left", FORK_LIMIT, || (children(kind.pid()).len() == 1).then_some(()));
    println!("{ORPHANS} orphans were reaped within {:.3} s", released.elapsed().as_secs_f64());
    assert_eq!(process(kind.pid()).unwrap().state, 'S', "it sleeps afterwards");
}

/// The negative control: under a PID 1 that does not reap, the same orphans become zombies.
#[test]
fn five_thousand_orphans_under_a_pid_1_that_does_not_reap_become_zombies() {
    let dir = TempDir::new();
    // In a background shell: a shell that execs `sleep` itself would reap some of them first.
    let line = format!("({}) & exec sleep 1000", waiting_orphans(&dir));
    let Some(sleep) = as_pid1(&dir, &["sh", "-c", &line]) else { return };
    wait_for("every orphan has started", FORK_LIMIT, || (children(sleep.pid()).len() == ORPHANS + 1).then_some(()));
    release(&dir);
    wait_for("every orphan is a zombie", FORK_LIMIT, || (zombies(sleep.pid()) == ORPHANS).then_some(()));
}

#[test]
fn a_command_and_an_orphan_that_end_together_do_not_hide_each_other() {
    for round in 0..200 {
        let status = Command::new(KIND).args(["run", "sh", "-c", "(true &); exit 7"]).status().unwrap();
        assert_eq!(code(status), 7, "round {round}");
    }
}

/// PID 1 does not wait for processes that the command leaves behind: the kernel kills them with it.
#[test]
fn a_child_that_ignores_signals_does_not_delay_the_end() {
    let dir = TempDir::new();
    let line = format!(
        "(trap '' TERM HUP INT; touch {}; sleep 1000) & while [ ! -e {0} ]; do sleep 0.02; done; exit 5",
        dir.join("ready").display()
    );
    let Some(mut kind) = as_pid1(&dir, &[KIND, "run", "sh", "-c", &line]) else { return };
    assert_eq!(kind.wait(LIMIT), 5);
}
