//! Spawns, waits for and kills processes: the only module that does, and the only one that knows pids.
//!
//! A `waitpid(-1)` loop takes exit statuses away from a concurrent `Child::wait`, so all waiting goes through
//! one reaper. `spawn` holds the table's lock across fork and registration; `drain`, which the main thread calls
//! on SIGCHLD, takes the lock for each pid and sends the status to whoever registered the pid.
#![allow(clippy::disallowed_methods)]

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::config::KILL_POLL;
use crate::error::{Error, Result};
use crate::supervisor::descendants;
use crate::sys::{reap_one, send_signal, Reaped};
use crate::threads;

/// Lines at the end of a failed command's output that the error includes.
const TAIL_LINES: usize = 12;

/// How long to wait for killed processes to end. One in uninterruptible sleep may never end.
const KILL_LIMIT: Duration = Duration::from_millis(500);

/// Stands for a status that was lost.
const LOST: i32 = 255 << 8;

type Table = HashMap<i32, Sender<ExitStatus>>;

fn table() -> MutexGuard<'static, Table> {
    static TABLE: OnceLock<Mutex<Table>> = OnceLock::new();
    TABLE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reaps every child that has ended. Several deaths may raise a single SIGCHLD, hence the loop. Returns whether an
/// orphan was among them.
pub fn drain() -> bool {
    let mut had_orphans = false;
    loop {
        let mut children = table();
        match reap_one() {
            Reaped::Child(pid, status) => match children.remove(&pid) {
                // Without a receiver nobody wants the status.
                Some(owner) => drop(owner.send(status)),
                None => had_orphans = true,
            },
            Reaped::Nothing | Reaped::NoChildren => return had_orphans,
        }
    }
}

/// Reaps only registered children: for tests, in whose process std waits for others.
#[cfg(test)]
pub fn drain_ours() {
    table().retain(|pid, owner| match crate::sys::reap(*pid) {
        Reaped::Child(_, status) => owner.send(status).is_err(),
        Reaped::Nothing | Reaped::NoChildren => true,
    });
}

/// A process that we have spawned.
pub struct Child {
    pid: i32,
    exit: Receiver<ExitStatus>,
}

/// Sends signals to a process, and does nothing once it has been reaped.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Handle(i32);

impl Handle {
    pub fn pid(self) -> i32 {
        self.0
    }

    pub fn signal(self, signal: Signal) {
        self.signal_number(signal as i32);
    }

    /// As `signal`, for any number.
    pub fn signal_number(self, number: i32) {
        self.while_it_runs(|pid| send_signal(pid, number));
    }

    /// Kills the process and everything in its group.
    pub fn kill_group(self) {
        self.while_it_runs(|pid| {
            let _ = kill(Pid::from_raw(-pid), Signal::SIGKILL);
        });
    }

    /// Calls `body` with the process id if that is still registered, and keeps it so meanwhile: a reaped one may belong to
    /// another process.
    pub fn while_it_runs(self, body: impl FnOnce(i32)) {
        let children = table();
        if children.contains_key(&self.0) {
            body(self.0);
        }
    }

    /// Of a process that is not registered.
    #[cfg(test)]
    pub fn of_another(pid: i32) -> Handle {
        Handle(pid)
    }
}

impl Child {
    pub fn handle(&self) -> Handle {
        Handle(self.pid)
    }

    pub fn wait(&self) -> ExitStatus {
        // The table holds the sender until the status is sent, so an error means that the status was lost.
        self.exit.recv().unwrap_or_else(|_| ExitStatus::from_raw(LOST))
    }

    /// The status, or `None` if the process is still running after `limit`.
    pub fn wait_timeout(&self, limit: Duration) -> Option<ExitStatus> {
        match self.exit.recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => None,
            ended => Some(ended.unwrap_or_else(|_| ExitStatus::from_raw(LOST))),
        }
    }
}

/// Registers a child that another process has left to us, so that its end is not taken for an orphan's. Does nothing if
/// it has ended already.
pub fn adopt(pid: i32) -> Handle {
    let mut children = table();
    if descendants::state_and_parent(pid).is_some_and(|(_, parent)| parent as u32 == std::process::id()) {
        children.insert(pid, channel().0);
    }
    Handle(pid)
}

fn spawn_raw(command: &mut Command) -> io::Result<(Child, std::process::Child)> {
    let mut children = table();
    let process = command.spawn()?;
    let (sender, exit) = channel();
    let pid = process.id() as i32;
    children.insert(pid, sender);
    Ok((Child { pid, exit }, process))
}

/// `/dev/null` on stdin and `/` as the working directory, for everything but the user's own command. `main` has
/// already reset the signals and marked the descriptors that children would inherit.
fn detach(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).current_dir("/")
}

/// Starts a long-lived process in a process group of its own.
pub fn spawn(command: &mut Command) -> Result<Child> {
    detach(command).process_group(0);
    spawn_raw(command).map(|(child, _)| child).map_err(|cause| cannot_run(command, &cause))
}

/// Starts the user's own command, which keeps our stdin and terminal.
pub fn spawn_foreground(command: &mut Command) -> Result<Child> {
    spawn_raw(command).map(|(child, _)| child).map_err(|cause| cannot_run(command, &cause))
}

/// Runs a short helper to its end and returns its standard output.
///
/// # Errors
/// The command cannot be started, or its status is not 0. The error then has argv, status and the end of the
/// output.
pub fn run(command: &mut Command) -> Result<String> {
    detach(command).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (child, mut process) = spawn_raw(command).map_err(|cause| cannot_run(command, &cause))?;
    let stderr = process.stderr.take();
    let errors = threads::start_for("output", move || read_all(stderr));
    let output = read_all(process.stdout.take());
    let errors = errors.map(|thread| thread.join().unwrap_or_default()).unwrap_or_default();
    check(command, child.wait(), &format!("{output}{errors}"))?;
    Ok(output)
}

/// The same command, which timeout(1) ends after this many seconds.
pub fn within(seconds: u64, command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after=1", &seconds.to_string()]).arg(command.get_program()).args(command.get_args());
    limited
}

/// Whether a short helper succeeds. Only for a process without a reaper and with no other child.
pub fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs a command to its end; its output goes to ours.
pub fn run_visibly(command: &mut Command) -> Result<()> {
    detach(command);
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

/// Exit statuses as in a shell: not found, and found but not executable.
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
        // Keep what was read before an error.
        let _ = source.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last `count` lines of a text.
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// `ended with status 3` or `was killed by SIGKILL`.
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

/// The exit status as a shell reports it: the code, or 128 + signal.
pub fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128u8.wrapping_add(signal as u8),
        (None, None) => 255,
    }
}

/// Signals processes that are not our children, such as those of pods. One that has ended is skipped.
pub fn signal_all(pids: &[i32], signal: Signal) {
    for pid in pids.iter().filter(|pid| **pid > 1) {
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}

/// Kills and reaps every process that is left in the container. Does nothing unless we are PID 1.
pub fn kill_all() {
    if std::process::id() != 1 {
        return;
    }
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    poll(KILL_POLL, KILL_LIMIT, || match reap_one() {
        Reaped::NoChildren => Some(()),
        _ => None,
    });
}

/// Calls `check` every `interval` until it returns a value or `limit` has passed.
pub fn poll<T>(interval: Duration, limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        match check() {
            Some(value) => return Some(value),
            None if began.elapsed() >= limit => return None,
            None => thread::sleep(interval),
        }
    }
}

/// Runs a test beside a thread that reaps, as the main thread does.
#[cfg(test)]
pub fn beside_a_reaper<T>(body: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        // Dropped at the end, even that of a test that fails.
        let (_done, is_done) = channel::<()>();
        scope.spawn(move || {
            while is_done.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Timeout) {
                drain_ours();
            }
        });
        body()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        for code in 0..=255 {
            assert_eq!(exit_code(ExitStatus::from_raw(code << 8)), code as u8);
        }
        for (signal, code) in [(1, 129), (9, 137), (15, 143), (34, 162), (64, 192)] {
            assert_eq!(exit_code(ExitStatus::from_raw(signal)), code);
        }
    }

    #[test]
    fn a_status_is_described_in_words() {
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

    /// Runs one of the tests below in a separate process, since its reaper takes the status of every child.
    fn in_a_process(test: &str) -> String {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([&format!("supervisor::reaper::tests::{test}"), "--exact", "--ignored", "--nocapture"]).env("TEST_REAPER", test);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }

    /// In that process: becomes a subreaper, starts a shell that keeps making orphans, and reaps them.
    fn start_storm_of_orphans() -> Option<Child> {
        std::env::var_os("TEST_REAPER")?;
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGCHLD]).unwrap();
        thread::spawn(move || {
            for _ in signals.forever() {
                drain();
            }
        });
        Some(spawn(Command::new("sh").args(["-c", "while kill -0 $PPID; do (true & true &) ; done"])).unwrap())
    }

    const HELPERS: usize = 300;

    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn helpers_in_a_storm() {
        let Some(storm) = start_storm_of_orphans() else { return };
        for number in 0..HELPERS {
            let expected = number % 3;
            let ended = run(Command::new("sh").args(["-c", &format!("echo {number}; exit {expected}")]));
            match ended {
                Ok(output) => assert_eq!((output, expected), (format!("{number}\n"), 0)),
                Err(error) => assert!(error.to_string().contains(&format!("ended with status {expected}:\n{number}")), "{error}"),
            }
        }
        assert_eq!(storm.wait_timeout(Duration::ZERO), None, "the storm of orphans has ended too early");
        storm.handle().kill_group();
    }

    #[test]
    fn no_helpers_status_is_lost_in_a_storm_of_orphans() {
        in_a_process("helpers_in_a_storm");
    }

    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn a_child_that_std_waits_for() {
        let Some(storm) = start_storm_of_orphans() else { return };
        let mut child = Command::new("true").spawn().unwrap();
        let path = format!("/proc/{}", child.id());
        poll(Duration::from_millis(1), Duration::from_secs(60), || (!std::path::Path::new(&path).exists()).then_some(()))
            .expect("the reaper reaps whoever has ended");
        let status = child.wait();
        storm.handle().kill_group();
        assert_eq!(status.unwrap_err().raw_os_error(), Some(nix::errno::Errno::ECHILD as i32));
    }

    /// The negative control: a status that the reaper was first to take is lost to std.
    #[test]
    fn a_status_that_the_reaper_has_taken_is_lost_to_std() {
        in_a_process("a_child_that_std_waits_for");
    }

    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn pairs_in_a_storm() {
        let Some(storm) = start_storm_of_orphans() else { return };
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
    fn two_children_that_die_together_are_both_reaped_200_times() {
        in_a_process("pairs_in_a_storm");
    }
}
