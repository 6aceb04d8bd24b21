//! docker:dind's contract, kept by `kind run` in an image that has dockerd and no entrypoint of dind's own;
//! here with a stand-in for dockerd.
// No reaper runs in this process, so std's own wait calls steal nothing.
#![allow(clippy::disallowed_methods)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::dockerd::{Dockerd, Fault};
use common::network::ip;
use common::node::{Container, Running};
use common::{wait_for, LIMIT};
use nix::sys::signal::Signal;

const TLS_PORT: u16 = 2376;
const FILES: [&str; 8] = ["ca/key", "ca/cert", "server/ca", "server/cert", "server/key", "client/ca", "client/cert", "client/key"];

/// Not a test: what the script `dockerd` of the tests below becomes.
#[test]
#[ignore = "the stand-in for dockerd, which the other tests start"]
fn the_stand_in_for_dockerd() {
    common::dockerd::run_if_asked();
}

/// A container whose `DOCKER_TLS_CERTDIR` is `certs` below its root.
fn with_tls() -> Option<Container> {
    let mut container = Container::new()?;
    container.add_program("openssl");
    let certs = container.root.join("certs").display().to_string();
    container.set("DOCKER_TLS_CERTDIR", &certs);
    Some(container)
}

fn start(container: &Container) -> Running {
    let kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 200);
    kind
}

fn stop(mut kind: Running) {
    kind.signal(Signal::SIGTERM);
    assert_eq!(kind.wait(LIMIT), 0);
}

/// What openssl says; the arguments after `in` are paths below the certificates' directory.
fn openssl(container: &Container, arguments: &[&str], paths: &[&str]) -> (bool, String) {
    let paths = paths.iter().map(|path| container.root.join(&format!("certs/{path}.pem")));
    let output = Command::new("openssl").args(arguments).args(paths).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn contents(container: &Container, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| container.root.read(&format!("certs/{name}.pem"))).collect()
}

fn socket_flag(container: &Container) -> String {
    format!("-H unix://{}", container.root.join("var/run/docker.sock").display())
}

#[test]
fn with_tls_2376_is_served_with_certificates_where_dind_has_them() {
    let Some(container) = with_tls() else { return };
    ip("address add 10.9.8.7/32 dev lo");
    let dockerd = Dockerd::install(&container);
    let _kind = start(&container);
    let certs = container.root.join("certs");
    let server = certs.join("server");
    assert_eq!(
        dockerd.wait_for_note("arguments"),
        format!(
            "{} -H fd:// --tlsverify --tlscacert {server}/ca.pem --tlscert {server}/cert.pem --tlskey {server}/key.pem",
            socket_flag(&container),
            server = server.display()
        )
    );
    assert_eq!(common::raw(TLS_PORT, "hello\n").unwrap(), format!("answered by {}\n", dockerd.wait_for_note("pid")));
    assert!(common::raw(2375, "").is_err(), "the plain port is closed");
    for name in FILES {
        let mode = fs::metadata(certs.join(format!("{name}.pem"))).unwrap_or_else(|cause| panic!("{name}: {cause}")).permissions().mode();
        let expected = if ["ca/key", "server/key"].contains(&name) { 0o600 } else { 0o644 };
        assert_eq!(mode & 0o777, expected, "{name}");
    }
    for (part, purpose) in [("server", "sslserver"), ("client", "sslclient")] {
        let authority = certs.join("ca/cert.pem").display().to_string();
        let check = |purpose| openssl(&container, &["verify", "-purpose", purpose, "-CAfile", &authority], &[&format!("{part}/cert")]).0;
        assert!(check(purpose), "{part} serves as {purpose}");
        assert!(!check(if part == "server" { "sslclient" } else { "sslserver" }), "{part} serves as nothing else");
    }
    let text = openssl(&container, &["x509", "-noout", "-text", "-in"], &["server/cert"]).1;
    for name in ["DNS:docker", "DNS:localhost", "IP Address:127.0.0.1", "IP Address:10.9.8.7"] {
        assert!(text.contains(name), "{name} is not in {text}");
    }
    assert_eq!(text.matches("Basic Constraints").count(), 1, "{text}");
}

#[test]
fn keys_are_used_again_and_certificates_follow_new_names() {
    let Some(mut container) = with_tls() else { return };
    Dockerd::install(&container);
    stop(start(&container));
    let keys = ["ca/key", "server/key", "client/key"];
    let (before, certificate) = (contents(&container, &keys), contents(&container, &["server/cert"]));
    assert!(before.iter().all(|key| key.contains("PRIVATE KEY")), "{before:?}");
    // A key that was never finished is no key.
    container.root.write("certs/client/key.pem", "");
    container.set("DOCKER_TLS_SAN", "DNS:ci.example,IP:10.0.0.7");
    stop(start(&container));
    let after = contents(&container, &keys);
    assert_eq!(after[..2], before[..2]);
    assert!(after[2] != before[2] && after[2].contains("PRIVATE KEY"), "{}", after[2]);
    assert_ne!(contents(&container, &["server/cert"]), certificate);
    let text = openssl(&container, &["x509", "-noout", "-text", "-in"], &["server/cert"]).1;
    assert!(text.contains("DNS:ci.example") && text.contains("IP Address:10.0.0.7"), "{text}");
}

#[test]
fn a_server_certificate_of_the_users_own_authority_is_only_checked() {
    let Some(container) = with_tls() else { return };
    Dockerd::install(&container);
    stop(start(&container));
    for name in ["ca/key", "ca/cert", "client/key", "client/cert", "client/ca"] {
        fs::remove_file(container.root.join(&format!("certs/{name}.pem"))).unwrap();
    }
    let server = ["server/ca", "server/cert", "server/key"];
    let before = contents(&container, &server);
    stop(start(&container));
    assert_eq!(contents(&container, &server), before);
    assert!(!container.root.join("certs/ca/key.pem").exists() && !container.root.join("certs/client/key.pem").exists());

    // And one that its authority has not signed ends the start with a line that says so.
    let other = container.root.path().display().to_string() + "/certs/server/ca.pem";
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other", "-keyout", "/dev/null", "-out", &other])
        .output()
        .unwrap();
    assert!(made.status.success());
    let mut kind = container.start(&["run"]);
    assert_eq!(kind.wait(LIMIT), 1);
    assert!(kind.stderr().contains("no certificates for Docker's port with TLS: openssl verify"), "{}", kind.stderr());
}

#[test]
fn an_authority_without_its_key_is_one_clear_error() {
    let Some(container) = with_tls() else { return };
    Dockerd::install(&container);
    container.root.write("certs/ca/cert.pem", "somebody's");
    let mut kind = container.start(&["run"]);
    assert_eq!(kind.wait(LIMIT), 1);
    assert!(kind.stderr().contains("has ca/cert.pem, but neither ca/key.pem nor all of server/"), "{}", kind.stderr());
}

/// Whoever asked for TLS must not get the plain port.
#[test]
fn without_openssl_docker_is_on_its_socket_alone_and_says_so() {
    let Some(mut container) = Container::new() else { return };
    container.set("DOCKER_TLS_CERTDIR", "/certs");
    let dockerd = Dockerd::install(&container);
    let kind = start(&container);
    kind.wait_for_line("this image has no openssl");
    assert_eq!(dockerd.wait_for_note("arguments"), socket_flag(&container));
    for port in [2375, TLS_PORT] {
        assert!(common::raw(port, "").is_err(), "{port} is open");
    }
}

#[test]
fn an_explicit_dockerd_listens_where_its_own_flags_say() {
    let Some(mut container) = with_tls() else { return };
    let dockerd = Dockerd::install(&container);
    for (line, expected) in [
        ("run dockerd --debug", "--debug".to_string()),
        // With hosts of the user's, one more is ours, to see when it is ready.
        (
            "run dockerd -H tcp://127.0.0.1:99",
            format!("-H unix://{} -H tcp://127.0.0.1:99", container.root.join("run/kind/docker.sock").display()),
        ),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let kind = container.start(&words);
        container.wait_for_status("docker-ready", 200);
        assert_eq!(dockerd.wait_for_note("arguments"), expected, "{line}");
        assert!(common::raw(TLS_PORT, "").is_err() && common::raw(2375, "").is_err(), "{line}");
        stop(kind);
    }
    assert!(!container.root.join("certs").exists(), "nobody asked for certificates");
    container.set("DOCKER_TLS_CERTDIR", "");
}

#[test]
fn the_variables_of_clients_do_not_reach_the_daemon() {
    let Some(mut container) = Container::new() else { return };
    // What GitLab's documentation has every job set, services included.
    let settings = [("DOCKER_HOST", "tcp://docker:2376"), ("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", "/certs/client")];
    settings.iter().for_each(|(name, value)| container.set(name, value));
    container.set("HTTPS_PROXY", "http://proxy.example:3128");
    let dockerd = Dockerd::install(&container);
    let _kind = start(&container);
    for (name, _) in settings {
        assert_eq!(dockerd.wait_for_note(name), "", "{name}");
    }
    // The negative control: what is not taken out would be noticed.
    assert_eq!(dockerd.wait_for_note("HTTPS_PROXY"), "http://proxy.example:3128");
    assert_eq!(dockerd.wait_for_note("container"), "docker");
}

/// docker-java asks with 1.32 unless it is told otherwise, and Docker 29 takes nothing below 1.44 by default.
#[test]
fn old_clients_are_accepted_unless_the_user_says_otherwise() {
    for (set, expected) in [(None, "1.24"), (Some("1.40"), "1.40")] {
        let Some(mut container) = Container::new() else { return };
        if let Some(version) = set {
            container.set("DOCKER_MIN_API_VERSION", version);
        }
        let dockerd = Dockerd::install(&container);
        let _kind = start(&container);
        assert_eq!(dockerd.wait_for_note("DOCKER_MIN_API_VERSION"), expected);
    }
    // A Docker that cannot speak it any more does not start with it, and is started without it.
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    let stand_in = container.root.read("bin/dockerd");
    let refusal = "[ -z \"$DOCKER_MIN_API_VERSION\" ] || { echo 'invalid DOCKER_MIN_API_VERSION' >&2; exit 1; }\n";
    container.root.script("bin/dockerd", &format!("{refusal}{stand_in}"));
    let _kind = start(&container);
    assert_eq!(dockerd.wait_for_note("DOCKER_MIN_API_VERSION"), "");
}

#[test]
fn a_socket_in_docker_host_is_listened_on_too() {
    let Some(mut container) = Container::new() else { return };
    container.set("DOCKER_HOST", "unix:///run/mine.sock");
    let dockerd = Dockerd::install(&container);
    let _kind = start(&container);
    assert_eq!(dockerd.wait_for_note("arguments"), format!("{} -H unix:///run/mine.sock -H fd://", socket_flag(&container)));
}

#[test]
fn what_a_killed_start_left_is_removed_before_every_start_of_the_daemon() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    let stale = ["var/run/docker.pid", "run/docker-1.pid", "var/run/docker/containerd/containerd.pid"];
    stale.iter().for_each(|name| drop(container.root.write(name, "1")));
    dockerd.tell(Fault::Held);
    let _kind = container.start(&["run"]);
    let gone = |name: &str| wait_for(&format!("{name} is gone"), LIMIT, || (!container.root.join(name).exists()).then_some(()));
    stale.iter().for_each(|name| gone(name));
    // A daemon that dies leaves its own.
    dockerd.tell(Fault::Dying);
    container.root.write("var/run/docker.pid", "1");
    dockerd.mend(Fault::Held);
    gone("var/run/docker.pid");
}

/// The first words of the daemon's PATH.
fn first_on_path(dockerd: &Dockerd) -> String {
    dockerd.wait_for_note("PATH").split(':').next().unwrap_or_default().to_string()
}

#[test]
fn iptables_is_the_kind_that_was_asked_for_or_that_works() {
    let programs = ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];
    for (wanted, nft_works, legacy) in [(Some("1"), true, true), (Some(""), false, false), (None, true, false), (None, false, true)] {
        let Some(mut container) = Container::new() else { return };
        container.root.script("bin/iptables", if nft_works { "exit 0" } else { "exit 3" });
        programs.iter().for_each(|name| drop(container.root.script(&format!("bin/{}", name.replace("tables", "tables-legacy")), "exit 0")));
        if let Some(wanted) = wanted {
            container.set("DOCKER_IPTABLES_LEGACY", wanted);
        }
        let dockerd = Dockerd::install(&container);
        let kind = start(&container);
        let directory = container.root.join("run/kind/iptables-legacy");
        assert_eq!(Path::new(&first_on_path(&dockerd)) == directory, legacy, "{wanted:?} {nft_works}");
        if legacy {
            kind.wait_for_line("iptables-legacy is used");
            for name in programs {
                let target = fs::read_link(directory.join(name)).unwrap();
                assert_eq!(target, container.root.join("bin").join(name.replace("tables", "tables-legacy")));
            }
        }
    }
}

#[test]
fn the_kernels_limits_are_raised_and_never_lowered() {
    let Some(container) = Container::new() else { return };
    Dockerd::install(&container);
    let limits = [("fs/inotify/max_user_instances", "128", "8192"), ("fs/inotify/max_user_watches", "9000000", "9000000")];
    limits.iter().for_each(|(name, before, _)| drop(container.root.write(&format!("proc/sys/{name}"), before)));
    let _kind = start(&container);
    for (name, _, after) in limits {
        assert_eq!(container.root.read(&format!("proc/sys/{name}")).trim(), after, "{name}");
    }
}

#[test]
fn another_command_is_completed_as_dinds_entrypoint_does() {
    let Some(container) = Container::new() else { return };
    container.root.script("bin/docker", r#"case "$1" in help) [ "$2" = ps ] ;; *) echo "docker $* at $DOCKER_HOST" ;; esac"#);
    for (words, expected) in [
        (vec!["run", "ps", "-a"], "docker ps -a at tcp://docker:2375\n"),
        (vec!["run", "sh", "-c", "echo $DOCKER_HOST"], "tcp://docker:2375\n"),
    ] {
        let mut kind = container.start(&words);
        assert_eq!(kind.wait(LIMIT), 0, "{}", kind.stderr());
        let said = kind.stdout();
        // Where the machine has a Docker of its own, its socket is what a client finds.
        let here = expected.replace("tcp://docker:2375", "unix:///var/run/docker.sock");
        assert!(said == expected || said == here, "{words:?}: {said}");
    }
}
