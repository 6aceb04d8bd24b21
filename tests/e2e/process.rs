//! Running commands and waiting, both with a time limit.

use std::io::{Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// A command that has ended, its output and its status.
pub struct Outcome {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Outcome {
    pub fn succeeded(&self) -> bool {
        self.status.success()
    }

    /// Standard output without the final newline. Panics if the command failed.
    pub fn ok(self) -> String {
        assert!(self.succeeded(), "{self}");
        self.stdout.trim_end().to_string()
    }

    pub fn output(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with {} after {:.1} s:\n{}{}", self.command, self.status, self.took.as_secs_f64(), self.stdout, self.stderr)
    }
}

pub fn run(command: &mut Command, limit: Duration) -> Outcome {
    run_with_input(command, "", limit)
}

/// Runs a command to its end. Kills it after `limit`; its status is then that of SIGKILL.
pub fn run_with_input(command: &mut Command, input: &str, limit: Duration) -> Outcome {
    let name = describe(command);
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|cause| panic!("cannot run `{name}`: {cause}"));
    // Fails if the command ends without reading it.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    let stdout = read(child.stdout.take().expect("it is piped"));
    let stderr = read(child.stderr.take().expect("it is piped"));
    let status = loop {
        if let Some(status) = child.try_wait().expect("nobody else waits for it") {
            break status;
        }
        if started.elapsed() > limit {
            let _ = child.kill();
        }
        thread::sleep(POLL);
    };
    let text = |reader: thread::JoinHandle<Vec<u8>>| String::from_utf8_lossy(&reader.join().expect("it does not panic")).into_owned();
    Outcome { command: name, status, stdout: text(stdout), stderr: text(stderr), took: started.elapsed() }
}

fn read(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Calls `ask` until it returns a value. Panics with `what` after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, ask: impl FnMut() -> Option<T>) -> T {
    poll(limit, ask).unwrap_or_else(|| panic!("{what}: not within {} s", limit.as_secs()))
}

pub fn poll<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if started.elapsed() > limit {
            return None;
        }
        thread::sleep(POLL);
    }
}
