//! The command of the control plane's containers: it stands for a program that runs restored, outside of the container,
//! or becomes the program.
//!
//! While it stands for a program it copies the program's log to its own output, passes signals on, and ends with the
//! program's status. Without an answer from the owner there is nothing to stand for.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::fcntl::{fallocate, FallocateFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use signal_hook::consts::{SIGCHLD, SIGCONT, SIGURG, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::config::POLL;
use crate::error::{Error, Result};
use crate::restore::owner::{receive, send, socket, Answer, Request};
use crate::restore::saved::log_of;
use crate::supervisor::reaper;
use crate::threads;

/// The owner answers at once. It waits for a program only if that has to end first, which takes this long at most.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the end waits for the last lines of the log to be taken.
const LAST_LINES_LIMIT: Duration = Duration::from_secs(1);
/// The log lies in memory: what has been copied of it is given back in pieces of at least this size.
const PIECE: u64 = 1 << 20;
/// If the owner has gone, the node has too.
const LOST: i32 = 137;
/// Signals that say nothing to a program.
const NOT_PASSED_ON: [i32; 4] = [SIGCHLD, SIGCONT, SIGURG, SIGWINCH];

/// Stands for `name`, or becomes `argv`. Returns only if the program cannot be run.
pub fn run(name: &str, argv: &[String], signals: Signals) -> Result<ExitCode> {
    match claim(name, argv) {
        Some((owner, log_from)) => stand(name, owner, log_from, signals),
        None => Err(exec(argv)),
    }
}

fn exec(argv: &[String]) -> Error {
    let Some((program, arguments)) = argv.split_first() else { return Error::new("no command") };
    let cause = Command::new(program).args(arguments).exec();
    Error::new(format!("cannot run {program}: {cause}")).with_status(reaper::code_of_failed_exec(&cause))
}

/// Asks the owner whether the program runs restored. Returns the connection, and where the log of this start begins.
fn claim(name: &str, argv: &[String]) -> Option<(BufReader<UnixStream>, u64)> {
    let stream = UnixStream::connect(socket()).ok()?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).ok()?;
    let mut owner = BufReader::new(stream);
    send(&owner, &Request::Claim { name: name.into(), argv: argv.to_vec() });
    match receive(&mut owner)? {
        Answer::Restored { log_from } => {
            owner.get_ref().set_read_timeout(None).ok()?;
            Some((owner, log_from))
        }
        Answer::Plain | Answer::Ended { .. } => None,
    }
}

fn stand(name: &str, mut owner: BufReader<UnixStream>, log_from: u64, mut signals: Signals) -> Result<ExitCode> {
    let to_owner = BufReader::new(owner.get_ref().try_clone().map_err(|cause| Error::io("use", socket(), cause))?);
    let log = Arc::new(Mutex::new(Log::open(name, log_from)?));
    copy_log(name, log.clone())?;
    threads::start("owner", move || {
        let status = match receive(&mut owner) {
            Some(Answer::Ended { status }) => status,
            _ => LOST,
        };
        // Another thread may be in the middle of a write that nobody takes.
        reaper::poll(POLL, LAST_LINES_LIMIT, || log.try_lock().ok().map(|mut log| log.copy()));
        std::process::exit(status);
    })?;
    for signal in signals.forever().filter(|signal| !NOT_PASSED_ON.contains(signal)) {
        send(&to_owner, &Request::Signal(signal));
    }
    Ok(ExitCode::SUCCESS)
}

/// Copies the log as it grows.
fn copy_log(name: &str, log: Arc<Mutex<Log>>) -> Result<()> {
    let path = log_of(name);
    let fail = |cause| Error::io("watch", &path, cause);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).map_err(fail)?;
    inotify.add_watch(&path, AddWatchFlags::IN_MODIFY).map_err(fail)?;
    threads::start("log", move || loop {
        if let Ok(mut log) = log.lock() {
            log.copy();
        }
        if inotify.read_events().is_err() {
            thread::sleep(POLL);
        }
    })
}

struct Log {
    file: File,
    copied: u64,
    /// Up to here its memory was given back.
    freed: u64,
}

impl Log {
    fn open(name: &str, from: u64) -> Result<Log> {
        let path = log_of(name);
        let open = || {
            let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
            file.seek(SeekFrom::Start(from))?;
            Ok(file)
        };
        let file = open().map_err(|cause: std::io::Error| Error::io("open", &path, cause))?;
        Ok(Log { file, copied: from, freed: 0 })
    }

    /// Copies what is new.
    fn copy(&mut self) {
        let mut buffer = [0; 8192];
        let mut output = std::io::stdout();
        while let Ok(length @ 1..) = self.file.read(&mut buffer) {
            // Without a reader the lines are lost, as a container's are.
            let _ = output.write_all(&buffer[..length]);
            self.copied += length as u64;
        }
        let _ = output.flush();
        if self.copied - self.freed >= PIECE {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(&self.file, flags, self.freed as i64, (self.copied - self.freed) as i64);
            self.freed = self.copied;
        }
    }
}
