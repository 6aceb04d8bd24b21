//! Has a daemon wait at a line of its log. A program that logs to a pipe stops when the pipe is full; ours holds one line
//! (`O_DIRECT` of pipe(2)), so whoever reads it decides when the program goes on, two lines later at most.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::unistd::pipe2;

use crate::error::{Error, Result};

/// The kernel's least, and its default.
const ONE_LINE: i32 = 4096;
const MANY_LINES: i32 = 64 * 1024;

/// A line, and what has to return before the daemon goes on after it.
#[derive(Clone)]
pub struct Pause {
    pub line: &'static str,
    pub until: Arc<dyn Fn() + Send + Sync>,
}

impl Pause {
    /// Starts a thread that copies what the daemon logs to `log`. Returns the end of the pipe that the daemon writes to.
    pub fn follow(&self, name: &str, log: File) -> Result<Stdio> {
        let fail = |cause: io::Error| Error::new(format!("cannot follow the log of {name}: {cause}"));
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT).map_err(|cause| fail(cause.into()))?;
        resize(&reader, ONE_LINE).map_err(fail)?;
        let pause = self.clone();
        let body = move || pause.copy(reader, log);
        thread::Builder::new().name(format!("{name}-log")).spawn(body).map_err(fail)?;
        Ok(writer.into())
    }

    fn copy(&self, reader: OwnedFd, mut log: File) {
        let mut lines = File::from(reader);
        let mut line = vec![0; ONE_LINE as usize];
        while let Ok(length @ 1..) = lines.read(&mut line) {
            let _ = log.write_all(&line[..length]);
            if String::from_utf8_lossy(&line[..length]).contains(self.line) {
                (self.until)();
                let _ = resize(&lines, MANY_LINES);
                break;
            }
        }
        // With a full disk, what it logs is lost, but it goes on.
        while io::copy(&mut lines, &mut log).is_err() {}
    }
}

fn resize(pipe: &impl AsFd, bytes: i32) -> io::Result<()> {
    fcntl(pipe.as_fd(), FcntlArg::F_SETPIPE_SZ(bytes)).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc::channel;
    use std::sync::Mutex;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::supervisor::reaper;

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn a_program_stops_at_the_line_until_it_may_go_on_and_nothing_of_its_log_is_lost() {
        let directory = std::env::temp_dir().join(format!("kind-pause-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (log, gone_on) = (directory.join("log"), directory.join("gone-on"));
        let (go_on, may_go_on) = channel::<()>();
        let may_go_on = Mutex::new(may_go_on);
        let until = Arc::new(move || assert!(may_go_on.lock().unwrap().recv().is_err()));
        let stderr = Pause { line: "asks", until }.follow("test", File::create(&log).unwrap()).unwrap();
        let script = format!("for line in begins asks 2 3 4; do echo $line >&2; done; touch {}; seq 5000 >&2", gone_on.display());
        reaper::spawn(Command::new("sh").args(["-c", &script]).stderr(stderr)).unwrap();
        let read = || std::fs::read_to_string(&log).unwrap();
        let wait = |until: &dyn Fn() -> bool| {
            let end = Instant::now() + LIMIT;
            while !until() {
                assert!(Instant::now() < end, "{}", read());
                thread::sleep(Duration::from_millis(10));
            }
        };
        wait(&|| read().contains("asks"));
        thread::sleep(Duration::from_millis(300));
        assert!(!gone_on.exists() && read() == "begins\nasks\n", "{}", read());
        drop(go_on);
        let all: String = ["begins", "asks", "2", "3", "4"]
            .map(String::from)
            .into_iter()
            .chain((1..=5000).map(|n: u32| n.to_string()))
            .fold(String::new(), |text, line| text + &line + "\n");
        wait(&|| read() == all);
        assert!(gone_on.exists());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
