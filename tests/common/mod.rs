//! Shared by the integration tests: temporary directories, polling with a limit, skipping tests, `/proc`, and plain
//! HTTP. `node` runs the binary as PID 1, `dockerd` is a stand-in for Docker, `build` runs build.sh, `server` serves
//! its downloads.
//!
//! Each test file is a separate crate, which uses only a part of this: hence `dead_code`.
#![allow(dead_code, clippy::disallowed_methods)]

pub mod build;
pub mod dockerd;
pub mod network;
pub mod node;
pub mod server;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The binary under test.
pub const KIND: &str = env!("CARGO_BIN_EXE_kind");
/// For anything that should happen at once, but may take a while on a slow, busy machine.
pub const LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);

/// A temporary directory, which is removed with its contents.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kind-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name.trim_start_matches('/'))
    }

    /// Writes a file, and creates its parent directories.
    pub fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        path
    }

    /// Writes an executable shell script. A process of its own does: this one's descriptor would be in every process
    /// that another thread starts meanwhile, and while that has it, the script cannot be run (ETXTBSY).
    pub fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$0\" && chmod 755 \"$0\""]).arg(&path).arg(body);
        assert!(command.status().unwrap().success(), "{} cannot be written", path.display());
        path
    }

    /// A file's current text. Empty if the file does not exist.
    pub fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.join(name)).unwrap_or_default()).into_owned()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Calls `check` until it returns a value.
///
/// # Panics
/// With `what`, after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        match check() {
            Some(value) => return value,
            None if Instant::now() > end => panic!("not within {} s: {what}", limit.as_secs_f32()),
            None => std::thread::sleep(POLL),
        }
    }
}

/// The namespaces in which a test can run the binary as PID 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Namespaces {
    /// The tests run as root: every kind of namespace, and cgroups.
    Root,
    /// As root of a user namespace: neither cgroups nor network namespaces.
    User,
}

/// The namespaces that this machine allows. If that is less than `needed`, says on standard error that the test is
/// skipped, and returns `None`: the caller must return. Panics in CI (`CI=true`), where no test may be skipped.
pub fn namespaces(needed: Namespaces) -> Option<Namespaces> {
    let works = |options: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(options).args(["--pid", "--fork", "--mount", "--mount-proc", "true"]);
        unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if nix::unistd::geteuid().is_root() && works(&["--net"]) {
        return Some(Namespaces::Root);
    }
    if needed == Namespaces::User && works(&["--user", "--map-root-user"]) {
        return Some(Namespaces::User);
    }
    let test = std::thread::current().name().unwrap_or("a test").to_string();
    let why = match needed {
        Namespaces::Root => "it needs root, to create namespaces and cgroups",
        Namespaces::User => "it needs root or unprivileged user namespaces, to run the binary as PID 1",
    };
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{test} cannot run here, and in CI no test may be skipped: {why}");
    // Not eprintln!, whose output the harness shows only for failed tests. One write, so that lines do not mix.
    let _ = std::io::stderr().write_all(format!("SKIPPED: {test}: {why}\n").as_bytes());
    None
}

/// A process as /proc/PID/stat has it (proc_pid_stat(5)).
#[derive(Debug)]
pub struct Process {
    pub pid: i32,
    pub name: String,
    pub state: char,
    pub parent: i32,
}

pub fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything, including parentheses and spaces.
    let (name, rest) = (stat.split_once('(')?.1.rsplit_once(')')?.0, stat.rsplit_once(')')?.1);
    let mut fields = rest.split_whitespace();
    Some(Process { pid, name: name.into(), state: fields.next()?.chars().next()?, parent: fields.next()?.parse().ok()? })
}

/// The children of a process, zombies included.
pub fn children(parent: i32) -> Vec<Process> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(process).filter(|process| process.parent == parent).collect()
}

/// The masks of blocked and ignored signals (`SigBlk`, `SigIgn`) in a /proc/PID/status, without 32 and 33, which
/// glibc reserves and which its posix_spawn(3) leaves ignored.
pub fn signal_masks(status: &str) -> Vec<u64> {
    let lines = status.lines().filter_map(|line| line.split_once(":\t"));
    let masks = lines.filter(|(name, _)| ["SigBlk", "SigIgn"].contains(name));
    masks.map(|(_, hex)| u64::from_str_radix(hex, 16).unwrap() & !(0b11 << 31)).collect()
}

pub fn zombies(parent: i32) -> usize {
    children(parent).iter().filter(|child| child.state == 'Z').count()
}

/// Sends bytes to a port on 127.0.0.1 in the thread's network namespace, and returns everything until the server
/// closes the connection.
pub fn raw(port: u16, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    // A server may answer and close before it has read everything.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The status and body of a response.
pub fn parse_answer(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, body.to_string())
}

pub fn request(port: u16, method: &str, target: &str) -> std::io::Result<(u16, String)> {
    raw(port, &format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).map(|answer| parse_answer(&answer))
}

/// The exit code as a shell reports it.
pub fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// An output whose reader has closed it: writing fails with EPIPE.
pub fn closed_pipe() -> Stdio {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(theirs);
    Stdio::from(std::os::fd::OwnedFd::from(ours))
}
