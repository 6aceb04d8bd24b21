//! Has kubelet wait for the restored API server before it looks for its node, and in a reset for the
//! end of the earlier cluster's pods. A program that logs to a pipe stops when the
//! pipe is full; ours holds one line (`O_DIRECT` of pipe(2)), so whoever reads it decides when kubelet goes on, two lines
//! later at most.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::unistd::pipe2;

use crate::error::{Error, Result};
use crate::readiness::Readiness;
use crate::supervisor::reaper;
use crate::threads;

/// What kubelet logs when it has begun to ask the API server for its node. A moment later it looks whether it knows the
/// node, and if not, it looks again a second later; before that it asks for no pods (`NewSourceApiserver` in
/// pkg/kubelet/config/apiserver.go).
const ASKS_FOR_NODE: &str = "Attempting to sync node with API server";
/// A client that was kept waiting is answered this soon once the API server answers.
const ANSWERED: Duration = Duration::from_millis(50);
/// The kernel's least, and its default.
const ONE_LINE: i32 = 4096;
const MANY_LINES: i32 = 64 * 1024;

/// Warns, in the bake, of a kubelet that does not log that line: it has no place at which it would wait.
pub fn check(programs: &Path) {
    if reaper::run(Command::new("grep").args(["-q", "-F", ASKS_FOR_NODE]).arg(programs.join("kubelet"))).is_err() {
        log::warn!(
            target: "bake",
            "this kubelet does not log \"{ASKS_FOR_NODE}\", where a restored start has it wait for the API server: starts may take a second longer"
        );
    }
}

/// Starts a thread that copies what kubelet logs to `log`, and has it wait at that line while the control plane is being
/// restored. Returns the end of the pipe that kubelet writes to.
pub fn start(log: File, readiness: Arc<Readiness>) -> Result<Stdio> {
    let fail = |cause: io::Error| Error::new(format!("cannot read kubelet's log: {cause}"));
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT).map_err(|cause| fail(cause.into()))?;
    resize(&reader, ONE_LINE).map_err(fail)?;
    threads::start("kubelet-log", move || copy(reader, log, &readiness))?;
    Ok(writer.into())
}

fn copy(reader: OwnedFd, mut log: File, readiness: &Readiness) {
    let mut lines = File::from(reader);
    let mut line = vec![0; ONE_LINE as usize];
    while let Ok(length @ 1..) = lines.read(&mut line) {
        let _ = log.write_all(&line[..length]);
        let asks = String::from_utf8_lossy(&line[..length]).contains(ASKS_FOR_NODE);
        if asks {
            readiness.wait_until(|state| !state.control_plane.is_coming() && !state.reset.blocks_kubelet());
        }
        // When it answers it has passed that line, and need not be slowed down any more, even if it never came.
        if asks || readiness.state().kubelet {
            thread::sleep(ANSWERED);
            let _ = resize(&lines, MANY_LINES);
            break;
        }
    }
    // With a full disk, what it logs is lost, but it goes on.
    while io::copy(&mut lines, &mut log).is_err() {}
}

fn resize(pipe: &impl AsFd, bytes: i32) -> io::Result<()> {
    fcntl(pipe.as_fd(), FcntlArg::F_SETPIPE_SZ(bytes)).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Instant;

    use nix::fcntl::FcntlArg::F_GETPIPE_SZ;

    use super::*;
    use crate::readiness::{ControlPlane, Reset};

    const LIMIT: Duration = Duration::from_secs(30);

    struct Kubelet {
        directory: PathBuf,
        readiness: Arc<Readiness>,
    }

    impl Kubelet {
        /// While the control plane is being restored, a program logs a line, and then others.
        fn logs(test: &str, line: &str) -> Kubelet {
            let directory = std::env::temp_dir().join(format!("kind-kubelet-log-{}-{test}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            let readiness = Arc::new(Readiness::new(directory.join("files")));
            readiness.clear().unwrap();
            readiness.update(|state| state.control_plane = ControlPlane::Restoring { port_is_held: true });
            let stderr = start(File::create(directory.join("log")).unwrap(), readiness.clone()).unwrap();
            let gone_on = directory.join("gone-on");
            let script = format!("for line in begins '{line}' 2 3 4; do echo $line >&2; done; touch {}; seq 5000 >&2", gone_on.display());
            reaper::spawn(Command::new("sh").args(["-c", &script]).stderr(stderr)).unwrap();
            Kubelet { directory, readiness }
        }

        fn log(&self) -> String {
            std::fs::read_to_string(self.directory.join("log")).unwrap()
        }

        fn has_gone_on(&self) -> bool {
            self.directory.join("gone-on").exists()
        }

        fn wait(&self, until: impl Fn(&str) -> bool) {
            let end = Instant::now() + LIMIT;
            while !until(&self.log()) {
                assert!(Instant::now() < end, "{}", self.log());
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    impl Drop for Kubelet {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    fn all(line: &str) -> String {
        let lines = ["begins", line, "2", "3", "4"].map(String::from).into_iter().chain((1..=5000).map(|n: u32| n.to_string()));
        lines.fold(String::new(), |text, line| text + &line + "\n")
    }

    #[test]
    fn kubelet_stops_at_the_line_until_the_restore_is_over_and_nothing_of_its_log_is_lost() {
        for over in [ControlPlane::Restored, ControlPlane::Cold] {
            let kubelet = Kubelet::logs(&format!("{over:?}"), ASKS_FOR_NODE);
            kubelet.wait(|log| log.contains(ASKS_FOR_NODE));
            thread::sleep(Duration::from_millis(300));
            assert!(!kubelet.has_gone_on() && kubelet.log() == format!("begins\n{ASKS_FOR_NODE}\n"), "{}", kubelet.log());
            kubelet.readiness.update(|state| state.control_plane = over);
            kubelet.wait(|log| log == all(ASKS_FOR_NODE));
            assert!(kubelet.has_gone_on());
        }
    }

    #[test]
    fn in_a_reset_kubelet_waits_for_the_end_of_earlier_pods_though_the_control_plane_is_restored() {
        let kubelet = Kubelet::logs("reset", ASKS_FOR_NODE);
        kubelet.readiness.update(|state| (state.control_plane, state.reset) = (ControlPlane::Restored, Reset::Ending));
        kubelet.wait(|log| log.contains(ASKS_FOR_NODE));
        thread::sleep(Duration::from_millis(300));
        assert!(!kubelet.has_gone_on());
        kubelet.readiness.update(|state| state.reset = Reset::Removing);
        kubelet.wait(|log| log == all(ASKS_FOR_NODE));
    }

    #[test]
    fn a_line_that_never_comes_slows_kubelet_down_until_it_answers_at_most() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT).unwrap();
        resize(&reader, ONE_LINE).unwrap();
        let mut kubelet = File::from(writer);
        let readiness = Readiness::new(std::env::temp_dir().join(format!("kind-kubelet-log-{}-never", std::process::id())));
        readiness.update(|state| (state.control_plane, state.kubelet) = (ControlPlane::Restored, true));
        thread::scope(|scope| {
            scope.spawn(|| copy(reader, File::create("/dev/null").unwrap(), &readiness));
            kubelet.write_all(b"another line\n").unwrap();
            let is_wide = || (fcntl(kubelet.as_fd(), F_GETPIPE_SZ).unwrap() == MANY_LINES).then_some(());
            assert!(reaper::poll(Duration::from_millis(10), LIMIT, is_wide).is_some(), "it is still read line by line");
            drop(kubelet);
        });
    }
}
