//! `wait-for-kind.sh` as jobs run it: in busybox's shell and in others, with curl, wget, busybox's wget or bash.
#![allow(clippy::disallowed_methods, reason = "the tests have no reaper of their own that std's waiting could race")]

mod common;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::network::{ip, Network};
use common::server::Server;
use common::{namespaces, wait_for, Namespaces, TempDir, LIMIT};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/wait-for-kind.sh");

/// A job's image: nothing but a shell, the tools of busybox or coreutils, and one client.
struct Job {
    home: TempDir,
    shell: &'static [&'static str],
}

/// Every kind of image that a job may run in.
const KINDS: [(&str, &str); 5] = [("busybox", "wget"), ("busybox", "curl"), ("system", "wget"), ("system", "curl"), ("system", "bash")];

impl Job {
    fn new(tools: &str, client: &str) -> Job {
        let home = TempDir::new();
        std::fs::create_dir(home.join("bin")).unwrap();
        let busybox = find("busybox");
        for tool in ["cat", "date", "mkdir", "sleep"] {
            let program = if tools == "busybox" { busybox.clone() } else { find(tool) };
            symlink(program, home.join("bin").join(tool)).unwrap();
        }
        if !client.is_empty() {
            let program = if (tools, client) == ("busybox", "wget") { busybox.clone() } else { find(client) };
            symlink(program, home.join("bin").join(client)).unwrap();
        }
        Job { home, shell: if tools == "busybox" { &["busybox", "sh"] } else { &["sh"] } }
    }

    fn command(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new(find(self.shell[0]));
        command.args(&self.shell[1..]).arg(SCRIPT).args(arguments).current_dir(self.home.path());
        command.env_clear().env("PATH", self.home.join("bin")).envs(settings.iter().copied());
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str], settings: &[(&str, &str)]) -> (i32, String) {
        outcome(&self.command(arguments, settings).output().unwrap())
    }
}

fn outcome(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

fn find(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').map(|directory| Path::new(directory).join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("these tests need the program {name}: apt-get install {name}"))
}

/// A `kind` whose states come one after the other.
fn kind(states: &[&str]) -> (Server, [String; 2]) {
    let server = Server::start();
    for state in states {
        server.publish(&format!("/{state}"), b"ready\n");
    }
    let settings = ["127.0.0.1".to_string(), server.port.to_string()];
    (server, settings)
}

fn settings(of: &[String; 2]) -> [(&str, &str); 2] {
    [("KIND_HOST", &of[0]), ("KIND_PORT", &of[1])]
}

#[test]
fn it_waits_until_the_state_is_there_in_every_kind_of_image() {
    for (tools, client) in KINDS {
        let (server, address) = kind(&["docker-ready"]);
        let job = Job::new(tools, client);
        let (code, said) = job.run(&["docker"], &settings(&address));
        assert_eq!((code, said.as_str()), (0, "wait-for-kind: docker is ready\n"), "{tools} {client}");

        let child = job.command(&[], &settings(&address)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the third question", LIMIT, || (server.requests("/kubernetes-ready").len() >= 3).then_some(()));
        server.publish("/kubernetes-ready", b"ready\n");
        assert_eq!(outcome(&child.wait_with_output().unwrap()), (0, "wait-for-kind: kubernetes is ready\n".into()), "{tools} {client}");
    }
}

/// Where each question costs a process or more, on the cores that boot the cluster.
#[test]
fn a_server_that_holds_requests_is_asked_once_more_and_waited_for() {
    for (tools, client) in KINDS {
        let (server, address) = kind(&[]);
        server.hold();
        let job = Job::new(tools, client);
        let child =
            job.command(&["--kubeconfig", "config"], &settings(&address)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the second question", LIMIT, || (server.requests("/kubernetes-ready").len() == 2).then_some(()));
        thread::sleep(Duration::from_secs(2));
        server.publish("/kubernetes-ready", b"ready\n");
        wait_for("it asks for the kubeconfig", LIMIT, || (!server.requests("/config").is_empty()).then_some(()));
        thread::sleep(Duration::from_secs(1));
        server.publish("/config", b"apiVersion: v1\n");
        let (code, said) = outcome(&child.wait_with_output().unwrap());
        assert_eq!((code, job.home.read("config").as_str()), (0, "apiVersion: v1\n"), "{tools} {client}: {said}");
        let asked = ["/kubernetes-ready", "/failed", "/config"].map(|path| server.requests(path).len());
        assert_eq!(asked, [2, 1, 1], "{tools} {client}");

        // And a failure meanwhile is told at once.
        let (server, address) = kind(&[]);
        server.hold();
        let child = job.command(&[], &settings(&address)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the second question", LIMIT, || (server.requests("/kubernetes-ready").len() == 2).then_some(()));
        server.publish("/failed", b"out of order\n");
        let (code, said) = outcome(&child.wait_with_output().unwrap());
        assert!(code == 1 && said.contains("kind has failed: out of order"), "{tools} {client}: {said}");
    }
}

#[test]
fn it_asks_for_a_reset_and_waits_for_what_comes_after_it() {
    for (tools, client) in KINDS {
        let (server, address) = kind(&["waiting"]);
        let job = Job::new(tools, client);
        let spawn = || job.command(&["--reset"], &settings(&address)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let child = spawn();
        wait_for("it waits for the cluster first", LIMIT, || (server.requests("/kubernetes-ready").len() >= 2).then_some(()));
        assert!(server.requests("/reset").is_empty(), "{tools} {client}");
        server.publish("/kubernetes-ready", b"ready\n");
        let (code, said) = outcome(&child.wait_with_output().unwrap());
        assert!(code == 1 && said.contains("does not reset its cluster"), "{tools} {client}: {said}");

        server.publish("/reset", b"");
        let child = spawn();
        wait_for("the reset", LIMIT, || (server.requests("/reset").len() == 2).then_some(()));
        let asked = server.requests("/kubernetes-ready").len();
        wait_for("the question after the reset", LIMIT, || (server.requests("/kubernetes-ready").len() > asked).then_some(()));
        thread::sleep(Duration::from_millis(300));
        server.publish("/kubernetes-ready", b"ready\n");
        assert_eq!(outcome(&child.wait_with_output().unwrap()), (0, "wait-for-kind: kubernetes is ready\n".into()), "{tools} {client}");
        // One that has failed is not waited for.
        server.publish("/failed", b"out of order\n");
        let (code, said) = job.run(&["--reset"], &settings(&address));
        assert!(code == 1 && said.contains("kind has failed: out of order"), "{tools} {client}: {said}");
        assert_eq!(server.requests("/reset").len(), 3, "{tools} {client}");
    }
}

#[test]
fn it_ends_in_time_beside_a_server_that_holds_requests() {
    for (tools, client) in KINDS {
        let (server, address) = kind(&["timeline"]);
        server.hold();
        let began = Instant::now();
        let (code, said) = Job::new(tools, client).run(&["--timeout", "4"], &settings(&address));
        assert!(code == 3 && said.contains("no kubernetes-ready after 4 s. Done so far"), "{tools} {client}: {said}");
        assert!(began.elapsed() < Duration::from_secs(4) + LIMIT / 2, "{tools} {client}: {:?}", began.elapsed());
    }
}

/// As where a firewall drops what is not allowed: no answer, not even a refusal.
#[test]
fn it_ends_in_time_where_packets_are_dropped() {
    if namespaces(Namespaces::Root).is_none() {
        return;
    }
    let _network = Network::enter_new();
    // Nobody at the other end has that address.
    ip("link add here type veth peer name there");
    ip("address add 10.9.0.1/24 dev here");
    ip("link set here up");
    ip("link set there up");
    ip("neighbor add 10.9.0.2 lladdr 02:00:00:00:00:02 dev here");
    for (tools, client) in KINDS {
        let began = Instant::now();
        let (code, said) = Job::new(tools, client).run(&["--timeout", "6"], &[("KIND_HOST", "10.9.0.2")]);
        assert_eq!(code, 4, "{tools} {client}: {said}");
        assert!(said.contains("nothing answers at http://10.9.0.2:10080 after 6 s"), "{tools} {client}: {said}");
        assert!(began.elapsed() < Duration::from_secs(6) + LIMIT / 2, "{tools} {client}: {:?}", began.elapsed());
    }
}

#[test]
fn what_a_link_or_a_service_has_set_is_ignored() {
    if namespaces(Namespaces::Root).is_none() {
        return;
    }
    // Where nobody else listens on the default port, such as the cluster of the README's first command.
    let _network = Network::enter_new();
    for (tools, client) in KINDS {
        let (_server, address) = kind(&["docker-ready"]);
        let job = Job::new(tools, client);
        // The host of a Service named kind, and one that listens where kind does.
        let linked = [("KIND_PORT", "tcp://10.0.0.1:2375"), ("KIND_API_PORT", "tcp://10.0.0.1:8443"), ("KIND_HOST", &address[0])];
        let (code, said) = job.run(&["docker", "--timeout", "0"], &linked);
        assert_eq!(code, 4, "{said}");
        for text in ["KIND_PORT=tcp://10.0.0.1:2375 comes from", "KIND_API_PORT=tcp://10.0.0.1:8443 comes from", "http://127.0.0.1:10080"] {
            assert!(said.contains(text), "{tools} {client}: {said}");
        }
    }
}

#[test]
fn an_ipv6_address_is_written_as_urls_have_it() {
    let job = Job::new("system", "curl");
    for (setting, url) in [
        (("KIND_HOST", "::2"), "http://[::2]:10080"),
        (("KIND_HOST", "[::2]"), "http://[::2]:10080"),
        (("DOCKER_HOST", "tcp://[::2]:2375"), "http://[::2]:10080"),
        (("DOCKER_HOST", "tcp://[::2]"), "http://[::2]:10080"),
    ] {
        let (code, said) = job.run(&["--timeout", "0"], &[setting]);
        assert!(code == 4 && said.contains(url), "{setting:?}: {said}");
    }
}

#[test]
fn it_ends_early_with_the_reason_when_kind_has_failed() {
    for (tools, client) in KINDS {
        let (server, address) = kind(&[]);
        server.publish("/failed", b"dockerd ended with status 1\nand its log\n");
        let (code, said) = Job::new(tools, client).run(&[], &settings(&address));
        assert_eq!(code, 1, "{tools} {client}: {said}");
        assert!(said.contains("kind has failed: dockerd ended with status 1\nand its log\n"), "{tools} {client}: {said}");
    }
}

#[test]
fn when_the_time_is_over_it_says_what_was_reached() {
    let (server, address) = kind(&["docker-ready"]);
    server.publish("/timeline", b"0.041 store\n0.105 containerd\n");
    server.publish("/waiting", b"kube-system/etcd-kind: not there\n");
    let job = Job::new("busybox", "wget");
    let (code, said) = job.run(&["--timeout", "0"], &settings(&address));
    assert_eq!(code, 3, "{said}");
    assert!(
        said.contains("no kubernetes-ready after 0 s") && said.contains("0.105 containerd") && said.contains("etcd-kind: not there"),
        "{said}"
    );
    let (code, said) = job.run(&["docker", "--timeout", "0"], &settings(&address));
    assert_eq!(code, 0, "what is there needs no time: {said}");
}

/// As where kind is asked on port 10081 under a name that is not its own.
#[test]
fn where_something_else_answers_it_does_not_say_that_nobody_does() {
    for (tools, client) in KINDS {
        let (_server, address) = kind(&[]);
        let (code, said) = Job::new(tools, client).run(&["--timeout", "1"], &settings(&address));
        assert!(code == 4 && said.contains("answers, but not as kind does for 127.0.0.1"), "{tools} {client}: {code} {said}");
    }
}

#[test]
fn where_nobody_answers_it_says_where_it_looked() {
    for (tools, client) in KINDS {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let (code, said) = Job::new(tools, client).run(&[], &[("KIND_PORT", &port), ("KIND_TIMEOUT", "1")]);
        assert_eq!(code, 4, "{tools} {client}: {said}");
        assert!(said.contains(&format!("nothing answers at http://localhost:{port} after 1 s")), "{tools} {client}: {said}");
    }
}

#[test]
fn the_host_of_docker_is_the_default() {
    let (_server, address) = kind(&["docker-ready"]);
    let job = Job::new("busybox", "wget");
    let (code, said) = job.run(&["docker", "--timeout", "0"], &[("DOCKER_HOST", "tcp://127.0.0.1:2375"), ("KIND_PORT", &address[1])]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = job.run(&["docker", "--timeout", "0"], &[("DOCKER_HOST", "tcp://127.0.0.2"), ("KIND_PORT", "9")]);
    assert_eq!(code, 4);
    assert!(said.contains("http://127.0.0.2:9"), "{said}");
}

#[test]
fn it_writes_a_kubeconfig_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    for (tools, client) in KINDS {
        let (server, address) = kind(&["docker-ready"]);
        let job = Job::new(tools, client);
        let mut command = job.command(&["docker", "--kubeconfig", "new/folder/config"], &settings(&address));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It comes after Docker.
        wait_for("it asks for the kubeconfig", LIMIT, || (!server.requests("/config").is_empty()).then_some(()));
        thread::sleep(Duration::from_millis(10));
        server.publish("/config", b"apiVersion: v1\nkind: Config\n");
        let (code, said) = outcome(&child.wait_with_output().unwrap());
        assert_eq!(code, 0, "{tools} {client}: {said}");
        assert_eq!(job.home.read("new/folder/config"), "apiVersion: v1\nkind: Config\n");
        let mode = std::fs::metadata(job.home.join("new/folder/config")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn the_kubeconfig_is_asked_for_with_the_published_port_and_may_lie_at_the_root() {
    for (tools, client) in KINDS {
        let (server, address) = kind(&["kubernetes-ready"]);
        server.publish("/config?port=18443", b"apiVersion: v1\n\nkind: Config\n");
        server.publish("/config?port=18443&name=staging", b"staging\n");
        server.publish("/config?name=staging", b"staging on 8443\n");
        let job = Job::new(tools, client);
        let [host, port] = settings(&address);
        // A path without a folder, and one whose folder is the root.
        let root = format!("/kind-test-{}", std::process::id());
        for file in ["config", &root] {
            let (code, said) = job.run(&["--kubeconfig", file], &[host, port, ("KIND_API_PORT", "18443")]);
            let written = std::fs::read_to_string(job.home.path().join(file));
            let _ = std::fs::remove_file(&root);
            if file == root && !nix::unistd::geteuid().is_root() {
                continue;
            }
            assert_eq!((code, written.ok().as_deref()), (0, Some("apiVersion: v1\n\nkind: Config\n")), "{tools} {client}: {said}");
        }
        for (more, written) in [(&[("KIND_API_PORT", "18443")][..], "staging\n"), (&[], "staging on 8443\n")] {
            let (code, said) = job.run(&["--kubeconfig", "config", "--name", "staging"], &[&[host, port], more].concat());
            assert_eq!((code, job.home.read("config").as_str()), (0, written), "{tools} {client}: {said}");
        }
    }
}

/// With every client, since what comes is no text.
#[test]
fn it_writes_the_logs_into_a_directory() {
    let source = TempDir::new();
    source.write("kind.log", "it works\n");
    let archive = Command::new("tar").args(["-C", &source.path().to_string_lossy(), "-czf", "-", "."]).output().unwrap().stdout;
    for (tools, client) in KINDS {
        let (server, address) = kind(&["status.json"]);
        let job = Job::new(tools, client);
        symlink(if tools == "busybox" { find("busybox") } else { find("rm") }, job.home.join("bin").join("rm")).unwrap();
        let logs = |settings: &[(&str, &str)]| job.run(&["--logs", "new/logs"], settings);
        let (code, said) = logs(&[("KIND_PORT", "9"), ("KIND_TIMEOUT", "1")]);
        assert!(code == 4 && said.contains("nothing answers at http://localhost:9"), "{tools} {client}: {code} {said}");
        // As while another client has them collected.
        let (code, said) = logs(&[&settings(&address)[..], &[("KIND_TIMEOUT", "1")]].concat());
        assert!(code == 3 && said.contains("no logs after 1 s"), "{tools} {client}: {code} {said}");
        let (_older, older) = kind(&["timeline"]);
        let (code, said) = logs(&settings(&older));
        assert!(code == 1 && said.contains("there are no logs at"), "{tools} {client}: {code} {said}");

        server.publish("/logs.tar.gz", &archive);
        let (code, said) = logs(&settings(&address));
        assert_eq!((code, said.as_str()), (0, "wait-for-kind: the logs are in new/logs\n"), "{tools} {client}");
        assert_eq!(std::fs::read(job.home.join("new/logs/logs.tar.gz")).unwrap(), archive, "where there is no tar: {tools} {client}");
        for tool in ["tar", "gzip"] {
            symlink(if tools == "busybox" { find("busybox") } else { find(tool) }, job.home.join("bin").join(tool)).unwrap();
        }
        let (code, said) = logs(&settings(&address));
        assert_eq!((code, job.home.read("new/logs/kind.log").as_str()), (0, "it works\n"), "{tools} {client}: {said}");
        assert!(!job.home.join("new/logs/logs.tar.gz").exists());
        server.publish("/logs.tar.gz", &archive[..archive.len() - 20]);
        let (code, said) = logs(&settings(&address));
        assert!(code == 1 && said.contains("ended too early"), "{tools} {client}: {code} {said}");
    }
}

#[test]
fn a_proxy_of_the_job_is_not_asked() {
    for (tools, client) in KINDS {
        let (_server, address) = kind(&["docker-ready"]);
        let [host, port] = settings(&address);
        let nobody = ("http_proxy", "http://127.0.0.1:9");
        let (code, said) = Job::new(tools, client).run(&["docker", "--timeout", "1"], &[host, port, nobody]);
        assert_eq!(code, 0, "{tools} {client}: {said}");
    }
}

#[test]
fn a_line_that_makes_no_sense_is_refused() {
    let job = Job::new("busybox", "wget");
    for (arguments, words) in [
        (&["cluster"][..], "unknown argument 'cluster'"),
        (&["--timeout", "soon"], "whole number of seconds"),
        (&["--timeout"], "whole number of seconds"),
        (&["--kubeconfig"], "--kubeconfig needs a file"),
        (&["--kubeconfig", ""], "--kubeconfig needs a file"),
        (&["--kubeconfig", "a", "--name", "a b"], "--name needs a name"),
        (&["--kubeconfig", "a", "--name", &"a".repeat(64)], "at most 63 characters"),
        (&["--name", "a"], "--name is for --kubeconfig"),
        (&["--logs", "a", "--reset"], "--logs does nothing else"),
        (&["--logs"], "--logs needs a directory"),
    ] {
        let (code, said) = job.run(arguments, &[]);
        assert_eq!(code, 2, "{arguments:?}: {said}");
        assert!(said.contains(words) && said.contains("--help"), "{arguments:?}: {said}");
    }
    let (code, said) = job.run(&[], &[("KIND_PORT", "http")]);
    assert!(code == 2 && said.contains("KIND_PORT=http is not a port"), "{said}");
    let (code, said) = job.run(&["--help"], &[]);
    assert_eq!(code, 0);
    assert!(said.starts_with("Usage: wait-for-kind.sh"), "{said}");
    let (code, said) = Job::new("busybox", "").run(&[], &[]);
    assert_eq!(code, 2);
    assert!(said.contains("needs curl, wget or bash"), "{said}");
}
