//! Runs the real binary as PID 1 in new namespaces, as in a container.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::network::Network;
use super::{children, closed_pipe, namespaces, request, wait_for, Namespaces, TempDir, KIND, LIMIT};

/// The file server's default port.
pub const FILES_PORT: u16 = 10080;

/// A stand-in for a container: a directory for the state, its own programs on PATH, and its own network, pid, mount,
/// uts, ipc and cgroup namespaces.
pub struct Container {
    pub root: TempDir,
    environment: Vec<(String, String)>,
    /// Shell code that runs in the namespaces before the binary.
    pub before: String,
    cgroup: Cgroup,
    pub network: Network,
}

impl Container {
    /// `None` if this machine does not allow it: the test is skipped (`namespaces`).
    pub fn new() -> Option<Container> {
        namespaces(Namespaces::Root)?;
        let container = Container {
            root: TempDir::new(),
            environment: Vec::new(),
            before: String::new(),
            cgroup: Cgroup::new(),
            network: Network::enter_new(),
        };
        // PATH has only these, so that no test can start the machine's own Docker.
        container.root.script("bin/dockerd", "exec sleep 1000");
        for tool in ["cat", "env", "ip", "mkdir", "mount", "sh", "sleep", "umount", "unshare"] {
            symlink(find_program(tool), container.root.join("bin").join(tool)).unwrap();
        }
        Some(container)
    }

    /// Makes a program of this machine available in the container.
    pub fn add_program(&self, name: &str) {
        symlink(find_program(name), self.root.join("bin").join(name)).unwrap();
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    /// Starts `kind` with these arguments. Its output goes to files.
    pub fn start(&self, arguments: &[&str]) -> Running {
        Running::spawn(&mut self.command(arguments), self.root.path())
    }

    /// Starts `kind` with a closed standard output and error.
    pub fn start_unheard(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(arguments);
        let child = command.stdin(Stdio::null()).stdout(closed_pipe()).stderr(closed_pipe()).spawn().unwrap();
        Running { child, dir: self.root.path().into() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // Join the cgroup inside the pid namespace: kind could not move a process outside of it out again.
        let enter = r#"echo 0 >"$TEST_CGROUP/cgroup.procs" && exec unshare --cgroup sh -c "$0" "$@""#;
        // unshare(1) keeps the old cgroup mounts, which show the whole machine's cgroups.
        let remount = match self.cgroup.version {
            2 => "umount -R -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            _ => "umount -R -l /sys/fs/cgroup && mount -t tmpfs tmpfs /sys/fs/cgroup && mkdir /sys/fs/cgroup/pids && mount -t cgroup -o pids pids /sys/fs/cgroup/pids",
        };
        let remount = format!("{remount} && unset TEST_CGROUP && {{ {}\n exec \"$0\" \"$@\"; }}", self.before);
        let mut command = unshare(Namespaces::Root);
        command.args(["--uts", "--ipc", "sh", "-c", enter, &remount, KIND]).args(arguments);
        command.env_clear().env("PATH", self.root.join("bin")).env("HOME", "/root").env("KIND_ROOT", self.root.path());
        command.env("TEST_CGROUP", &self.cgroup.path).envs(self.environment.iter().cloned());
        command
    }

    /// The file server's response. Waits until it listens.
    pub fn get(&self, name: &str) -> (u16, String) {
        wait_for("the file server answers", LIMIT, || request(FILES_PORT, "GET", &format!("/{name}")).ok())
    }

    /// The file server's response, if it listens.
    pub fn get_now(&self, name: &str) -> Option<(u16, String)> {
        request(FILES_PORT, "GET", &format!("/{name}")).ok()
    }

    /// Waits until the file server's response for a file has this status.
    pub fn wait_for_status(&self, name: &str, status: u16) {
        wait_for(&format!("/{name} is {status}"), LIMIT, || (self.get(name).0 == status).then_some(()));
    }
}

fn find_program(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/bin:/bin";
    let found = path.split(':').map(|directory| Path::new(directory).join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("the tests need the program {name}, which is not installed"))
}

/// Runs a command as PID 1 of a pid namespace, and kills it when the test's thread ends for whatever reason.
fn unshare(allowed: Namespaces) -> Command {
    let mut command = Command::new(find_program("setpriv"));
    command.args(["--pdeathsig", "KILL", "unshare"]);
    if allowed == Namespaces::User {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]);
    command
}

/// Runs `argv` as PID 1 in new pid and mount namespaces, which is enough for `kind run COMMAND`.
pub fn as_pid1(dir: &TempDir, argv: &[&str]) -> Option<Running> {
    let allowed = namespaces(Namespaces::User)?;
    Some(Running::spawn(unshare(allowed).args(argv), dir.path()))
}

/// Runs `argv` without namespaces, so it must not change the machine.
pub fn without_namespaces(dir: &TempDir, argv: &[&str]) -> Running {
    Running::spawn(Command::new(argv[0]).args(&argv[1..]).process_group(0), dir.path())
}

/// A running process, which is killed when this is dropped.
pub struct Running {
    child: Child,
    dir: PathBuf,
}

impl Running {
    fn spawn(command: &mut Command, dir: &Path) -> Running {
        let output = |name| File::create(dir.join(name)).unwrap();
        command.stdin(Stdio::null()).stdout(output("stdout")).stderr(output("stderr"));
        Running { child: command.spawn().unwrap(), dir: dir.into() }
    }

    pub fn stdout(&self) -> String {
        fs::read_to_string(self.dir.join("stdout")).unwrap_or_default()
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.dir.join("stderr")).unwrap_or_default()
    }

    pub fn wait_for_line(&self, text: &str) -> String {
        let find = || self.stderr().lines().find(|line| line.contains(text)).map(str::to_string);
        wait_for(&format!("{text:?} in the log:\n{}", self.stderr()), LIMIT, find)
    }

    /// The pid of the process or, if it has its own namespaces, of PID 1 in them.
    pub fn pid(&self) -> i32 {
        let started = self.child.id() as i32;
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        wait_for("the process runs", LIMIT, || match name(started).trim() {
            "unshare" => children(started).first().map(|child| child.pid).filter(|pid| !["sh", "unshare"].contains(&name(*pid).trim())),
            "setpriv" | "" => None,
            _ => Some(started),
        })
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Sends any signal, including real-time signals.
    pub fn signal_number(&self, number: i32) {
        // SAFETY: kill takes two numbers and touches no memory.
        assert_eq!(unsafe { libc::kill(self.pid(), number) }, 0);
    }

    /// A path below the container's root, as the process sees it in its mount namespace.
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}/{name}", self.pid(), self.dir.display()))
    }

    /// Waits for the end. Returns the exit code as a shell reports it.
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let what = format!("the process ends; its output so far:\n{}", self.stderr());
        let status: ExitStatus = wait_for(&what, limit, || self.child.try_wait().unwrap());
        super::code(status)
    }

    pub fn still_runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- stderr of the process:\n{}---", self.stderr());
        }
    }
}

/// A new cgroup, as an engine creates for a container.
struct Cgroup {
    path: PathBuf,
    version: u8,
}

impl Cgroup {
    fn new() -> Cgroup {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let (root, version) = if unified { ("/sys/fs/cgroup", 2) } else { ("/sys/fs/cgroup/pids", 1) };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(root).join(format!("kind-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|cause| panic!("cannot create the cgroup {}: {cause}", path.display()));
        Cgroup { path, version }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A cgroup is busy until a moment after its processes were killed.
        let end = std::time::Instant::now() + LIMIT;
        while remove_cgroups(&self.path).is_err() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove_cgroups(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path())?;
    }
    fs::remove_dir(path)
}
