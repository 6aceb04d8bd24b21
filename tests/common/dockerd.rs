//! A stand-in for dockerd: answers `/_ping` on the socket that `-H unix://` names, answers connections on the
//! listening socket that it inherits, records its arguments, environment and signals, and misbehaves if told to.
//!
//! It is the test program itself, which a script named `dockerd` starts.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use signal_hook::consts::{SIGHUP, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::node::Container;
use super::{signal_masks, wait_for, LIMIT};

const DIR: &str = "TEST_DOCKERD";
const ARGUMENTS: &str = "TEST_DOCKERD_ARGUMENTS";
/// The `#[ignore]`d test that calls `run_if_asked`.
const ENTRY: &str = "the_stand_in_for_dockerd";

/// The environment variables that it records.
const NOTED: [&str; 11] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "KIND_TEST",
    "DOCKER_HOST",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "DOCKER_DRIVER",
    "DOCKER_MIN_API_VERSION",
    "HTTPS_PROXY",
    "PATH",
    "container",
];

/// A way to misbehave, from `Dockerd::tell` to `Dockerd::mend`.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Does not start: the script waits.
    Held,
    /// Accepts connections but does not answer.
    Mute,
    /// Answers `/_ping` with 500.
    Broken,
    /// Exits at once with status 3.
    Dying,
    /// Ignores SIGTERM.
    Stubborn,
}

/// The test's side: installs the stand-in in a container, and reads its records.
pub struct Dockerd {
    dir: PathBuf,
}

impl Dockerd {
    pub fn install(container: &Container) -> Dockerd {
        let dir = container.root.join("dockerd");
        fs::create_dir_all(&dir).unwrap();
        let (shown, program) = (dir.display(), std::env::current_exe().unwrap());
        let script = format!(
            "export {DIR}={shown} {ARGUMENTS}=\"$*\"\ncat /proc/self/status >{shown}/status\n\
             while [ -e {shown}/Held ]; do sleep 0.02; done\nexec {} {ENTRY} --exact --ignored --nocapture",
            program.display()
        );
        container.root.script("bin/dockerd", &script);
        Dockerd { dir }
    }

    pub fn tell(&self, fault: Fault) {
        fs::write(self.dir.join(format!("{fault:?}")), "").unwrap();
    }

    pub fn mend(&self, fault: Fault) {
        fs::remove_file(self.dir.join(format!("{fault:?}"))).unwrap();
    }

    /// Every record that begins with the word `kind`, without that word.
    pub fn notes(&self, kind: &str) -> Vec<String> {
        let log = fs::read_to_string(self.dir.join("notes")).unwrap_or_default();
        log.lines().filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' ').map(str::to_string)).collect()
    }

    pub fn wait_for_note(&self, kind: &str) -> String {
        wait_for(&format!("the stand-in records {kind:?}"), LIMIT, || self.notes(kind).pop())
    }

    /// The masks of blocked and ignored signals that the script has inherited.
    pub fn signal_masks(&self) -> Vec<u64> {
        signal_masks(&fs::read_to_string(self.dir.join("status")).unwrap())
    }
}

/// The stand-in's side. Returns only if this process was not started as the stand-in.
pub fn run_if_asked() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let told = |dir: &Path, fault: Fault| dir.join(format!("{fault:?}")).exists();
    let mut signals = Signals::new([SIGTERM, SIGHUP, SIGUSR1]).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    note(&dir, &format!("started {now}"));
    note(&dir, &format!("pid {}", std::process::id()));
    note(&dir, &format!("arguments {}", std::env::var(ARGUMENTS).unwrap_or_default()));
    for name in NOTED {
        note(&dir, &format!("{name} {}", std::env::var(name).unwrap_or_default()));
    }
    if told(&dir, Fault::Dying) {
        eprintln!("\nthe stand-in is out of order");
        std::process::exit(3);
    }
    let socket = std::env::var(ARGUMENTS).unwrap_or_default();
    let socket = socket.split(' ').find_map(|word| word.strip_prefix("unix://")).map(PathBuf::from);
    serve_pings(socket.unwrap_or_else(|| dir.with_file_name("var/run/docker.sock")), dir.clone());
    if std::env::var("LISTEN_PID") == Ok(std::process::id().to_string()) {
        serve_port();
    }
    for signal in signals.forever() {
        note(&dir, &format!("signal {}", Signal::try_from(signal).unwrap()));
        if signal == SIGTERM && !told(&dir, Fault::Stubborn) {
            // Leave time to record a second SIGTERM, which must not come.
            let _ = thread::spawn(|| {
                thread::sleep(Duration::from_millis(200));
                std::process::exit(0)
            });
        }
    }
}

fn note(dir: &Path, line: &str) {
    let mut notes = OpenOptions::new().create(true).append(true).open(dir.join("notes")).unwrap();
    notes.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn serve_pings(socket: PathBuf, dir: PathBuf) {
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    // As dockerd does: remove the socket of an earlier one.
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            note(&dir, "ping asked");
            while dir.join("Mute").exists() {
                thread::sleep(Duration::from_millis(20));
            }
            let mut request = [0; 512];
            let _ = client.read(&mut request);
            let status = if dir.join("Broken").exists() { "500 Internal Server Error" } else { "200 OK" };
            let _ = client.write_all(format!("HTTP/1.0 {status}\r\nContent-Length: 2\r\n\r\nOK").as_bytes());
        }
    });
}

/// Serves the port that was passed as descriptor 3 (sd_listen_fds(3)).
fn serve_port() {
    // SAFETY: LISTEN_PID is this process, so descriptor 3 is the socket that was passed to it, and nothing else uses it.
    let listener = unsafe { TcpListener::from_raw_fd(3) };
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = [0; 512];
            let _ = client.read(&mut request);
            let _ = client.write_all(format!("answered by {}\n", std::process::id()).as_bytes());
        }
    });
}
