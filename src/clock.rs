//! Time limits that do not count time in which the container was paused or the machine slept: the clock goes
//! on meanwhile, but what is waited for cannot happen.

use std::sync::mpsc::{channel, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a long wait checks the time.
pub const TICK: Duration = Duration::from_secs(1);

/// Even on a starved machine, a wait checks its stopwatch more often than this. A longer gap between two checks
/// was a pause, and only this much of it counts.
const LONGEST_STEP: Duration = Duration::from_secs(2);

/// Measures how long a wait has taken, without pauses of the whole container.
pub struct Stopwatch {
    last: Instant,
    total: Duration,
}

impl Stopwatch {
    pub fn start() -> Stopwatch {
        Stopwatch { last: Instant::now(), total: Duration::ZERO }
    }

    /// The time so far. Must be called at least once every `TICK`.
    pub fn elapsed(&mut self) -> Duration {
        self.elapsed_at(Instant::now())
    }

    fn elapsed_at(&mut self, now: Instant) -> Duration {
        self.total += now.saturating_duration_since(self.last).min(LONGEST_STEP);
        self.last = now;
        self.total
    }
}

/// A time limit for several things together, none of which looks at the time often enough: a thread does, for
/// as long as this is kept.
pub struct Deadline {
    limit: Duration,
    waited: Arc<Mutex<Stopwatch>>,
    _kept: Sender<()>,
}

impl Deadline {
    pub fn after(limit: Duration) -> Deadline {
        let waited = Arc::new(Mutex::new(Stopwatch::start()));
        let (_kept, is_kept) = channel();
        let watch = waited.clone();
        thread::spawn(move || {
            while is_kept.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                elapsed(&watch);
            }
        });
        Deadline { limit, waited, _kept }
    }

    /// What is left until then.
    pub fn left(&self) -> Duration {
        self.limit.saturating_sub(elapsed(&self.waited))
    }
}

fn elapsed(watch: &Mutex<Stopwatch>) -> Duration {
    watch.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_comes_nearer_though_nobody_looks_at_it() {
        let deadline = Deadline::after(Duration::from_secs(5));
        thread::sleep(Duration::from_secs(4));
        let left = deadline.left();
        assert!(left <= Duration::from_secs(1), "longer than a stopwatch that nobody looks at would count: {left:?} is left");
    }

    #[test]
    fn only_pauses_are_not_counted() {
        let mut watch = Stopwatch::start();
        let (start, second) = (watch.last, Duration::from_secs(1));
        let mut total = Duration::ZERO;
        for (at, counted) in [(1, 1), (2, 2), (3602, 4), (3603, 5), (3603, 5)] {
            total = watch.elapsed_at(start + at * second);
            assert_eq!(total, counted * second, "after {at} s");
        }
        // A time before the last one changes nothing.
        assert_eq!(watch.elapsed_at(start), total);
    }
}
