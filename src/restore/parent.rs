//! The process above the programs: PID 1 of a PID namespace of their own, so that none of their process ids can be taken
//! when they are restored, and so that all of them end when it is killed. It is saved and restored with them.
//!
//! It starts each program as soon as the bake has created its file `NAME.start`, and reports each end in `PID.status`.
//! It keeps nothing open, and says nothing.
#![allow(clippy::disallowed_methods, reason = "this process has no reaper; it is the parent of the programs alone")]

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use nix::errno::Errno;
use nix::sys::wait::{wait, WaitStatus};
use nix::unistd::setsid;

use crate::config::{POLL, RESTORED_DIR};
use crate::error::{Error, Result};
use crate::files;
use crate::restore::saved::{log_of, Start};

/// The file whose existence starts a program.
pub fn start_file(name: &str) -> PathBuf {
    Path::new(RESTORED_DIR).join(format!("{name}.start"))
}

/// The file with the status that a program ended with, as a shell has it.
pub fn status_file(pid: i32) -> PathBuf {
    Path::new(RESTORED_DIR).join(format!("{pid}.status"))
}

/// Runs as that parent, until it is killed.
pub fn run(programs: &str) -> Result<()> {
    let programs: Vec<Start> = serde_json::from_str(programs).map_err(|cause| Error::new(format!("{programs}: {cause}")))?;
    setsid().map_err(|cause| Error::new(format!("cannot begin a session: {cause}")))?;
    for program in &programs {
        while !start_file(&program.name).exists() {
            thread::sleep(POLL);
        }
        start(program)?;
    }
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) => report(pid.as_raw(), code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => report(pid.as_raw(), 128 + signal as i32),
            Err(Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(_) => {}
        }
    }
}

fn start(program: &Start) -> Result<()> {
    let log = log_of(&program.name);
    let output = OpenOptions::new().append(true).create(true).open(&log).map_err(|cause| Error::io("open", &log, cause))?;
    let errors = output.try_clone().map_err(|cause| Error::io("open", &log, cause))?;
    let mut command = Command::new(&program.executable);
    command.arg0(program.argv.first().map_or("", String::as_str)).args(program.argv.iter().skip(1));
    command.env_clear().envs(program.environment.iter().cloned()).current_dir("/");
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    let started = command.spawn();
    started.map(drop).map_err(|cause| Error::io("run", &program.executable, cause))
}

/// There is nobody to tell of an error.
fn report(pid: i32, status: i32) {
    let _ = files::replace(status_file(pid), status.to_string(), 0o644);
}
