//! Starts a daemon, waits until it answers, and restarts it when it dies, until the init stops or the daemon
//! has died too often.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::config::{DAEMON_LIMIT, POLL};
use crate::error::{Error, Result};
use crate::files;
use crate::readiness::{Failure, Readiness, State};
use crate::supervisor::reaper::{self, Child, Handle};
use crate::threads;

/// After a daemon has answered for this long, its next death counts as the first one again.
const HEALTHY: Duration = Duration::from_secs(60);
/// Give up after this many deaths in a row. The pauses between them add up to 6 s.
const MAX_DEATHS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Lines at the end of the daemon's log that a failure message includes.
const TAIL_LINES: usize = 15;

type Callback<T> = Box<dyn Fn() -> T + Send + Sync>;

/// How to start a daemon and how to tell whether it works.
pub struct Spec {
    pub name: &'static str,
    /// Called before each start. Dropped when the daemon is given up, and so is what it holds, such as a port.
    pub command: Callback<Result<Command>>,
    pub answers: Callback<bool>,
    /// Called before the daemon is told to reload its configuration.
    pub before_reload: Option<Callback<Result<()>>>,
    /// The field of the state that is true from the daemon's first answer until its process ends.
    pub condition: fn(&mut State) -> &mut bool,
    /// What is different when it is started for the first time.
    pub first_start: Mutex<Option<FirstStart>>,
}

pub struct FirstStart {
    /// Given the daemon's log, returns where its standard error goes instead.
    pub log: Box<dyn FnOnce(File) -> Result<Stdio> + Send>,
    /// Called as soon as it runs.
    pub started: Box<dyn FnOnce(Handle) + Send>,
}

pub struct Daemon {
    pub name: &'static str,
    log: PathBuf,
    progress: Mutex<Progress>,
    changed: Condvar,
    /// Taken out of the spec.
    command: Mutex<Callback<Result<Command>>>,
    spec: Spec,
}

#[derive(Default)]
struct Progress {
    process: Option<Handle>,
    answers: bool,
    given_up: bool,
    /// We asked it to end: its next end is not a death.
    restarting: bool,
    /// We asked it to end for good.
    stopping: bool,
}

impl Daemon {
    /// A daemon that is not started yet. Its log in `logs` is emptied, so that it covers only this start of the
    /// container.
    pub fn new(logs: &Path, mut spec: Spec) -> Result<Arc<Daemon>> {
        let log = logs.join(format!("{}.log", spec.name));
        files::make_dir(logs)?;
        File::create(&log).map_err(|cause| Error::io("write", &log, cause))?;
        let command = Mutex::new(std::mem::replace(&mut spec.command, Box::new(given_up)));
        Ok(Arc::new(Daemon { name: spec.name, log, progress: Mutex::default(), changed: Condvar::new(), command, spec }))
    }

    fn command(&self) -> MutexGuard<'_, Callback<Result<Command>>> {
        self.command.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress());
        self.changed.notify_all();
    }

    /// Waits until the daemon answers. Returns false if it was given up or `limit` has passed.
    pub fn wait_until_answers(&self, limit: Duration) -> bool {
        let waits = |progress: &mut Progress| !progress.answers && !progress.given_up;
        let (progress, _) = self.changed.wait_timeout_while(self.progress(), limit, waits).unwrap_or_else(PoisonError::into_inner);
        progress.answers
    }

    /// Asks the process to end; it is not started again.
    pub fn stop(&self) {
        self.change(|progress| progress.stopping = true);
        self.signal(Signal::SIGTERM);
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(process) = self.progress().process {
            process.signal(signal);
        }
    }

    /// Writes the daemon's configuration again and sends SIGHUP, on which the daemon reloads it.
    pub fn reload(&self) {
        if let Some(Err(error)) = self.spec.before_reload.as_ref().map(|prepare| prepare()) {
            log::error!(target: self.name, "keeping the current configuration: {error}");
        }
        self.signal(Signal::SIGHUP);
    }

    /// Kills the process and its process group.
    pub fn kill(&self) {
        if let Some(process) = self.progress().process {
            process.kill_group();
        }
    }

    /// Asks the process to end; `keep_running` then starts it again, and does not count a death.
    pub fn restart(&self) {
        self.change(|progress| progress.restarting = true);
        self.signal(Signal::SIGTERM);
    }

    /// Waits for the process to end, after `stop`; returns whether it has.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let wait = self.changed.wait_timeout_while(self.progress(), limit, |progress| progress.process.is_some());
        let (progress, _) = wait.unwrap_or_else(PoisonError::into_inner);
        progress.process.is_none()
    }

    /// Waits like `ends_within`, and kills the process if it is still running then.
    pub fn wait_or_kill(&self, limit: Duration) {
        if !self.ends_within(limit) {
            log::warn!(target: self.name, "still running after {:.1} s: killing it", limit.as_secs_f64());
            self.kill();
        }
    }

    /// The last lines of the daemon's log.
    fn tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        usage_error(&log).map_or_else(|| reaper::tail(&log, TAIL_LINES), str::to_string)
    }
}

/// What dockerd has against its flags, if that is how its log ends: the reason, and then a hundred lines of help (StatusError in
/// moby's cli/error.go, seen with 26.1 and 28.5).
fn usage_error(log: &str) -> Option<&str> {
    let (_, end) = log.rsplit_once("Status: ").filter(|_| log.trim_end().ends_with("Code: 125"))?;
    end.lines().next()
}

/// Keeps a daemon running in a thread of its own, with a longer pause after each death, until the init stops.
/// A daemon that dies too often is given up, which is a failure of the boot.
pub fn supervise(daemon: &Arc<Daemon>, readiness: &Arc<Readiness>) -> Result<()> {
    let (ours, readiness) = (daemon.clone(), readiness.clone());
    threads::start(daemon.name, move || keep_running(&readiness, &ours))
}

fn keep_running(readiness: &Readiness, daemon: &Daemon) {
    let is_stopping = || readiness.is_over() || daemon.progress().stopping;
    let mut deaths = 0;
    while !is_stopping() {
        let mut answered = None;
        let ended = start(readiness, daemon).map(|child| wait_for_end(readiness, daemon, &child, &mut answered));
        readiness.update(|state| *(daemon.spec.condition)(state) = false);
        daemon.change(|progress| (progress.process, progress.answers) = (None, false));
        if is_stopping() {
            return;
        }
        if std::mem::take(&mut daemon.progress().restarting) {
            continue;
        }
        deaths = if answered.is_some_and(|at: Instant| at.elapsed() >= HEALTHY) { 1 } else { deaths + 1 };
        let (what, status) = match &ended {
            Ok(status) => (reaper::describe(*status).to_string(), reaper::exit_code(*status).max(1)),
            Err(error) => (error.to_string(), error.status()),
        };
        if deaths >= MAX_DEATHS {
            daemon.change(|progress| progress.given_up = true);
            *daemon.command() = Box::new(given_up);
            let why = format!("{} {what}, {deaths} times in a row. The end of its log:\n{}", daemon.name, daemon.tail());
            return readiness.fail(Failure::new(why, status));
        }
        let pause = FIRST_PAUSE * 2u32.pow(deaths - 1);
        let last_line = reaper::tail(&daemon.tail(), 1);
        log::warn!(target: daemon.name, "{what}; starting it again in {:.1} s. The last line of its log: {last_line}", pause.as_secs_f64());
        drop(daemon.changed.wait_timeout_while(daemon.progress(), pause, |progress| !progress.stopping));
    }
}

fn start(readiness: &Readiness, daemon: &Daemon) -> Result<Child> {
    let output = OpenOptions::new().append(true).open(&daemon.log).map_err(|cause| Error::io("open", &daemon.log, cause))?;
    let errors = output.try_clone().map_err(|cause| Error::io("open", &daemon.log, cause))?;
    let mut command = (daemon.command())()?;
    let (errors, started): (Stdio, _) = match daemon.spec.first_start.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(first) => ((first.log)(errors)?, Some(first.started)),
        None => (errors.into(), None),
    };
    let child = reaper::spawn(command.stdout(output).stderr(errors))?;
    if let Some(started) = started {
        started(child.handle());
    }
    daemon.change(|progress| progress.process = Some(child.handle()));
    // A stop that began during the spawn did not find this process, so nobody has signalled it.
    if readiness.is_over() || daemon.progress().stopping {
        child.handle().signal(Signal::SIGTERM);
    }
    Ok(child)
}

/// The command of a daemon that is not started any more.
fn given_up() -> Result<Command> {
    Err(Error::new("it was given up"))
}

/// Waits until the process answers, then until it ends. Sets `answered` to the time of the first answer.
fn wait_for_end(readiness: &Readiness, daemon: &Daemon, child: &Child, answered: &mut Option<Instant>) -> ExitStatus {
    let started = Instant::now();
    while !(daemon.spec.answers)() {
        if let Some(status) = child.wait_timeout(POLL) {
            return status;
        }
        if started.elapsed() > DAEMON_LIMIT {
            log::warn!(target: daemon.name, "no answer after {} s: killing it", DAEMON_LIMIT.as_secs());
            child.handle().kill_group();
            return child.wait();
        }
    }
    log::info!(target: daemon.name, "answers {:.2} s after its start", started.elapsed().as_secs_f64());
    readiness.milestone(daemon.name);
    *answered = Some(Instant::now());
    daemon.change(|progress| progress.answers = true);
    readiness.update(|state| *(daemon.spec.condition)(state) = true);
    child.wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_that_dockerd_does_not_know_is_the_reason_and_not_the_end_of_its_help() {
        let usage = "Status: unknown flag: --nope\nSee 'dockerd --help'.\n\nUsage:\tdockerd [OPTIONS]\n, Code: 125\n";
        assert_eq!(usage_error(&format!("Status: an earlier one\n, Code: 125\n{usage}")), Some("unknown flag: --nope"));
        for log in ["", "failed to start daemon: x\n", &format!("{usage}Starting up\n")] {
            assert_eq!(usage_error(log), None, "{log}");
        }
    }
}
