//! Whether the node is ready: one state behind one lock (`state`), which only `Readiness::update` changes. After
//! each change it is written to the files under `/var/kind` (`files`), which `server` serves.
//!
//! The node lives as long as the container, a cluster on it may be shorter-lived. So each cluster has a `Readiness` of its
//! own (`begin_cluster`): when its time is over, whoever still speaks for it changes nothing, and waits for nothing.

pub mod client_limits;
pub mod document;
pub mod files;
mod long_poll;
pub mod operations;
mod page;
pub mod server;
mod state;
pub mod target;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::pipe2;

use crate::error::Result;
use crate::logger::since_start;
use crate::readiness::document::{Document, Milestone};
use crate::readiness::files::{Directory, DOCKER_READY, FAILED, KUBERNETES_READY, STATUS, TIMELINE, WAITING};
pub use crate::readiness::state::{ControlPlane, Extensions, Failure, Operation, Pods, Reset, State};
use crate::{sys, threads};

/// How often files that could not be written are tried again, and the cluster's time limit is looked at.
const TICK: Duration = Duration::from_secs(1);

pub struct Readiness {
    shared: Arc<Shared>,
    /// The number of the cluster that it speaks for. `None` for the node itself.
    cluster: Option<u32>,
}

struct Shared {
    directory: Directory,
    known: Mutex<Known>,
    changed: Condvar,
}

/// Everything behind the lock: the state, and what was written of it.
#[derive(Default)]
struct Known {
    state: State,
    /// The number of the cluster that counts.
    cluster: u32,
    /// The lines of `timeline`.
    milestones: Vec<Milestone>,
    /// Files that do not depend on the state, such as wait-for-kind.sh, and the credentials, which are the cluster's.
    published: BTreeMap<&'static str, Published>,
    /// The files as last written.
    written: BTreeMap<&'static str, Vec<u8>>,
    /// The files that could not be written or removed, and the last error of each.
    unwritten: BTreeMap<&'static str, String>,
    /// Whether this cluster's `kubernetes-ready` was written.
    was_ready: bool,
    /// What this cluster, or the one that is about to begin, was asked for with.
    operation: Option<Operation>,
    /// Since when the cluster's time limit runs (`State::is_limited`).
    limited_since: Option<Instant>,
    /// What clients wait at, where there are any.
    next_change: Option<NextChange>,
}

/// Why `Readiness::poll` has no value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NoValue {
    Late,
    /// The container stops, or another cluster has begun.
    IsOver,
}

struct Published {
    contents: Vec<u8>,
    of_cluster: bool,
}

/// A pipe whose writing end is closed when files come or go: whoever polls its reading end wakes.
struct NextChange {
    reader: Arc<OwnedFd>,
    _writer: OwnedFd,
}

impl Readiness {
    pub fn new(directory: PathBuf) -> Readiness {
        let shared = Shared { directory: Directory::new(directory), known: Mutex::default(), changed: Condvar::new() };
        Readiness { shared: Arc::new(shared), cluster: None }
    }

    /// Begins a cluster: nothing of an earlier one counts any more. Returns what speaks for it.
    pub fn begin_cluster(&self) -> Readiness {
        let mut known = self.known();
        match known.state.reset {
            // The earlier one has not counted since then.
            Reset::Requested(_) => self.change(&mut known, |state| state.reset = Reset::Ending),
            Reset::No | Reset::Ending | Reset::Removing => self.end_cluster(&mut known, Reset::No),
        }
        Readiness { shared: self.shared.clone(), cluster: Some(known.cluster) }
    }

    fn end_cluster(&self, known: &mut Known, reset: Reset) {
        known.cluster += 1;
        known.milestones.retain(|milestone| !milestone.of_cluster);
        known.published.retain(|_, published| !published.of_cluster);
        known.was_ready = false;
        let State { has_cluster, containerd, docker, ending, .. } = known.state.clone();
        // A failure of Docker's keeps a cluster from being ready as well.
        let failure = known.state.failure.clone().filter(|_| reset == Reset::No);
        self.change(known, |state| *state = State { has_cluster, containerd, docker, ending, failure, reset, ..State::default() });
        known.limited_since = known.state.is_limited().then(Instant::now);
        known.write_files(&self.shared.directory);
        known.next_change = None;
        self.shared.changed.notify_all();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the container stops, or another cluster has begun.
    pub fn is_over(&self) -> bool {
        self.is_over_in(&self.known())
    }

    fn is_over_in(&self, known: &Known) -> bool {
        known.state.ending || self.cluster.is_some_and(|own| own != known.cluster)
    }

    /// Sleeps for `time`, or until it is over.
    pub fn pause(&self, time: Duration) {
        drop(self.shared.changed.wait_timeout_while(self.known(), time, |known| !self.is_over_in(known)));
    }

    /// Calls `check` every `interval` until it returns a value.
    ///
    /// # Errors
    /// `check` has returned none within `limit`, or it is over.
    pub fn poll<T>(&self, interval: Duration, limit: Duration, mut check: impl FnMut() -> Option<T>) -> std::result::Result<T, NoValue> {
        let began = Instant::now();
        loop {
            if self.is_over() {
                return Err(NoValue::IsOver);
            }
            if let Some(value) = check() {
                return Ok(value);
            }
            if began.elapsed() >= limit {
                return Err(NoValue::Late);
            }
            self.pause(interval);
        }
    }

    /// Removes the files of an earlier start of this container.
    pub fn clear(&self) -> Result<()> {
        self.known().written.clear();
        self.shared.directory.clear()
    }

    /// Changes the state, and updates the files accordingly.
    pub fn update(&self, change: impl FnOnce(&mut State)) {
        let mut known = self.known();
        if !self.is_over_in(&known) {
            self.change(&mut known, change);
        }
    }

    fn change(&self, known: &mut Known, change: impl FnOnce(&mut State)) {
        let before = known.state.clone();
        change(&mut known.state);
        known.state.make_consistent(&before);
        if known.state != before {
            let since = known.limited_since.unwrap_or_else(Instant::now);
            known.limited_since = known.state.is_limited().then_some(since);
            known.record_change(&before);
            known.write_files(&self.shared.directory);
            self.shared.changed.notify_all();
        }
    }

    /// Fails the boot. Clients see the first failure only, since later ones usually follow from it; those are logged.
    pub fn fail(&self, failure: Failure) {
        let known = self.known();
        let (is_over, is_further) = (self.is_over_in(&known), known.state.failure.is_some());
        drop(known);
        log::error!(target: "boot", "{}: {}", if is_further { "further failure" } else { "failed" }, failure.why);
        if is_over || is_further {
            return;
        }
        self.update(|state| state.failure = Some(failure));
    }

    /// Adds a file that does not depend on the state, or replaces it.
    pub fn publish(&self, name: &'static str, contents: &[u8]) {
        let mut known = self.known();
        if !self.is_over_in(&known) {
            known.published.insert(name, Published { contents: contents.to_vec(), of_cluster: self.cluster.is_some() });
            known.write_files(&self.shared.directory);
            self.shared.changed.notify_all();
        }
    }

    /// Adds a milestone to the timeline. Only the first time counts.
    pub fn milestone(&self, name: &str) {
        let mut known = self.known();
        if !self.is_over_in(&known) && known.record_milestone(name, self.cluster.is_some()) {
            known.write_files(&self.shared.directory);
        }
    }

    /// Whether a milestone was reached in this start, even if it is no longer true.
    pub fn has_reached(&self, milestone: &str) -> bool {
        self.known().has_reached(milestone)
    }

    /// The state; `ending` if it is over.
    pub fn state(&self) -> State {
        let known = self.known();
        State { ending: self.is_over_in(&known), ..known.state.clone() }
    }

    /// What poll(2) says has hung up when files have come or gone since this call.
    pub fn next_change(&self) -> io::Result<Arc<OwnedFd>> {
        let mut known = self.known();
        if let Some(change) = &known.next_change {
            return Ok(change.reader.clone());
        }
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        Ok(known.next_change.insert(NextChange { reader: Arc::new(reader), _writer: writer }).reader.clone())
    }

    /// Sleeps until a descriptor can be read. Returns false if it is over.
    pub fn wait_readable(&self, descriptor: BorrowedFd) -> io::Result<bool> {
        loop {
            // Before looking, so that no change is missed.
            let change = self.next_change()?;
            if self.is_over() {
                return Ok(false);
            }
            let mut polled = [PollFd::new(descriptor, PollFlags::POLLIN), PollFd::new(change.as_fd(), PollFlags::empty())];
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) if polled[0].any() != Some(false) => return Ok(!self.is_over()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
    }

    /// Sleeps until the state is as `wanted`, without a time limit. Returns false if it is over.
    pub fn wait_until(&self, wanted: impl Fn(&State) -> bool) -> bool {
        let wait = self.shared.changed.wait_while(self.known(), |known| !self.is_over_in(known) && !wanted(&known.state));
        !self.is_over_in(&wait.unwrap_or_else(PoisonError::into_inner))
    }

    /// Marks the container as stopping: from here on nothing is ready. Returns the status to exit with.
    pub fn end(&self) -> u8 {
        let mut known = self.known();
        self.change(&mut known, |state| state.ending = true);
        known.state.failure.as_ref().map_or(0, |failure| failure.status)
    }

    /// Starts a thread that retries files that could not be written, and fails the boot with what `late` returns
    /// when the cluster has not been up for `limit`. It sleeps while there is nothing to do.
    pub fn watch(self: &Arc<Self>, limit: Duration, late: impl Fn(&State) -> Failure + Send + 'static) -> Result<()> {
        let readiness = self.clone();
        let body = move || {
            while let Some(is_late) = readiness.tick(limit) {
                if !is_late {
                    continue;
                }
                let failure = late(&readiness.state());
                // The cluster may have come up during `late`, or another one may have begun.
                if readiness.known().is_late(limit) {
                    readiness.fail(failure);
                }
            }
        };
        threads::start("readiness", body)
    }

    /// Sleeps until there is something to do and then for a tick. Returns whether the cluster is late, or `None`
    /// if the container stops.
    fn tick(&self, limit: Duration) -> Option<bool> {
        let changed = &self.shared.changed;
        let known = changed.wait_while(self.known(), |known| known.is_idle()).unwrap_or_else(PoisonError::into_inner);
        let tick = changed.wait_timeout_while(known, TICK, |known| !known.state.ending && !known.is_idle());
        let (mut known, _) = tick.unwrap_or_else(PoisonError::into_inner);
        if known.state.ending {
            return None;
        }
        if !known.unwritten.is_empty() {
            known.write_files(&self.shared.directory);
        }
        Some(known.is_late(limit))
    }
}

impl Known {
    /// Whether `tick` may sleep: no time limit runs, and every file is written.
    fn is_idle(&self) -> bool {
        !self.state.ending && !self.state.is_limited() && self.unwritten.is_empty()
    }

    fn is_late(&self, limit: Duration) -> bool {
        self.limited_since.is_some_and(|since| since.elapsed() >= limit)
    }

    /// The files that must exist, and their contents.
    fn wanted(&self) -> BTreeMap<&'static str, Vec<u8>> {
        let state = &self.state;
        let published = self.published.iter().map(|(name, published)| (*name, published.contents.clone()));
        let mut files: BTreeMap<_, _> = published.collect();
        let mut put = |name, text: Option<String>| files.extend(text.map(|text| (name, text.into_bytes())));
        put(DOCKER_READY, state.docker_ready().then(|| "ready\n".into()));
        put(KUBERNETES_READY, state.kubernetes_ready().then(|| "ready\n".into()));
        put(STATUS, Some(Document::new(state, &self.milestones).to_json()));
        put(FAILED, state.failure.as_ref().map(|failure| format!("{}\n", failure.why)));
        let waiting = state.waiting();
        put(WAITING, (!waiting.is_empty()).then(|| waiting.join("\n") + "\n"));
        let lines = self.milestones.iter().map(|milestone| format!("{:.3} {}\n", milestone.seconds, milestone.name));
        put(TIMELINE, Some(lines.collect()).filter(|text: &String| !text.is_empty()));
        files
    }

    /// Writes and removes files until they are as `wanted`. Removes first, so that no client ever sees two files
    /// that contradict each other.
    fn write_files(&mut self, directory: &Directory) {
        let names = |known: &Known| known.written.keys().copied().collect::<Vec<_>>();
        let before = names(self);
        self.make_as_wanted(directory);
        if names(self) != before {
            self.next_change = None;
        }
    }

    fn make_as_wanted(&mut self, directory: &Directory) {
        let wanted = self.wanted();
        let untrue: Vec<&'static str> = self.written.keys().filter(|name| !wanted.contains_key(*name)).copied().collect();
        for name in untrue {
            if self.succeeded(name, directory.remove(name)) {
                self.written.remove(name);
                if [DOCKER_READY, KUBERNETES_READY].contains(&name) && !self.state.ending && self.state.reset == Reset::No {
                    let why = self.state.waiting().into_iter().next().map(|why| format!(": {why}"));
                    log::warn!(target: "readiness", "{name} is no longer true{}", why.unwrap_or_default());
                }
            }
        }
        if self.written.keys().any(|name| !wanted.contains_key(name)) {
            return;
        }
        // What the document says of a state is there before the state's own file.
        let (document, others): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(name, _)| *name == STATUS);
        for (name, contents) in document.into_iter().chain(others) {
            if self.written.get(name) == Some(&contents) {
                continue;
            }
            if self.succeeded(name, directory.write(name, &contents)) {
                self.written.insert(name, contents);
                self.log_ready(name);
            } else if directory.remove(name).is_ok() {
                // Rather missing than untrue.
                self.written.remove(name);
            }
        }
    }

    /// Whether a write or removal succeeded. Logs an error once, and when it is over.
    fn succeeded(&mut self, name: &'static str, result: Result<()>) -> bool {
        match result {
            Ok(()) => {
                if self.unwritten.remove(name).is_some() {
                    log::info!(target: "readiness", "{name} is up to date again");
                }
                true
            }
            Err(error) => {
                let error = error.to_string();
                if self.unwritten.get(name) != Some(&error) {
                    log::error!(target: "readiness", "{error}; trying again");
                    self.unwritten.insert(name, error);
                }
                false
            }
        }
    }

    /// Logs a change of the state, and records milestones.
    fn record_change(&mut self, before: &State) {
        let now = self.state.clone();
        if before.failure.is_some() && now.failure.is_none() {
            log::info!(target: "boot", "the cluster is ready after all");
        }
        if before.waiting() != now.waiting() {
            log::debug!(target: "readiness", "waiting for {:?}", now.waiting());
        }
        if now.docker_ready() {
            self.record_milestone(DOCKER_READY, false);
        }
        if now.kubernetes_ready() {
            self.record_milestone(KUBERNETES_READY, true);
        }
    }

    /// Logs that `docker-ready` or `kubernetes-ready` was written.
    fn log_ready(&mut self, name: &str) {
        if ![DOCKER_READY, KUBERNETES_READY].contains(&name) {
            return;
        }
        let is_first = name == KUBERNETES_READY && !std::mem::replace(&mut self.was_ready, true);
        let stages = if is_first { format!(": {}", self.stages()) } else { String::new() };
        log::info!(target: "readiness", "{name}{stages}");
        // Memory that the boot needed to read and parse things is free now.
        sys::trim_heap();
    }

    /// Returns whether this is the first time.
    fn record_milestone(&mut self, name: &str, of_cluster: bool) -> bool {
        let is_first = !self.has_reached(name);
        if is_first {
            let milliseconds = since_start().as_millis() as f64;
            self.milestones.push(Milestone { name: name.into(), seconds: milliseconds / 1000.0, of_cluster });
        }
        is_first
    }

    fn has_reached(&self, name: &str) -> bool {
        self.milestones.iter().any(|milestone| milestone.name == name)
    }

    /// The milestones in one line: `store 0.041 s, containerd 0.105 s`.
    fn stages(&self) -> String {
        let stages = self.milestones.iter().filter(|milestone| !milestone.name.ends_with("-ready"));
        stages.map(|milestone| format!("{} {:.3} s", milestone.name, milestone.seconds)).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests;
