//! The one place that spawns, waits and kills: the only module that knows pids.
//!
//! A `waitpid(-1)` loop beside `Child::wait` steals exit statuses, so there is one reaper. `spawn`
//! holds the table's lock across fork and registration; `drain`, called by the main thread on
//! SIGCHLD, takes the lock again for each pid and sends the status to whoever registered it.
#![allow(clippy::disallowed_methods)]

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::clock::Stopwatch;
use crate::error::{Error, Result};
use crate::sys::{reap_one, send_signal, Reaped};

/// Lines of a failed command's output that its error carries.
const TAIL_LINES: usize = 12;

/// How long killed processes may take to be gone; one in an uninterruptible wait may not go at all.
const LAST_ONES: Duration = Duration::from_millis(500);

type Table = HashMap<i32, Sender<ExitStatus>>;

fn table() -> MutexGuard<'static, Table> {
    static TABLE: OnceLock<Mutex<Table>> = OnceLock::new();
    TABLE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Collects every child that has ended. SIGCHLD coalesces, so this goes on until nothing is left.
pub fn drain() {
    loop {
        let mut children = table();
        match reap_one() {
            // A receiver that is gone did not want the status; an unknown pid was an orphan.
            Reaped::Child(pid, status) => drop(children.remove(&pid).map(|owner| owner.send(status))),
            Reaped::Nothing | Reaped::NoChildren => return,
        }
    }
}

/// Collects our own children alone: for tests, whose process has others that std waits for.
#[cfg(test)]
pub fn drain_ours() {
    table().retain(|pid, owner| match crate::sys::reap(*pid) {
        Reaped::Child(_, status) => owner.send(status).is_err(),
        Reaped::Nothing | Reaped::NoChildren => true,
    });
}

/// A process of ours that may still run.
pub struct Child {
    pid: i32,
    exit: Receiver<ExitStatus>,
}

/// Names a process for signals; does nothing once the process was reaped.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Handle(i32);

impl Handle {
    /// Signals the process, only while its pid is still registered and so cannot be another's.
    pub fn signal(self, signal: Signal) {
        self.signal_number(signal as i32);
    }

    /// As `signal`, for any number.
    pub fn signal_number(self, number: i32) {
        let children = table();
        if children.contains_key(&self.0) {
            send_signal(self.0, number);
        }
    }

    /// Kills the process and everything in its group.
    pub fn kill_group(self) {
        let children = table();
        if children.contains_key(&self.0) {
            let _ = kill(Pid::from_raw(-self.0), Signal::SIGKILL);
        }
    }
}

impl Child {
    pub fn handle(&self) -> Handle {
        Handle(self.pid)
    }

    pub fn wait(&self) -> ExitStatus {
        // The sender lives in the table until the status is sent: an error means that the pid was lost.
        self.exit.recv().unwrap_or_else(|_| ExitStatus::from_raw(255 << 8))
    }

    /// The status, or `None` when the process still runs after `limit`.
    pub fn wait_timeout(&self, limit: Duration) -> Option<ExitStatus> {
        match self.exit.recv_timeout(limit) {
            Ok(status) => Some(status),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(ExitStatus::from_raw(255 << 8)),
        }
    }
}

fn spawn_raw(command: &mut Command) -> io::Result<(Child, std::process::Child)> {
    let mut children = table();
    let process = command.spawn()?;
    let (sender, exit) = channel();
    let pid = process.id() as i32;
    children.insert(pid, sender);
    Ok((Child { pid, exit }, process))
}

/// What every process gets that is not the user's own command. Clean signals and no descriptors of
/// ours it has anyway: see `main`.
fn confine(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).current_dir("/")
}

/// Starts a long-lived process in a group of its own, with `/dev/null` on stdin and cwd `/`.
pub fn spawn(command: &mut Command) -> Result<Child> {
    confine(command).process_group(0);
    spawn_raw(command).map(|(child, _)| child).map_err(|cause| cannot_run(command, &cause))
}

/// Starts the user's own command, which shares our terminal and stdin.
pub fn spawn_foreground(command: &mut Command) -> Result<Child> {
    spawn_raw(command).map(|(child, _)| child).map_err(|cause| cannot_run(command, &cause))
}

/// Runs a short helper to its end and returns its standard output.
///
/// # Errors
/// The command cannot be started, or ends with a status that is not 0; the error then carries argv,
/// status and the tail of its output.
pub fn run(command: &mut Command) -> Result<String> {
    confine(command).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (child, mut process) = spawn_raw(command).map_err(|cause| cannot_run(command, &cause))?;
    let stderr = process.stderr.take();
    let errors = thread::Builder::new().name("output".into()).spawn(move || read_all(stderr));
    let output = read_all(process.stdout.take());
    let errors = errors.map(|thread| thread.join().unwrap_or_default()).unwrap_or_default();
    check(command, child.wait(), &format!("{output}{errors}"))?;
    Ok(output)
}

/// Whether a short helper succeeds, in a process that has only this one child and no loop that waits.
pub fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs a command to its end with our own output as its output.
pub fn run_visibly(command: &mut Command) -> Result<()> {
    confine(command);
    let (child, _) = spawn_raw(command).map_err(|cause| cannot_run(command, &cause))?;
    check(command, child.wait(), "")
}

fn check(command: &Command, status: ExitStatus, output: &str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let tail = tail(output, TAIL_LINES);
    let separator = if tail.is_empty() { "" } else { ":\n" };
    Err(Error::new(format!("{} {}{separator}{tail}", argv(command), describe(status))))
}

fn cannot_run(command: &Command, cause: &io::Error) -> Error {
    Error::new(format!("cannot run {}: {cause}", argv(command))).with_status(code_of_failed_exec(cause))
}

/// As shells have it: not found, or found and not executable.
pub const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

pub fn code_of_failed_exec(cause: &io::Error) -> u8 {
    if cause.kind() == io::ErrorKind::NotFound {
        NOT_FOUND
    } else {
        NOT_EXECUTABLE
    }
}

fn argv(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn read_all(source: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut source) = source {
        // What was read before an error is still worth showing.
        let _ = source.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last `count` lines of a text.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// "ended with status 3" or "was killed by SIGKILL".
pub fn describe(status: ExitStatus) -> impl fmt::Display {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {number}"),
        },
        (None, None) => format!("ended ({status})"),
    }
}

/// The exit status as a shell gives it: the code itself, or 128 + signal.
pub fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128u8.wrapping_add(signal as u8),
        (None, None) => 255,
    }
}

/// Signals processes that are not our children, such as those of pods; one that has ended is passed over.
pub fn signal_all(pids: &[i32], signal: Signal) {
    for pid in pids.iter().filter(|pid| **pid > 1) {
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}

/// Kills whatever is left in the container, when we are its PID 1, and collects it.
pub fn kill_everyone() {
    if std::process::id() != 1 {
        return;
    }
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    poll(Duration::from_millis(5), LAST_ONES, || match reap_one() {
        Reaped::NoChildren => Some(()),
        _ => None,
    });
}

/// Calls `check` every `interval` until it gives a value or `limit` has passed.
pub fn poll<T>(interval: Duration, limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let mut waited = Stopwatch::start();
    loop {
        match check() {
            Some(value) => return Some(value),
            None if waited.elapsed() >= limit => return None,
            None => thread::sleep(interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_becomes_the_code_a_shell_would_give() {
        for code in 0..=255 {
            assert_eq!(exit_code(ExitStatus::from_raw(code << 8)), code as u8);
        }
        for (signal, code) in [(1, 129), (9, 137), (15, 143), (34, 162), (64, 192)] {
            assert_eq!(exit_code(ExitStatus::from_raw(signal)), code);
        }
    }

    #[test]
    fn a_status_is_described_in_words_also_for_real_time_signals() {
        for (raw, words) in [(3 << 8, "ended with status 3"), (9, "was killed by SIGKILL"), (34, "was killed by signal 34")] {
            assert_eq!(describe(ExitStatus::from_raw(raw)).to_string(), words);
        }
    }

    #[test]
    fn a_tail_is_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
        assert_eq!(tail("", 2), "");
    }

    /// Runs one of the tests below as a process of its own, since a reaper takes every child's status.
    fn in_a_process(test: &str) -> String {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([&format!("supervisor::reaper::tests::{test}"), "--exact", "--ignored", "--nocapture"]).env("TEST_REAPER", test);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }

    /// In that process: adopts orphans, of which there is a storm until `end` is called, and reaps.
    fn reap_a_storm() -> Option<Child> {
        std::env::var_os("TEST_REAPER")?;
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGCHLD]).unwrap();
        thread::spawn(move || signals.forever().for_each(|_| drain()));
        Some(spawn(Command::new("sh").args(["-c", "while kill -0 $PPID; do (true & true &) ; done"])).unwrap())
    }

    const HELPERS: usize = 300;

    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn helpers_in_a_storm() {
        let Some(storm) = reap_a_storm() else { return };
        for number in 0..HELPERS {
            let expected = number % 3;
            let ended = run(Command::new("sh").args(["-c", &format!("echo {number}; exit {expected}")]));
            match ended {
                Ok(output) => assert_eq!((output, expected), (format!("{number}\n"), 0)),
                Err(error) => assert!(error.to_string().contains(&format!("ended with status {expected}:\n{number}")), "{error}"),
            }
        }
        assert_eq!(storm.wait_timeout(Duration::ZERO), None, "the storm went on to the end");
        storm.handle().kill_group();
    }

    #[test]
    fn no_status_of_300_helpers_is_lost_beside_a_storm_of_orphans() {
        in_a_process("helpers_in_a_storm");
    }

    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn careless_helpers_in_a_storm() {
        let Some(storm) = reap_a_storm() else { return };
        let lost = (0..HELPERS).filter(|_| Command::new("true").status().is_err()).count();
        storm.handle().kill_group();
        println!("lost={lost}=");
    }

    /// The negative control: std's own waiting beside the same reaper loses some.
    #[test]
    fn waiting_beside_the_reaper_is_noticed() {
        let said = in_a_process("careless_helpers_in_a_storm");
        let lost: usize = said.split("lost=").nth(1).and_then(|rest| rest.split('=').next()).unwrap().parse().unwrap();
        assert!(lost > 0, "none of {HELPERS} was lost");
    }

    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn pairs_in_a_storm() {
        let Some(storm) = reap_a_storm() else { return };
        for round in 0..200 {
            let pair = [Signal::SIGTERM, Signal::SIGKILL].map(|signal| (spawn(Command::new("sleep").arg("1000")).unwrap(), signal));
            pair.iter().for_each(|(child, signal)| child.handle().signal(*signal));
            for (child, signal) in pair {
                let status = child.wait_timeout(Duration::from_secs(30)).unwrap_or_else(|| panic!("round {round}: {signal} was lost"));
                assert_eq!(status.signal(), Some(signal as i32), "round {round}");
            }
        }
        storm.handle().kill_group();
    }

    #[test]
    fn two_children_that_die_together_are_both_noticed_200_times_over() {
        in_a_process("pairs_in_a_storm");
    }
}
