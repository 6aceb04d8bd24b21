//! The init of a node, with a stand-in for dockerd: how daemons are started, signals, and a full or read-only disk.
// No reaper runs in this process, so std's own wait calls are safe.
#![allow(clippy::disallowed_methods)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::dockerd::{Dockerd, Fault};
use common::node::{without_namespaces, Container, Running};
use common::{children, namespaces, process, signal_masks, wait_for, Namespaces, TempDir, KIND, LIMIT};
use nix::sys::signal::Signal;

/// Not a test: the `dockerd` script of the tests below execs it.
#[test]
#[ignore = "the stand-in for dockerd, started by other tests"]
fn the_stand_in_for_dockerd() {
    common::dockerd::run_if_asked();
}

/// What a process has inherited, from /proc.
struct Inherited {
    masks: Vec<u64>,
    descriptors: BTreeMap<u32, String>,
    directory: String,
}

fn inherited(pid: i32) -> Inherited {
    let link = |path: &Path| fs::read_link(path).unwrap().to_string_lossy().into_owned();
    let proc = Path::new("/proc").join(pid.to_string());
    let open = fs::read_dir(proc.join("fd")).unwrap().flatten();
    Inherited {
        masks: signal_masks(&fs::read_to_string(proc.join("status")).unwrap()),
        descriptors: open.map(|entry| (entry.file_name().to_str().unwrap().parse().unwrap(), link(&entry.path()))).collect(),
        directory: link(&proc.join("cwd")),
    }
}

/// Shell code that sets what must not be inherited: ignored and blocked signals, open descriptors, a directory.
const DIRTY: &str = "cd /proc; trap '' USR1 HUP TRAP 40; exec 7</dev/null 8>/dev/null; \
                     exec env --block-signal=USR2 --block-signal=TERM \"$0\" \"$@\";";

/// The daemon, once it sleeps: before that, its loader has files open.
fn sleeper(parent: &Running) -> i32 {
    let sleeps = |child: &common::Process| child.name == "sleep" && child.state == 'S';
    let find = || children(parent.pid()).into_iter().find(sleeps).map(|child| child.pid);
    wait_for("the daemon runs", LIMIT, find)
}

#[test]
fn a_daemon_inherits_nothing_from_whoever_started_the_init() {
    let Some(mut container) = Container::new() else { return };
    container.before = DIRTY.into();
    let kind = container.start(&["run"]);
    let found = inherited(sleeper(&kind));
    assert!(found.masks == [0, 0], "{:x?}", found.masks);
    assert_eq!(found.directory, "/");
    let log = container.root.join("var/log/kind/dockerd.log").display().to_string();
    let of = |number: u32| found.descriptors.get(&number).map(String::as_str).unwrap_or_default();
    assert_eq!((of(0), of(1), of(2)), ("/dev/null", log.as_str(), log.as_str()));
    assert!(of(3).starts_with("socket:") && found.descriptors.len() == 4, "{:?}", found.descriptors);
}

/// The negative control of the test above: without our binary in between, everything is inherited.
#[test]
fn without_the_init_everything_is_inherited() {
    let Some(mut container) = Container::new() else { return };
    container.before = DIRTY.replace("\"$0\" \"$@\"", "sleep 1000");
    let sleep = container.start(&["run"]);
    wait_for("the control runs", LIMIT, || process(sleep.pid()).filter(|process| process.name == "sleep" && process.state == 'S'));
    let found = inherited(sleep.pid());
    assert!(found.masks.iter().all(|mask| *mask != 0), "{:x?}", found.masks);
    assert!(found.directory == "/proc" && found.descriptors.contains_key(&7), "{} {:?}", found.directory, found.descriptors);
}

/// As a rootless engine, or one with userns-remap, starts a privileged container.
#[test]
fn an_engine_that_is_not_root_is_refused_at_once() {
    let dir = TempDir::new();
    // As root too, so that the users are others than the machine's.
    let unshare = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--mount", "--mount-proc", KIND, "run"];
    let works = std::process::Command::new("unshare").args(["--user", "--map-root-user", "true"]).status();
    if namespaces(Namespaces::User).is_none() || !works.is_ok_and(|status| status.success()) {
        return;
    }
    let mut kind = without_namespaces(&dir, &unshare);
    assert_eq!(kind.wait(LIMIT), 1);
    let said = kind.stderr();
    assert!(said.lines().count() == 1 && said.contains("rootless") && said.contains("--userns=host"), "{said}");
}

/// The numbers of the signals that stop a node in order.
fn stopping() -> [i32; 5] {
    [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGPWR, libc::SIGRTMIN() + 3]
}

#[test]
fn other_signals_neither_end_nor_suspend_a_node() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    let mut kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 200);
    let others = (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal) && !stopping().contains(signal));
    for signal in others {
        kind.signal_number(signal);
        assert_ne!(process(kind.pid()).unwrap().state, 'T', "signal {signal}");
        assert_eq!(container.get("docker-ready").0, 200, "signal {signal}");
        assert!(kind.still_runs(), "signal {signal}");
    }
    // Exactly these are forwarded to dockerd.
    wait_for("the last one", LIMIT, || (dockerd.notes("signal").len() >= 2).then_some(()));
    assert_eq!(dockerd.notes("signal"), ["SIGHUP", "SIGUSR1"]);
}

#[test]
fn each_stopping_signal_ends_a_node_with_status_0() {
    for signal in stopping() {
        let Some(container) = Container::new() else { return };
        let dockerd = Dockerd::install(&container);
        let mut kind = container.start(&["run"]);
        container.wait_for_status("docker-ready", 200);
        kind.signal_number(signal);
        assert_eq!(kind.wait(LIMIT), 0, "signal {signal}");
        assert_eq!(dockerd.notes("signal"), ["SIGTERM"], "signal {signal}");
    }
}

#[test]
fn a_daemon_that_cannot_be_run_gives_a_shells_exit_status() {
    let Some(container) = Container::new() else { return };
    let program = container.root.join("bin/dockerd");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
    let mut kind = container.start(&["run"]);
    container.wait_for_status("failed", 200);
    assert!(container.get("failed").1.contains("cannot run dockerd"), "{}", container.get("failed").1);
    kind.signal(Signal::SIGTERM);
    assert_eq!(kind.wait(LIMIT), 126);
}

#[test]
fn a_state_directory_that_is_read_only_is_one_clear_error() {
    let Some(mut container) = Container::new() else { return };
    let state = container.root.join("var/kind");
    fs::create_dir_all(&state).unwrap();
    container.before = format!("mount --bind {0} {0}; mount -o remount,bind,ro {0};", state.display());
    let mut kind = container.start(&["run"]);
    assert_eq!(kind.wait(LIMIT), 1);
    let said = kind.stderr();
    assert!(said.lines().count() == 1 && said.contains("var/kind") && said.contains("Read-only"), "{said}");
}

#[test]
fn a_full_disk_is_logged_and_ends_nothing() {
    let Some(mut container) = Container::new() else { return };
    let state = container.root.join("var/kind");
    fs::create_dir_all(&state).unwrap();
    container.before = format!("mount -t tmpfs -o size=64k tmpfs {};", state.display());
    let dockerd = Dockerd::install(&container);
    dockerd.tell(Fault::Held);
    let mut kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 404);
    kind.wait_for_line("starting Docker alone");
    let filler = kind.path("var/kind/filler");
    assert!(fs::write(&filler, [0; 65536]).is_err(), "the disk is full");
    dockerd.mend(Fault::Held);
    let line = kind.wait_for_line("timeline: No space left on device");
    assert!(line.starts_with("ERROR"), "{line}");
    assert!(kind.still_runs());
    fs::remove_file(&filler).unwrap();
    wait_for("the timeline is written", LIMIT, || container.get("timeline").1.contains("docker-ready").then_some(()));
}

#[test]
fn a_disk_that_was_read_only_for_a_while_has_the_current_states_afterwards() {
    let Some(mut container) = Container::new() else { return };
    let state = container.root.join("var/kind");
    fs::create_dir_all(&state).unwrap();
    container.before = format!("mount -t tmpfs tmpfs {};", state.display());
    let dockerd = Dockerd::install(&container);
    dockerd.tell(Fault::Held);
    let kind = container.start(&["run"]);
    kind.wait_for_line("starting Docker alone");
    let remount = |how: &str| {
        let mut command = std::process::Command::new("nsenter");
        command.args(["--target", &kind.pid().to_string(), "--mount", "mount", "-o", &format!("remount,{how}")]).arg(&state);
        assert!(command.status().unwrap().success());
    };
    wait_for("/waiting is served", LIMIT, || (container.get("waiting").0 == 200).then_some(()));
    remount("ro");
    dockerd.mend(Fault::Held);
    kind.wait_for_line("Read-only file system");
    assert_eq!((container.get("waiting").0, container.get("docker-ready").0), (200, 404), "no file contradicts one that cannot be removed");
    remount("rw");
    container.wait_for_status("docker-ready", 200);
    assert_eq!(container.get("waiting").0, 404);
}
