//! The log on standard error: `LEVEL [component] +seconds message`, one line each.
//!
//! Writing is simple_logger's; this wrapper adds the seconds since the start and keeps a panic of
//! `eprintln!` on a closed standard error from ending the container.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;

static START: OnceLock<Instant> = OnceLock::new();

/// Time since the init started.
pub fn since_start() -> Duration {
    START.get_or_init(Instant::now).elapsed()
}

struct Logger(SimpleLogger);

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let seconds = since_start().as_secs_f64();
        // A line that nobody can read any more is dropped; PID 1 goes on.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            self.0
                .log(&Record::builder().metadata(record.metadata().clone()).args(format_args!("+{seconds:.2}s {}", record.args())).build());
        }));
    }

    fn flush(&self) {}
}

/// Starts the clock and the log. `KIND_LOG` names the level: error, warn, info (the default), debug.
pub fn init() {
    since_start();
    let level = std::env::var("KIND_LOG").ok().and_then(|name| name.parse().ok()).unwrap_or(LevelFilter::Info);
    // ureq and rustls log every request at debug: only our own lines are wanted.
    let quiet = ["ureq", "ureq_proto", "rustls", "tiny_http"];
    let logger =
        quiet.iter().fold(SimpleLogger::new().with_level(level), |logger, target| logger.with_module_level(target, LevelFilter::Warn));
    if log::set_boxed_logger(Box::new(Logger(logger))).is_ok() {
        log::set_max_level(level);
    }
    quiet_panics_of_closed_stderr();
}

/// The default panic hook writes to standard error, and a second panic there would abort.
fn quiet_panics_of_closed_stderr() {
    std::panic::set_hook(Box::new(|panic| {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "ERROR [kind] internal error, please report it: {panic}");
    }));
}
