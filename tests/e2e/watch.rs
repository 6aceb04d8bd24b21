//! Follows one readiness file in a thread, so that no moment without it is missed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::{fetch, Cluster, LIMIT};
use crate::process::{poll, wait_for};

const INTERVAL: Duration = Duration::from_millis(20);

pub struct Watch {
    file: &'static str,
    /// When the file came or went.
    changes: Arc<Mutex<Vec<(Instant, bool)>>>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    /// Begins with a file that is served.
    pub fn new(cluster: &Cluster, file: &'static str) -> Watch {
        let watch = Watch { file, changes: Arc::default(), stop: Arc::default() };
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
        let first = wait_for("the first look", LIMIT, || watch.changes.lock().expect("no holder panics").first().copied());
        assert!(first.1, "{file} is not served to begin with");
        watch
    }

    /// When the file went after `since`; panics when it is still there after `limit`.
    pub fn lost(&self, since: Instant, limit: Duration) -> Instant {
        self.changed(false, since, limit)
    }

    /// When the file came after `since`; panics when it is not there after `limit`.
    pub fn back(&self, since: Instant, limit: Duration) -> Instant {
        self.changed(true, since, limit)
    }

    pub fn was_lost(&self) -> bool {
        self.changes.lock().expect("no holder panics").len() > 1
    }

    fn changed(&self, to: bool, since: Instant, limit: Duration) -> Instant {
        let find =
            || self.changes.lock().expect("no holder panics").iter().find(|(at, there)| *at > since && *there == to).map(|(at, _)| *at);
        let what = if to { "did not come back" } else { "was not taken away" };
        let at = poll(limit, find).unwrap_or_else(|| panic!("{} {what} within {} s", self.file, limit.as_secs()));
        assert!(at - since <= limit, "{} {what} within {} s, but after {:.1} s", self.file, limit.as_secs(), (at - since).as_secs_f64());
        at
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
