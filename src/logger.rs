//! The log on standard error: `LEVEL [component] +seconds message`, one line each.
//!
//! simple_logger writes the lines; this wrapper adds the seconds since the start, and catches the panic of
//! `eprintln!` when standard error is closed, which would end the container. A copy is kept for `kind logs`.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;

/// Our log's name in the directory of the daemons' logs.
const FILE: &str = "kind.log";

static COPY: OnceLock<File> = OnceLock::new();
static START: OnceLock<Instant> = OnceLock::new();

/// The exit status that Rust's runtime uses after a panic.
const PANICKED: i32 = 101;

thread_local! {
    /// Set while this thread writes a line: a panic then means that standard error is closed.
    static WRITING: Cell<bool> = const { Cell::new(false) };
}

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
        // If standard error is closed, drop the line: PID 1 must not end because of it.
        WRITING.set(true);
        let _ = catch_unwind(AssertUnwindSafe(|| {
            self.0
                .log(&Record::builder().metadata(record.metadata().clone()).args(format_args!("+{seconds:.2}s {}", record.args())).build());
        }));
        WRITING.set(false);
        if let Some(mut copy) = COPY.get() {
            // One write for each line, as other threads write theirs.
            let line = format!("{:<5} [{}] +{seconds:.2}s {}\n", record.level(), record.target(), record.args());
            // A full disk must not end the container.
            let _ = copy.write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Starts the clock and the log.
pub fn init(level: LevelFilter) {
    since_start();
    // Some dependencies log every request at debug level; at debug, show only our own lines.
    let quiet = ["ureq", "ureq_proto", "rustls", "tiny_http"];
    let logger =
        quiet.iter().fold(SimpleLogger::new().with_level(level), |logger, target| logger.with_module_level(target, LevelFilter::Warn));
    if log::set_boxed_logger(Box::new(Logger(logger))).is_ok() {
        log::set_max_level(level);
    }
    end_on_panic();
}

/// Writes every line to a file in `directory` too, from now on: only the engine has what goes to standard error, and a job
/// may not ask it.
pub fn copy_to(directory: &Path) {
    match fs::create_dir_all(directory).and_then(|()| File::create(directory.join(FILE))) {
        Ok(file) => drop(COPY.set(file)),
        Err(cause) => log::warn!(target: "kind", "no {FILE} in {}: {cause}", directory.display()),
    }
}

/// Ends the process after a panic in a thread with a name, since nothing else does that thread's work. Threads
/// that serve a single client (the file server's, the DNS forwarder's and tiny_http's) have no name: a panic
/// there costs only that client.
///
/// tiny_http's accepting thread has no name either. If it ends, the file server's next connection to it is
/// refused, and `readiness::client_limits` ends the process.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        if WRITING.get() {
            return;
        }
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

    /// Not a test: the test below runs it in a separate process, and `TEST_PANIC` says where to panic.
    #[test]
    #[ignore = "panics on purpose"]
    fn panics_as_it_is_told() {
        let Ok(told) = std::env::var("TEST_PANIC") else { return };
        end_on_panic();
        let panic = move || panic!("on purpose");
        let thread = match told.as_str() {
            "named" => std::thread::Builder::new().name("boot".into()).spawn(panic),
            "nameless" => std::thread::Builder::new().spawn(panic),
            _ => std::thread::Builder::new().name("boot".into()).spawn(|| {
                WRITING.set(true);
                let _ = catch_unwind(|| panic!("standard error is closed"));
            }),
        };
        let _ = thread.unwrap().join();
        std::process::exit(0);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "no reaper runs in the tests")]
    fn a_panic_ends_the_process_except_in_a_clients_thread_or_while_logging() {
        for (told, status, says) in [("named", PANICKED, true), ("nameless", 0, true), ("logging", 0, false)] {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["logger::tests::panics_as_it_is_told", "--exact", "--ignored", "--nocapture"]).env("TEST_PANIC", told);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(status), "{told}: {said}");
            assert_eq!(said.contains("internal error") && said.contains("on purpose"), says, "{told}: {said}");
        }
    }
}
