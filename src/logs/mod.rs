//! `kind logs` and `/logs.tar.gz`: everything that explains this node, in one archive (`collect.sh`).

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::pipe2;

use crate::config::{Config, STATE_DIR};
use crate::daemons::client_variables;
use crate::error::{Error, Result};
use crate::http;
use crate::node::registry;
use crate::supervisor::reaper;

const SCRIPT: &str = include_str!("collect.sh");
/// More than the limits in the script add up to where everything hangs.
const LIMIT: Duration = Duration::from_secs(600);
const PIECE: usize = 16 * 1024;

/// Becomes the script, which writes the archive to standard output. Returns only if that is impossible.
pub fn run() -> Error {
    match script() {
        Ok(mut command) => Error::new(format!("cannot run sh: {}", command.exec())),
        Err(error) => error,
    }
}

fn script() -> Result<Command> {
    if !Config::from_env(|name| std::env::var(name).ok())?.path(STATE_DIR).exists() {
        return Err(Error::does_not_run_here());
    }
    if io::stdout().is_terminal() {
        return Err(Error::new("the archive goes to standard output, which is a terminal").advise("Use `kind logs >logs.tar.gz`"));
    }
    // They may name another Docker and another cluster.
    client_variables::take();
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|cause| Error::new(format!("cannot make a pipe: {cause}")))?;
    // A pipe holds 64 KiB (pipe(7)); the passwords of a few registries are far below.
    let written = File::from(writer).write_all(registry::passwords().join("\n").as_bytes());
    written.map_err(|cause| Error::new(format!("cannot write to a pipe: {cause}")))?;
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "kind", env!("CARGO_PKG_VERSION")]).stdin(reader);
    Ok(command)
}

/// Answers a client with the archive, as it is written.
pub fn send(client: &mut TcpStream, is_head: bool) -> io::Result<()> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = match TURN.try_lock() {
        Ok(turn) => turn,
        Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
        Err(TryLockError::WouldBlock) => {
            return client
                .write_all(&http::text("503 Service Unavailable", "the logs are being collected for another client: try again\n"));
        }
    };
    // Its length is not known yet, so the answer ends with the connection; a piece of gzip's format is no whole archive.
    let head = http::head("200 OK", &[("Content-Type", &"application/gzip")]);
    if is_head {
        return client.write_all(&head);
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("logs").stdout(writer).stderr(Stdio::null());
    let child = reaper::spawn(&mut command).map_err(|error| io::Error::other(error.to_string()))?;
    // It holds our write end of the pipe, which would never end.
    drop(command);
    let sent = copy(File::from(reader), &head, client);
    if sent.is_err() {
        child.handle().kill_group();
    }
    child.wait();
    sent
}

fn copy(mut archive: File, head: &[u8], client: &mut TcpStream) -> io::Result<()> {
    let end = Instant::now() + LIMIT;
    let (mut piece, mut is_first) = (vec![0; PIECE], true);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(archive.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(cause) => return Err(cause.into()),
        }
        let length = archive.read(&mut piece)?;
        if std::mem::take(&mut is_first) {
            if length == 0 {
                return client.write_all(&http::text("500 Internal Server Error", "the logs cannot be collected\n"));
            }
            client.write_all(head)?;
        }
        if length == 0 {
            return Ok(());
        }
        client.write_all(&piece[..length])?;
    }
}
