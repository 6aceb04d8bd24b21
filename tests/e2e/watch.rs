//! Polls a file of port 10080 in a thread, so that a test also notices if it was gone for a moment.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::{fetch, Cluster, BOOT_LIMIT, KUBERNETES_READY, LIMIT};
use crate::engine::docker;
use crate::process::{poll, wait_for};

const INTERVAL: Duration = Duration::from_millis(20);

pub struct Watch {
    file: &'static str,
    container: String,
    /// How often its log had said that the file is gone.
    losses: usize,
    /// When the file appeared (`true`) or disappeared.
    changes: Arc<Mutex<Vec<(Instant, bool)>>>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    /// Starts to poll. Panics unless the file is served.
    pub fn new(cluster: &Cluster, file: &'static str) -> Watch {
        let container = cluster.container.id.clone();
        let losses = losses(&container, file);
        let watch = Watch { file, container, losses, changes: Arc::default(), stop: Arc::default() };
        let (changes, stop, url) = (watch.changes.clone(), watch.stop.clone(), cluster.url("127.0.0.1", file));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let there = fetch(&url).is_some_and(|(status, _)| status == 200);
                let mut changes = changes.lock().expect("no holder panics");
                if changes.last().is_none_or(|(_, last)| *last != there) {
                    changes.push((Instant::now(), there));
                }
                drop(changes);
                thread::sleep(INTERVAL);
            }
        });
        let first = wait_for("the first poll", LIMIT, || watch.changes.lock().expect("no holder panics").first().copied());
        assert!(first.1, "{file} is not served at the start");
        watch
    }

    /// When the file disappeared after `since`. Panics if that takes longer than `limit`.
    pub fn lost(&self, since: Instant, limit: Duration) -> Instant {
        // A busy machine may miss a moment without it; the log has it.
        let told = || losses(&self.container, self.file) > self.losses;
        poll(limit, || (self.find(false, since).is_some() || told()).then_some(()));
        if self.find(false, since).is_none() && told() {
            self.changes.lock().expect("no holder panics").push((Instant::now(), false));
        }
        self.changed(false, since, limit)
    }

    /// When the file appeared after `since`. Panics if that takes longer than `limit`.
    pub fn back(&self, since: Instant, limit: Duration) -> Instant {
        self.changed(true, since, limit)
    }

    pub fn was_lost(&self) -> bool {
        self.changes.lock().expect("no holder panics").len() > 1 || losses(&self.container, self.file) > self.losses
    }

    fn find(&self, to: bool, since: Instant) -> Option<Instant> {
        self.changes.lock().expect("no holder panics").iter().find(|(at, there)| *at > since && *there == to).map(|(at, _)| *at)
    }

    fn changed(&self, to: bool, since: Instant, limit: Duration) -> Instant {
        let what = if to { "did not come back" } else { "was not taken away" };
        let at = poll(limit, || self.find(to, since)).unwrap_or_else(|| panic!("{} {what} within {} s", self.file, limit.as_secs()));
        assert!(at - since <= limit, "{} {what} within {} s, but after {:.1} s", self.file, limit.as_secs(), (at - since).as_secs_f64());
        at
    }
}

/// Kills every process with that name, and waits until the cluster was not ready because of it, and is again. The log has
/// that, too, when nobody has asked meanwhile. A cluster that was not ready in that moment cannot lose it once more: a
/// kubelet that has just been started again takes its pods' readiness away for a moment.
pub fn kill_and_wait(cluster: &Cluster, process: &str) {
    let losses = || losses(&cluster.container.id, KUBERNETES_READY);
    cluster.ready_within(BOOT_LIMIT).unwrap_or_else(|why| panic!("before {process} is killed: {why}"));
    let before = losses();
    let ready = fetch(&cluster.url("127.0.0.1", KUBERNETES_READY)).is_some_and(|(status, _)| status == 200);
    cluster.kill(process);
    wait_for(&format!("the cluster notices that {process} was killed"), LIMIT, || (!ready || losses() > before).then_some(()));
    cluster.ready_within(BOOT_LIMIT).unwrap_or_else(|why| panic!("without {process}: {why}"));
}

/// How often the container's log says that the file is gone.
fn losses(container: &str, file: &str) -> usize {
    docker(&["logs", container]).output().lines().filter(|line| line.contains(&format!("{file} is no longer true"))).count()
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
