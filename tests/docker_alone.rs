//! `kind run` in an image without a cluster: Docker alone, here with a stand-in for dockerd.
// No reaper runs in this process, so std's own wait calls steal nothing.
#![allow(clippy::disallowed_methods)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use common::dockerd::{Dockerd, Fault};
use common::node::{Container, Running, FILES_PORT};
use common::{children, wait_for, LIMIT};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

const DOCKER_PORT: u16 = 2375;

/// Not a test: what the script `dockerd` of the tests below becomes.
#[test]
#[ignore = "the stand-in for dockerd, which the other tests start"]
fn the_stand_in_for_dockerd() {
    common::dockerd::run_if_asked();
}

/// The pid of the daemon as seen from here.
fn daemon(kind: &Running) -> i32 {
    wait_for("the daemon is a child of PID 1", LIMIT, || children(kind.pid()).first().map(|child| child.pid))
}

#[test]
fn docker_alone_is_started_and_ready_once_it_answers() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    dockerd.tell(Fault::Mute);
    let kind = container.start(&["run", "--debug", "--mtu", "1400"]);
    kind.wait_for_line("no cluster is baked into this image: starting Docker alone");
    let socket = container.root.join("var/run/docker.sock");
    assert_eq!(dockerd.wait_for_note("arguments"), format!("-H unix://{} -H fd:// --debug --mtu 1400", socket.display()));
    dockerd.wait_for_note("ping");
    assert_eq!(container.get("docker-ready").0, 404, "the ping is not answered yet");
    dockerd.mend(Fault::Mute);
    container.wait_for_status("docker-ready", 200);
    for name in ["kubernetes-ready", "config", "ca.crt", "client.key", "failed"] {
        assert_eq!(container.get(name).0, 404, "{name}");
    }
    let timeline = container.get("timeline").1;
    let milestones: Vec<&str> = timeline.lines().filter_map(|line| Some(line.split_once(' ')?.1)).collect();
    assert_eq!(milestones, ["dockerd", "docker-ready"], "{timeline}");
    assert!(timeline.lines().all(|line| line.split(' ').next().unwrap().parse::<f64>().is_ok()), "{timeline}");
}

/// The negative control of this file: a daemon that runs and answers with an error is not ready.
#[test]
fn a_daemon_that_answers_with_an_error_is_not_ready() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    dockerd.tell(Fault::Broken);
    let _kind = container.start(&["run"]);
    wait_for("it was asked often", LIMIT, || (dockerd.notes("ping").len() > 5).then_some(()));
    assert_eq!(container.get("docker-ready").0, 404);
    dockerd.mend(Fault::Broken);
    container.wait_for_status("docker-ready", 200);
}

/// A dockerd that is killed while it makes its default network has this of moby's own in its way for ever.
#[test]
fn a_network_that_is_only_half_made_does_not_keep_docker_from_starting() {
    let Some(container) = Container::new() else { return };
    Dockerd::install(&container);
    let networks = container.root.join("var/lib/docker/network/files");
    std::fs::create_dir_all(&networks).unwrap();
    std::fs::write(networks.join("local-kv.db"), "half").unwrap();
    let script = std::fs::read_to_string(container.root.join("bin/dockerd")).unwrap();
    let fails = "echo 'failed to start daemon: cannot create network 1 (docker0): conflicts with network 2 (docker0): networks have same bridge name' >&2; exit 1";
    let conflict = format!("[ ! -e {} ] || {{ {fails}; }}\n", networks.join("local-kv.db").display());
    container.root.script("bin/dockerd", &(conflict + script.trim_start_matches("#!/bin/sh\n")));
    let kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 200);
    kind.wait_for_line("a network was only half made");
    assert_eq!(std::fs::read_to_string(networks.join("local-kv.db.conflict")).unwrap(), "half");
}

/// It took the files of the one that runs, and the port being in use was all that it said.
#[test]
fn a_second_init_in_the_same_container_is_refused_and_touches_nothing() {
    let Some(container) = Container::new() else { return };
    Dockerd::install(&container);
    let mut first = container.start(&["run"]);
    container.wait_for_status("docker-ready", 200);
    let read = |name: &str| std::fs::read_to_string(container.root.join(name)).unwrap();
    let files = || ["var/kind/status.json", "var/kind/docker-ready", "var/log/kind/kind.log"].map(read);
    let before = files();
    for arguments in [&["run"][..], &["bake", "--bundle", "/nowhere"]] {
        let mut second = container.start(arguments);
        assert_eq!(second.wait(LIMIT), 1);
        assert!(second.stderr().contains("kind runs in this container already. `kind status`"), "{}", second.stderr());
        assert_eq!(files(), before, "{arguments:?}");
    }
    first.signal(Signal::SIGTERM);
    assert_eq!(first.wait(LIMIT), 0);
}

#[test]
fn a_volume_that_another_container_uses_is_refused_until_that_one_ends() {
    let (Some(one), Some(other)) = (Container::new(), Container::new()) else { return };
    let volume = one.root.join("volume");
    std::fs::create_dir(&volume).unwrap();
    let arguments = ["run", "--data-root", volume.to_str().unwrap()];
    for container in [&one, &other] {
        Dockerd::install(container);
    }
    let first = one.network.within(|| {
        let first = one.start(&arguments);
        one.wait_for_status("docker-ready", 200);
        first
    });
    let mut refused = other.start(&arguments);
    assert_eq!(refused.wait(LIMIT), 1);
    let said = refused.stderr();
    assert!(said.contains(&format!("{} is in use by another container", volume.display())), "{said}");
    // Its daemon lives on for a moment, and has not inherited the lock.
    first.signal(Signal::SIGKILL);
    let _next = other.start(&arguments);
    other.wait_for_status("docker-ready", 200);
}

#[test]
fn a_client_may_come_before_the_daemon_is_there() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    dockerd.tell(Fault::Held);
    let _kind = container.start(&["run"]);
    let mut client = wait_for("the port is open", LIMIT, || TcpStream::connect(("127.0.0.1", DOCKER_PORT)).ok());
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.write_all(b"hello\n").unwrap();
    assert!(dockerd.notes("pid").is_empty(), "the daemon has not begun");
    dockerd.mend(Fault::Held);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, format!("answered by {}\n", dockerd.wait_for_note("pid")));
    assert_eq!((dockerd.wait_for_note("LISTEN_FDS").as_str(), dockerd.wait_for_note("LISTEN_PID")), ("1", dockerd.wait_for_note("pid")));
}

/// Silent before: a client connected, and waited for a daemon that nobody started any more.
#[test]
fn a_client_is_refused_once_the_daemon_is_given_up() {
    let Some(container) = Container::new() else { return };
    container.root.script("bin/dockerd", "exit 3");
    let _kind = container.start(&["run"]);
    wait_for("the port is open", LIMIT, || TcpStream::connect(("127.0.0.1", DOCKER_PORT)).ok());
    container.wait_for_status("failed", 200);
    let address = (std::net::Ipv4Addr::LOCALHOST, DOCKER_PORT).into();
    wait_for("the port is closed", LIMIT, || {
        let refused = TcpStream::connect_timeout(&address, Duration::from_millis(100)).err()?;
        (refused.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
    });
}

#[test]
fn the_daemon_begins_with_a_clean_mask_and_the_users_environment() {
    let Some(mut container) = Container::new() else { return };
    container.set("KIND_TEST", "handed on");
    let dockerd = Dockerd::install(&container);
    let _kind = container.start(&["run", "dockerd"]);
    assert_eq!(dockerd.wait_for_note("KIND_TEST"), "handed on");
    assert_eq!(dockerd.signal_masks(), [0, 0]);
}

#[test]
fn what_an_earlier_start_left_is_not_believed() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    dockerd.tell(Fault::Mute);
    let files = ["docker-ready", "kubernetes-ready", "config", "ca.crt", "client.crt", "client.key", "failed", "timeline"];
    files.iter().for_each(|name| drop(container.root.write(&format!("var/kind/{name}"), "of an earlier start\n")));
    container.root.write("var/log/kind/dockerd.log", "of an earlier start\n");
    container.root.write("var/run/docker.sock", "no socket");
    let _kind = container.start(&["run"]);
    for name in files {
        assert_eq!(container.get(name).0, 404, "{name}");
    }
    dockerd.wait_for_note("ping");
    assert!(!container.root.read("var/log/kind/dockerd.log").contains("earlier"));
    dockerd.mend(Fault::Mute);
    container.wait_for_status("docker-ready", 200);
}

/// A socket of another engine, which notes whatever it is asked.
fn other_engine(path: &std::path::Path) -> std::sync::mpsc::Receiver<String> {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(path).unwrap();
    let (sender, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = [0; 512];
            let length = client.read(&mut request).unwrap_or(0);
            let _ = sender.send(String::from_utf8_lossy(&request[..length]).into_owned());
            let _ = client.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nOK");
        }
    });
    asked
}

/// `-v /var/run/docker.sock:/var/run/docker.sock`, which a runner may give to every container of a job.
#[test]
fn a_socket_of_another_engine_is_refused_before_it_is_asked_anything() {
    for is_mounted in [true, false] {
        let Some(mut container) = Container::new() else { return };
        Dockerd::install(&container);
        let asked = if is_mounted {
            container.before = "mkdir -p $KIND_ROOT/var/run && echo >$KIND_ROOT/var/run/docker.sock && \
                                mount --bind $KIND_ROOT/host/docker.sock $KIND_ROOT/var/run/docker.sock;"
                .into();
            other_engine(&container.root.join("host/docker.sock"))
        } else {
            // A whole directory of the host's has it too.
            other_engine(&container.root.join("var/run/docker.sock"))
        };
        let mut kind = container.start(&["run"]);
        assert_eq!(kind.wait(LIMIT), 1, "mounted: {is_mounted}");
        let errors: Vec<String> = kind.stderr().lines().filter(|line| line.starts_with("ERROR")).map(str::to_string).collect();
        assert!(errors.len() == 1 && errors[0].contains("docker.sock belongs to another Docker daemon"), "{errors:?}");
        let asked: Vec<String> = asked.try_iter().filter(|request| !request.is_empty()).collect();
        assert!(asked.is_empty() && !container.root.join("var/kind/docker-ready").exists(), "{asked:?}");
    }
}

/// What a kill leaves is a file without anybody behind it.
#[test]
fn a_socket_that_nobody_serves_any_more_is_replaced() {
    let Some(container) = Container::new() else { return };
    Dockerd::install(&container);
    let path = container.root.join("var/run/docker.sock");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    let _kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 200);
}

#[test]
fn a_daemon_that_dies_is_started_again_and_not_ready_meanwhile() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    let kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 200);
    // The next one begins only when it is allowed to.
    dockerd.tell(Fault::Held);
    kill(Pid::from_raw(daemon(&kind)), Signal::SIGKILL).unwrap();
    container.wait_for_status("docker-ready", 404);
    kind.wait_for_line("was killed by SIGKILL; starting it again in 0.2 s");
    dockerd.mend(Fault::Held);
    container.wait_for_status("docker-ready", 200);
    assert_eq!(dockerd.notes("pid").len(), 2);
    assert_eq!(container.get("failed").0, 404);
    // The port survived it too.
    assert_eq!(common::raw(DOCKER_PORT, "hello\n").unwrap(), format!("answered by {}\n", dockerd.wait_for_note("pid")));
}

#[test]
fn a_daemon_that_keeps_dying_ends_in_failed_with_its_own_words() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    dockerd.tell(Fault::Dying);
    let mut kind = container.start(&["run"]);
    container.wait_for_status("failed", 200);
    let starts: Vec<u64> = dockerd.notes("started").iter().map(|time| time.parse().unwrap()).collect();
    let pauses: Vec<u64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.len() >= 4, "{pauses:?}");
    // A busy machine adds to a pause, and takes nothing away; the clock's milliseconds are rounded.
    assert!(pauses.iter().enumerate().all(|(number, pause)| pause + 1 >= 200 << number), "each is twice the one before: {pauses:?}");
    for said in [container.get("failed").1, kind.stderr()] {
        assert!(said.contains("dockerd ended with status 3") && said.contains("the stand-in is out of order"), "{said}");
    }
    assert_eq!((container.get("docker-ready").0, container.get("kubernetes-ready").0), (404, 404));
    assert!(kind.still_runs(), "a client that waits must be able to read why");
    kind.signal(Signal::SIGTERM);
    assert_eq!(kind.wait(LIMIT), 3, "the status is the daemon's");
}

#[test]
fn a_daemon_that_cannot_be_started_is_named() {
    let Some(container) = Container::new() else { return };
    container.root.script("bin/dockerd", "");
    container.root.write("bin/dockerd", "#!/nonexistent\n");
    let kind = container.start(&["run"]);
    let line = kind.wait_for_line("cannot run dockerd");
    assert!(line.contains("No such file"), "{line}");
}

#[test]
fn an_image_without_dockerd_is_one_clear_error() {
    let Some(container) = Container::new() else { return };
    std::fs::remove_file(container.root.join("bin/dockerd")).unwrap();
    let mut kind = container.start(&["run"]);
    assert_eq!(kind.wait(LIMIT), 127);
    let errors: Vec<String> = kind.stderr().lines().filter(|line| line.starts_with("ERROR")).map(str::to_string).collect();
    assert!(errors.len() == 1 && errors[0].contains("neither a cluster nor dockerd"), "{errors:?}");
}

/// It ends with status 0, and nothing had to be killed for it, whatever that takes on a busy machine.
fn ends_by_itself(kind: &mut Running) {
    assert_eq!(kind.wait(LIMIT), 0);
    assert!(!kind.stderr().contains("killing"), "{}", kind.stderr());
}

#[test]
fn sigterm_and_sigint_end_it_soon_with_status_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let Some(container) = Container::new() else { return };
        let dockerd = Dockerd::install(&container);
        let mut kind = container.start(&["run"]);
        container.wait_for_status("docker-ready", 200);
        kind.signal(signal);
        ends_by_itself(&mut kind);
        assert_eq!(dockerd.notes("signal"), ["SIGTERM"], "after {signal}");
        assert!(!container.root.join("var/kind/docker-ready").exists());
        assert_eq!(container.get_now("docker-ready"), None, "the file server is gone");
    }
}

#[test]
fn sigterm_while_the_daemon_is_still_starting_ends_it_too() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    dockerd.tell(Fault::Mute);
    let mut kind = container.start(&["run"]);
    dockerd.wait_for_note("ping");
    kind.signal(Signal::SIGTERM);
    ends_by_itself(&mut kind);
    assert_eq!(dockerd.notes("signal"), ["SIGTERM"]);
}

#[test]
fn sigterm_in_the_pause_between_two_starts_ends_it_too() {
    let Some(container) = Container::new() else { return };
    Dockerd::install(&container).tell(Fault::Dying);
    let mut kind = container.start(&["run"]);
    kind.wait_for_line("starting it again in 0.8 s");
    kind.signal(Signal::SIGTERM);
    ends_by_itself(&mut kind);
}

#[test]
fn a_daemon_that_ignores_sigterm_is_killed_in_time() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    dockerd.tell(Fault::Stubborn);
    let mut kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 200);
    kind.signal(Signal::SIGTERM);
    assert_eq!(kind.wait(Duration::from_secs(9)), 0, "Docker kills a container 10 s after docker stop");
    assert!(kind.stderr().contains("[dockerd]") && kind.stderr().contains("killing it"), "{}", kind.stderr());
}

#[test]
fn a_second_sigterm_makes_it_hurry() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    dockerd.tell(Fault::Stubborn);
    let mut kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 200);
    kind.signal(Signal::SIGTERM);
    dockerd.wait_for_note("signal");
    kind.signal(Signal::SIGTERM);
    assert_eq!(kind.wait(LIMIT), 0);
    // Without the second one it would have waited for 2 s.
    let said = kind.stderr();
    assert!(said.contains("second request: killing everything now") && !said.contains("still running after 2.0 s"), "{said}");
}

#[test]
fn the_daemons_own_signals_are_handed_on() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    let mut kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 200);
    for signal in [Signal::SIGHUP, Signal::SIGUSR1] {
        kind.signal(signal);
        wait_for(&format!("the daemon gets {signal}"), LIMIT, || dockerd.notes("signal").contains(&signal.to_string()).then_some(()));
    }
    // And what is nobody's ends nothing.
    for signal in [Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGALRM, Signal::SIGTSTP] {
        kind.signal(signal);
    }
    assert_eq!(container.get("docker-ready").0, 200);
    assert!(kind.still_runs());
}

/// Its script would have dockerd sleep for 16 s, and wait for keys of 4096 bits.
#[test]
fn dinds_own_entrypoint_is_not_needed() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    container.root.script("bin/dockerd-entrypoint.sh", "echo used >\"$KIND_ROOT/used\"; exit 1");
    let _kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 200);
    assert_eq!((dockerd.wait_for_note("LISTEN_FDS").as_str(), container.root.read("used").as_str()), ("1", ""));
}

#[test]
fn a_taken_docker_port_is_one_clear_error() {
    let Some(mut container) = Container::new() else { return };
    container.set("KIND_LISTEN", &format!("127.0.0.1:{DOCKER_PORT}"));
    let mut kind = container.start(&["run"]);
    assert_eq!(kind.wait(LIMIT), 1);
    let errors: Vec<String> = kind.stderr().lines().filter(|line| line.starts_with("ERROR")).map(str::to_string).collect();
    assert!(errors.len() == 1 && errors[0].contains("2375") && errors[0].contains("--network=host"), "{errors:?}");
}

#[test]
fn a_log_that_nobody_reads_any_more_does_not_end_it() {
    let Some(container) = Container::new() else { return };
    Dockerd::install(&container);
    let kind = container.start_unheard(&["run"]);
    container.wait_for_status("docker-ready", 200);
    kind.signal(Signal::SIGHUP);
    assert_eq!(common::request(FILES_PORT, "GET", "/docker-ready").unwrap().0, 200);
}
