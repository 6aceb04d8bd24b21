//! The daemons: how each is started, whether it answers, and what happens when it dies.

pub mod containerd;
pub mod dockerd;
pub mod image_names;
pub mod kubelet;
pub mod port;
pub mod settings;
mod stale;
pub mod tls;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::config::{DAEMON_LIMIT, LOG_DIR, POLL};
use crate::error::{Error, Result};
use crate::init::Init;
use crate::node::iptables;
use crate::readiness::Conditions;
use crate::reaper::{self, Child, Handle};

/// A daemon that answered for this long had started well: the next death counts as the first again.
const HEALTHY: Duration = Duration::from_secs(60);
/// Deaths in a row after which restarting is given up; the pauses before that add up to 6 s.
const MAX_DEATHS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Lines of a daemon's log that a failure shows.
const TAIL_LINES: usize = 15;

/// What is known of a daemon before it is started.
pub struct Spec {
    pub name: &'static str,
    /// Called for every start.
    pub command: Box<dyn Fn() -> Result<Command> + Send>,
    pub answers: Box<dyn Fn() -> bool + Send>,
    /// The condition that follows it.
    pub condition: fn(&mut Conditions) -> &mut bool,
}

pub struct Daemon {
    pub name: &'static str,
    log: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    process: Option<Handle>,
    answers: bool,
    given_up: bool,
    /// Its next end is one that we asked for.
    restarting: bool,
}

impl Daemon {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// Waits until the daemon answers; false when it was given up or `limit` has passed.
    pub fn wait_until_answers(&self, limit: Duration) -> bool {
        let wait = self.changed.wait_timeout_while(self.state(), limit, |state| !state.answers && !state.given_up);
        let (state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        state.answers
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(process) = self.state().process {
            process.signal(signal);
        }
    }

    /// Kills the process with its group at once.
    pub fn kill(&self) {
        if let Some(process) = self.state().process {
            process.kill_group();
        }
    }

    /// Ends the process, for its supervisor to start it anew.
    pub fn restart(&self) {
        self.change(|state| state.restarting = true);
        self.signal(Signal::SIGTERM);
    }

    /// Waits for the process to end, which was asked to; says whether it has. The init is stopping.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let wait = self.changed.wait_timeout_while(self.state(), limit, |state| state.process.is_some());
        let (state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        state.process.is_none()
    }

    /// Waits as `ends_within` does, and kills what has not ended.
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

/// Starts a daemon and keeps it running, with a growing pause between deaths, until the init stops
/// or the daemon has died too often: then the boot has failed.
pub fn supervise(init: &Arc<Init>, spec: Spec) -> Result<Arc<Daemon>> {
    let log = init.config.path(LOG_DIR).join(format!("{}.log", spec.name));
    let directory = log.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(|cause| Error::io("make the directory", directory, cause))?;
    // The log tells of this start of the container only.
    File::create(&log).map_err(|cause| Error::io("write", &log, cause))?;
    let daemon = Arc::new(Daemon { name: spec.name, log, state: Mutex::default(), changed: Condvar::new() });
    init.daemons.lock().unwrap_or_else(PoisonError::into_inner).push(daemon.clone());
    let (ours, init) = (daemon.clone(), init.clone());
    let body = move || keep_running(&init, &ours, &spec);
    let started = thread::Builder::new().name(daemon.name.into()).spawn(body);
    started.map_err(|cause| Error::new(format!("cannot start the thread of {}: {cause}", daemon.name)))?;
    Ok(daemon)
}

fn keep_running(init: &Arc<Init>, daemon: &Daemon, spec: &Spec) {
    let mut deaths = 0;
    while !init.stopping() {
        let mut answered = None;
        let ended = start(init, daemon, spec).map(|child| follow(init, daemon, spec, &child, &mut answered));
        init.readiness.update(|conditions| *(spec.condition)(conditions) = false);
        daemon.change(|state| (state.process, state.answers) = (None, false));
        if init.stopping() {
            return;
        }
        if std::mem::take(&mut daemon.state().restarting) {
            continue;
        }
        deaths = if answered.is_some_and(|at: Instant| at.elapsed() >= HEALTHY) { 1 } else { deaths + 1 };
        let (what, status) = match &ended {
            Ok(status) => (reaper::describe(*status).to_string(), reaper::exit_code(*status).max(1)),
            Err(error) => (error.to_string(), error.status()),
        };
        if deaths >= MAX_DEATHS {
            daemon.change(|state| state.given_up = true);
            let error =
                Error::new(format!("{} {what}, for the {deaths}th time in a row. The end of its log:\n{}", spec.name, daemon.tail()));
            return init.fail(&error, status);
        }
        let pause = FIRST_PAUSE * 2u32.pow(deaths - 1);
        log::warn!(target: spec.name, "{what}; starting it again in {:.1} s. Its last line: {}", pause.as_secs_f64(), reaper::tail(&daemon.tail(), 1));
        init.pause(pause);
    }
}

fn start(init: &Init, daemon: &Daemon, spec: &Spec) -> Result<Child> {
    let output = OpenOptions::new().append(true).open(&daemon.log).map_err(|cause| Error::io("open", &daemon.log, cause))?;
    let errors = output.try_clone().map_err(|cause| Error::io("open", &daemon.log, cause))?;
    let mut command = (spec.command)()?;
    iptables::choose_for(&mut command);
    // As docker:dind says it: Docker and containerd load no AppArmor profiles then, which a container cannot.
    command.env("container", "docker").stdout(output).stderr(errors);
    let child = reaper::spawn(&mut command)?;
    daemon.change(|state| state.process = Some(child.handle()));
    // A stop that began while the process was being made has not seen it.
    if init.stopping() {
        child.handle().signal(Signal::SIGTERM);
    }
    Ok(child)
}

/// Waits for the process to answer, then to end.
fn follow(init: &Init, daemon: &Daemon, spec: &Spec, child: &Child, answered: &mut Option<Instant>) -> ExitStatus {
    let started = Instant::now();
    while !(spec.answers)() {
        if let Some(status) = child.wait_timeout(POLL) {
            return status;
        }
        if started.elapsed() > DAEMON_LIMIT {
            log::warn!(target: spec.name, "does not answer after {} s: killed", DAEMON_LIMIT.as_secs());
            child.handle().kill_group();
            return child.wait();
        }
    }
    log::info!(target: spec.name, "answers, {:.2} s after its start", started.elapsed().as_secs_f64());
    init.readiness.milestone(spec.name);
    *answered = Some(Instant::now());
    daemon.change(|state| state.answers = true);
    init.readiness.update(|conditions| *(spec.condition)(conditions) = true);
    child.wait()
}

/// Our own clients talk to addresses of this node: a proxy of the environment is for pulls alone.
pub fn without_proxy(command: &mut Command) -> &mut Command {
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name);
    }
    command
}

pub fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Whether `GET path` on an open connection is answered with 200.
fn answers_ok(mut stream: impl Read + Write, path: &str) -> bool {
    let mut status = [0; "HTTP/1.0 200".len()];
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).and_then(|()| stream.read_exact(&mut status)).is_ok() && status.ends_with(b" 200")
}
