//! `kind run COMMAND`: reaping, exit statuses and signals.
// No reaper runs in this process, so std's own wait calls are safe.
#![allow(clippy::disallowed_methods)]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use common::node::{as_pid1, without_namespaces, Running};
use common::{children, closed_pipe, code, process, signal_masks, wait_for, zombies, TempDir, KIND, LIMIT};
use nix::sys::signal::Signal;

const ORPHANS: usize = 300;

/// Double forks: the parent of each `true` ends at once, before or after `true` itself.
fn orphans(dir: &TempDir) -> String {
    format!("for i in $(seq {ORPHANS}); do (true &); done; touch {}", dir.join("spawned").display())
}

fn shell(line: &str) -> Command {
    let mut command = Command::new(KIND);
    command.args(["run", "sh", "-c", line]);
    command
}

fn exit_code(line: &str) -> i32 {
    code(shell(line).status().unwrap())
}

fn wait_for_file(dir: &TempDir, name: &str) {
    wait_for(&format!("{name} is written"), LIMIT, || dir.join(name).exists().then_some(()));
}

#[test]
fn orphans_are_reaped_while_the_command_runs() {
    let dir = TempDir::new();
    let line = format!("{}; exec sleep 1000", orphans(&dir));
    let Some(kind) = as_pid1(&dir, &[KIND, "run", "sh", "-c", &line]) else { return };
    wait_for_file(&dir, "spawned");
    wait_for("no zombie is left", LIMIT, || (zombies(kind.pid()) == 0).then_some(()));
    wait_for("only the command is left", LIMIT, || (children(kind.pid()).len() == 1).then_some(()));
}

/// The negative control: under a PID 1 that does not reap, the same orphans become zombies.
#[test]
fn orphans_under_a_pid_1_that_does_not_reap_become_zombies() {
    let dir = TempDir::new();
    // In a background shell: a shell that execs `sleep` itself would reap some of them first.
    let line = format!("({}) & exec sleep 1000", orphans(&dir));
    let Some(sleep) = as_pid1(&dir, &["sh", "-c", &line]) else { return };
    wait_for_file(&dir, "spawned");
    wait_for("every orphan is a zombie", LIMIT, || (zombies(sleep.pid()) >= ORPHANS).then_some(()));
}

#[test]
fn the_commands_status_is_not_lost_among_orphans() {
    let dir = TempDir::new();
    let Some(mut kind) = as_pid1(&dir, &[KIND, "run", "sh", "-c", &format!("{}; exit 42", orphans(&dir))]) else { return };
    assert_eq!(kind.wait(LIMIT), 42);
}

#[test]
fn every_exit_code_is_passed_on() {
    for expected in 0..=255 {
        assert_eq!(exit_code(&format!("exit {expected}")), expected);
    }
}

#[test]
fn pid_1_passes_exit_codes_on() {
    let dir = TempDir::new();
    for expected in [0, 1, 42, 255] {
        let Some(mut kind) = as_pid1(&dir, &[KIND, "run", "sh", "-c", &format!("exit {expected}")]) else { return };
        assert_eq!(kind.wait(LIMIT), expected);
    }
}

#[test]
fn death_by_a_signal_gives_128_plus_its_number() {
    for signal in [1, 2, 3, 6, 9, 11, 13, 14, 15, 34, 64] {
        assert_eq!(exit_code(&format!("ulimit -c 0; kill -{signal} $$")), 128 + signal);
    }
}

#[test]
fn a_command_that_cannot_run_gives_a_shells_exit_status() {
    let dir = TempDir::new();
    let plain = dir.write("plain", "not a program");
    let plain = plain.to_str().unwrap();
    for (program, expected) in [("no-such-command", 127), ("/no/such/file", 127), (plain, 126), (dir.path().to_str().unwrap(), 126)] {
        // An unreadable directory on PATH would make it "permission denied".
        let output = Command::new(KIND).args(["run", program]).env("PATH", "/usr/bin:/bin").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(expected), "{program}: {said}");
        assert!(said.lines().count() == 1 && said.contains(program), "{said}");
    }
}

/// A shell script that writes the number of each signal it gets to `dir/got`, and ends once the directory is removed.
fn record_signals(dir: &TempDir, numbers: &[i32]) -> String {
    let got = dir.join("got").display().to_string();
    let traps: String = numbers.iter().map(|number| format!("trap 'echo {number} >>{got}' {number}; ")).collect();
    format!("{traps}touch {}; while [ -d {} ]; do sleep 0.02; done", dir.join("ready").display(), dir.path().display())
}

fn expect_signals(kind: &Running, dir: &TempDir, signals: &[i32]) {
    wait_for_file(dir, "ready");
    for signal in signals {
        kind.signal_number(*signal);
        let number = signal.to_string();
        wait_for(&format!("the command gets {signal}"), LIMIT, || dir.read("got").lines().any(|line| line == number).then_some(()));
    }
    let got = dir.read("got");
    assert_eq!(got.lines().count(), signals.len(), "each arrives once: {got:?}");
}

/// All signals except those that cannot be caught, mean a fault, or are for job control or reaping.
fn forwarded() -> Vec<i32> {
    use libc::*;
    let kept =
        [SIGKILL, SIGSTOP, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS, SIGPIPE, SIGCHLD, SIGTSTP, SIGTTIN, SIGTTOU, 32, 33];
    (1..=64).filter(|signal| !kept.contains(signal)).collect()
}

#[test]
fn every_signal_is_forwarded_to_the_command() {
    let dir = TempDir::new();
    let signals = forwarded();
    let kind = without_namespaces(&dir, &[KIND, "run", "bash", "-c", &record_signals(&dir, &signals)]);
    expect_signals(&kind, &dir, &signals);
}

#[test]
fn pid_1_forwards_every_signal() {
    let dir = TempDir::new();
    let signals = forwarded();
    let Some(kind) = as_pid1(&dir, &[KIND, "run", "bash", "-c", &record_signals(&dir, &signals)]) else { return };
    expect_signals(&kind, &dir, &signals);
}

#[test]
fn orphans_are_adopted_even_if_it_is_not_pid_1() {
    let dir = TempDir::new();
    let kind = without_namespaces(
        &dir,
        &[KIND, "run", "sh", "-c", &format!("(sleep 1000 &); touch {}; exec sleep 1000", dir.join("ready").display())],
    );
    wait_for_file(&dir, "ready");
    let both = wait_for("the orphan is a child like the command", LIMIT, || Some(children(kind.pid())).filter(|both| both.len() == 2));
    both.iter().for_each(|child| nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.pid), Signal::SIGKILL).unwrap());
}

#[test]
fn sigterm_ends_a_command_that_does_not_handle_it() {
    let dir = TempDir::new();
    let Some(mut kind) = as_pid1(&dir, &[KIND, "run", "sleep", "1000"]) else { return };
    wait_for("the command runs", LIMIT, || children(kind.pid()).iter().find(|child| child.name == "sleep").map(drop));
    kind.signal(Signal::SIGTERM);
    assert_eq!(kind.wait(LIMIT), 143);
}

#[test]
fn job_control_signals_do_not_stop_it() {
    let dir = TempDir::new();
    let kind = without_namespaces(&dir, &[KIND, "run", "sh", "-c", &record_signals(&dir, &[libc::SIGUSR1])]);
    wait_for_file(&dir, "ready");
    for signal in [Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGTSTP] {
        kind.signal(signal);
    }
    // Both still run: the signal is forwarded and arrives.
    expect_signals(&kind, &dir, &[libc::SIGUSR1]);
    assert_ne!(process(kind.pid()).unwrap().state, 'T');
}

/// A shell with what the command must not inherit: ignored and blocked signals, and an open descriptor.
const DIRTY: &str = "trap '' USR1 HUP TRAP 40; exec 7</dev/null; exec env --block-signal=USR2 --block-signal=TERM";

/// The signal masks of a process started from that shell, and whether it has descriptor 7.
fn found(program: &str) -> (Vec<u64>, bool) {
    let said = |argv: &str| {
        let output = Command::new("bash").args(["-c", &format!("{DIRTY} {program} {argv}")]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    (signal_masks(&said("cat /proc/self/status")), said("ls /proc/self/fd").lines().any(|fd| fd == "7"))
}

#[test]
fn a_command_inherits_no_signal_mask_no_ignored_signals_and_no_descriptors() {
    let (masks, open) = found(&format!("{KIND} run"));
    assert!(masks.len() == 2 && masks.iter().all(|mask| *mask == 0) && !open, "{masks:x?} {open}");
    // The negative control: without our binary in between, everything is inherited.
    let (masks, open) = found("");
    assert!(masks.iter().all(|mask| *mask != 0) && open, "{masks:x?} {open}");
}

#[test]
fn a_closed_standard_output_or_error_does_not_kill_it() {
    assert_eq!(code(shell("exit 7").stdout(closed_pipe()).stderr(closed_pipe()).status().unwrap()), 7);
    let line = format!("exec {KIND} run sh -c 'exit 8' <&- >&- 2>&-");
    assert_eq!(code(Command::new("sh").args(["-c", &line]).status().unwrap()), 8);
    // An error message that cannot be written.
    let mut missing = Command::new(KIND);
    assert_eq!(code(missing.args(["run", "/no/such/file"]).stderr(closed_pipe()).status().unwrap()), 127);
}

#[test]
fn the_command_reads_our_standard_input() {
    let mut child = shell("read line; test \"$line\" = hello").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    assert!(child.wait().unwrap().success());
}

/// As with `docker run -it IMAGE sh`: SIGTTIN would stop a command in a background process group.
#[test]
fn the_command_reads_the_terminal() {
    let dir = TempDir::new();
    let line = format!("{KIND} run sh -c 'read line; echo \"$line\" >{}'", dir.join("got").display());
    let mut script = Command::new("setpriv");
    script.args(["--pdeathsig", "KILL", "script", "-qec", &line, "/dev/null"]);
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    script.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    let done = wait_for("the command reads its line, or is stopped", LIMIT, || {
        let shells = children(script.id() as i32).iter().flat_map(|child| children(child.pid)).collect::<Vec<_>>();
        let stopped = shells.iter().any(|shell| shell.state == 'T');
        (stopped || !dir.read("got").is_empty()).then_some(!stopped)
    });
    let _ = script.kill();
    let _ = script.wait();
    assert!(done, "the command was stopped by SIGTTIN: it is not in the terminal's foreground group");
    assert_eq!(dir.read("got"), "hello\n");
}
