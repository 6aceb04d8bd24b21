//! Time as this process has it. A job pauses its containers, and a machine sleeps: the clock goes on
//! meanwhile, and what was waited for could not happen.

use std::time::{Duration, Instant};

/// How often whoever waits for long looks at the time.
pub const TICK: Duration = Duration::from_secs(1);

/// Whoever waits looks at its stopwatch more often than this, even on a starved machine; what lies
/// between two looks beyond it was time that nothing had.
const LONGEST_STEP: Duration = Duration::from_secs(2);

/// Measures how long something has been waited for, without the time in which nothing ran.
pub struct Stopwatch {
    last: Instant,
    total: Duration,
}

impl Stopwatch {
    pub fn start() -> Stopwatch {
        Stopwatch { last: Instant::now(), total: Duration::ZERO }
    }

    /// To be called once in a `TICK`, or more often.
    pub fn elapsed(&mut self) -> Duration {
        self.elapsed_at(Instant::now())
    }

    fn elapsed_at(&mut self, now: Instant) -> Duration {
        self.total += now.saturating_duration_since(self.last).min(LONGEST_STEP);
        self.last = now;
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_not_counted_and_everything_else_is() {
        let mut watch = Stopwatch::start();
        let (start, second) = (watch.last, Duration::from_secs(1));
        let mut total = Duration::ZERO;
        for (at, counted) in [(1, 1), (2, 2), (3602, 4), (3603, 5), (3603, 5)] {
            total = watch.elapsed_at(start + at * second);
            assert_eq!(total, counted * second, "after {at} s");
        }
        // A clock that goes back takes nothing away.
        assert_eq!(watch.elapsed_at(start), total);
    }
}
