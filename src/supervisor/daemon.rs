//! One daemon's life: it is started, asked until it answers, and started again when it dies, until the
//! init stops or the daemon has died too often.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::clock::{Stopwatch, TICK};
use crate::config::{DAEMON_LIMIT, POLL};
use crate::error::{Error, Result};
use crate::readiness::{Failure, Readiness, State};
use crate::supervisor::reaper::{self, Child, Handle};
use crate::supervisor::shutdown::Shutdown;

/// A daemon that answered for this long had started well: the next death counts as the first again.
const HEALTHY: Duration = Duration::from_secs(60);
/// Deaths in a row after which restarting is given up; the pauses before that add up to 6 s.
const MAX_DEATHS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Lines of a daemon's log that a failure shows.
const TAIL_LINES: usize = 15;

type Callback<T> = Box<dyn Fn() -> T + Send + Sync>;

/// What is known of a daemon before it is started.
pub struct Spec {
    pub name: &'static str,
    /// Called for every start.
    pub command: Callback<Result<Command>>,
    pub answers: Callback<bool>,
    /// Called before the daemon is told to read its configuration again.
    pub before_reload: Option<Callback<Result<()>>>,
    /// What becomes true when it answers, and untrue when it ends.
    pub condition: fn(&mut State) -> &mut bool,
}

pub struct Daemon {
    pub name: &'static str,
    log: PathBuf,
    progress: Mutex<Progress>,
    changed: Condvar,
    spec: Spec,
}

#[derive(Default)]
struct Progress {
    process: Option<Handle>,
    answers: bool,
    given_up: bool,
    /// Its next end is one that we asked for.
    restarting: bool,
}

impl Daemon {
    /// A daemon that is not started yet, with an empty log in `logs`: the log covers this start of the
    /// container only.
    pub fn new(logs: &Path, spec: Spec) -> Result<Arc<Daemon>> {
        let log = logs.join(format!("{}.log", spec.name));
        fs::create_dir_all(logs).map_err(|cause| Error::io("make the directory", logs, cause))?;
        File::create(&log).map_err(|cause| Error::io("write", &log, cause))?;
        Ok(Arc::new(Daemon { name: spec.name, log, progress: Mutex::default(), changed: Condvar::new(), spec }))
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress());
        self.changed.notify_all();
    }

    /// Waits until the daemon answers; returns false when it was given up or `limit` has passed.
    pub fn wait_until_answers(&self, limit: Duration) -> bool {
        let mut waited = Stopwatch::start();
        let mut progress = self.progress();
        while !progress.answers && !progress.given_up && waited.elapsed() < limit {
            let wait = self.changed.wait_timeout(progress, TICK);
            (progress, _) = wait.unwrap_or_else(PoisonError::into_inner);
        }
        progress.answers
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(process) = self.progress().process {
            process.signal(signal);
        }
    }

    /// Prepares the daemon's configuration and tells it with SIGHUP to read it again.
    pub fn reload(&self) {
        if let Some(Err(error)) = self.spec.before_reload.as_ref().map(|prepare| prepare()) {
            log::error!(target: self.name, "its configuration stays as it is: {error}");
        }
        self.signal(Signal::SIGHUP);
    }

    /// Kills the process and its group at once.
    pub fn kill(&self) {
        if let Some(process) = self.progress().process {
            process.kill_group();
        }
    }

    /// Ends the process so that its supervisor starts it again.
    pub fn restart(&self) {
        self.change(|progress| progress.restarting = true);
        self.signal(Signal::SIGTERM);
    }

    /// Waits for the process to end after it was asked to; returns whether it has. The init is stopping.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let wait = self.changed.wait_timeout_while(self.progress(), limit, |progress| progress.process.is_some());
        let (progress, _) = wait.unwrap_or_else(PoisonError::into_inner);
        progress.process.is_none()
    }

    /// Waits like `ends_within`, and kills what has not ended.
    pub fn end(&self, limit: Duration) {
        if !self.ends_within(limit) {
            log::warn!(target: self.name, "still running after {:.1} s: killed", limit.as_secs_f64());
            self.kill();
        }
    }

    /// The last lines that the daemon wrote.
    fn tail(&self) -> String {
        reaper::tail(&fs::read_to_string(&self.log).unwrap_or_default(), TAIL_LINES)
    }
}

/// Keeps a daemon running in a thread of its own, with a growing pause after each death, until the init
/// stops or the daemon has died too often: then the boot has failed.
pub fn supervise(daemon: &Arc<Daemon>, shutdown: &Arc<Shutdown>, readiness: &Arc<Readiness>) -> Result<()> {
    let (ours, shutdown, readiness) = (daemon.clone(), shutdown.clone(), readiness.clone());
    let body = move || keep_running(&shutdown, &readiness, &ours);
    let started = thread::Builder::new().name(daemon.name.into()).spawn(body);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the thread of {}: {cause}", daemon.name)))
}

fn keep_running(shutdown: &Shutdown, readiness: &Readiness, daemon: &Daemon) {
    let mut deaths = 0;
    while !shutdown.stopping() {
        let mut answered = None;
        let ended = start(shutdown, daemon).map(|child| follow(readiness, daemon, &child, &mut answered));
        readiness.update(|state| *(daemon.spec.condition)(state) = false);
        daemon.change(|progress| (progress.process, progress.answers) = (None, false));
        if shutdown.stopping() {
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
            let why = format!("{} {what}, for the {deaths}th time in a row. The end of its log:\n{}", daemon.name, daemon.tail());
            return readiness.fail(Failure::new(why, status));
        }
        let pause = FIRST_PAUSE * 2u32.pow(deaths - 1);
        let last_line = reaper::tail(&daemon.tail(), 1);
        log::warn!(target: daemon.name, "{what}; starting it again in {:.1} s. Its last line: {last_line}", pause.as_secs_f64());
        shutdown.pause(pause);
    }
}

fn start(shutdown: &Shutdown, daemon: &Daemon) -> Result<Child> {
    let output = OpenOptions::new().append(true).open(&daemon.log).map_err(|cause| Error::io("open", &daemon.log, cause))?;
    let errors = output.try_clone().map_err(|cause| Error::io("open", &daemon.log, cause))?;
    let mut command = (daemon.spec.command)()?;
    let child = reaper::spawn(command.stdout(output).stderr(errors))?;
    daemon.change(|progress| progress.process = Some(child.handle()));
    // A stop that began while the process was being made has not seen it.
    if shutdown.stopping() {
        child.handle().signal(Signal::SIGTERM);
    }
    Ok(child)
}

/// Waits for the process to answer, then to end.
fn follow(readiness: &Readiness, daemon: &Daemon, child: &Child, answered: &mut Option<Instant>) -> ExitStatus {
    let started = Instant::now();
    let mut waited = Stopwatch::start();
    while !(daemon.spec.answers)() {
        if let Some(status) = child.wait_timeout(POLL) {
            return status;
        }
        if waited.elapsed() > DAEMON_LIMIT {
            log::warn!(target: daemon.name, "does not answer after {} s: killed", DAEMON_LIMIT.as_secs());
            child.handle().kill_group();
            return child.wait();
        }
    }
    log::info!(target: daemon.name, "answers, {:.2} s after its start", started.elapsed().as_secs_f64());
    readiness.milestone(daemon.name);
    *answered = Some(Instant::now());
    daemon.change(|progress| progress.answers = true);
    readiness.update(|state| *(daemon.spec.condition)(state) = true);
    child.wait()
}
