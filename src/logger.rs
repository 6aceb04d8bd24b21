//! The log on standard error: `LEVEL [component] +seconds message`, one line each.

use std::io::Write;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

static START: OnceLock<Instant> = OnceLock::new();

/// The exit status that Rust's runtime uses after a panic.
const PANICKED: i32 = 101;

/// Dependencies that log every request at debug level, where only our own lines are shown.
const QUIET: [&str; 3] = ["ureq", "rustls", "tiny_http"];

/// Time since the init started.
pub fn since_start() -> Duration {
    START.get_or_init(Instant::now).elapsed()
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= Level::Warn || !QUIET.iter().any(|name| metadata.target().starts_with(name))
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let (seconds, target) = (since_start().as_secs_f64(), record.target());
            // At once, so that two threads' lines do not mix.
            let line = format!("{:<5} [{target}] +{seconds:.2}s {}\n", record.level(), record.args());
            // If standard error is closed, the line is dropped: PID 1 must not end because of it.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Starts the clock and the log.
pub fn init(level: LevelFilter) {
    since_start();
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(level);
    }
    end_on_panic();
}

/// Ends the process after a panic in a thread with a name, since nothing else does that thread's work. A thread without a
/// name serves a single client of the file server or of the DNS forwarder, or reads one script's output: a panic there
/// costs only that.
///
/// tiny_http's accepting thread has no name either. If it ends, the file server's next connection to it is
/// refused, and `readiness::client_limits` ends the process.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        // Not eprintln!: if standard error is closed it panics, and a panic in the hook aborts.
        let _ = writeln!(std::io::stderr(), "ERROR [kind] internal error, please report it: {panic}");
        if std::thread::current().name().is_some() {
            std::process::exit(PANICKED);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dependencies_say_is_shown_from_warnings_on_and_ours_always() {
        for (target, level, shown) in [
            ("bake", Level::Debug, true),
            ("kind::cluster", Level::Info, true),
            ("ureq::pool", Level::Debug, false),
            ("ureq_proto::client", Level::Info, false),
            ("rustls::conn", Level::Warn, true),
            ("tiny_http", Level::Error, true),
        ] {
            assert_eq!(Logger.enabled(&Metadata::builder().target(target).level(level).build()), shown, "{target} {level}");
        }
    }

    /// Not a test: the test below runs it in a separate process, and `TEST_PANIC` says where to panic.
    #[test]
    #[ignore = "panics on purpose"]
    fn panics_where_the_test_wants_it() {
        let Ok(place) = std::env::var("TEST_PANIC") else { return };
        end_on_panic();
        let panic = move || panic!("on purpose");
        let thread = match place.as_str() {
            "named" => std::thread::Builder::new().name("boot".into()).spawn(panic),
            _ => std::thread::Builder::new().spawn(panic),
        };
        let _ = thread.unwrap().join();
        std::process::exit(0);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "no reaper runs in the tests")]
    fn a_panic_ends_the_process_except_in_a_clients_thread() {
        for (place, status) in [("named", PANICKED), ("nameless", 0)] {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["logger::tests::panics_where_the_test_wants_it", "--exact", "--ignored", "--nocapture"]).env("TEST_PANIC", place);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(status), "{place}: {said}");
            assert!(said.contains("internal error") && said.contains("on purpose"), "{place}: {said}");
        }
    }
}
