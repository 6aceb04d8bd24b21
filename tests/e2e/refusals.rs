//! What cannot work is refused at once, with a line that says what to do about it.

use std::process::Command;
use std::time::Duration;

use crate::engine::{docker, docker_within, image, tools, Container, Network};
use crate::process::{poll, run, run_with_input};

/// After how long the init refuses, by its own log, in seconds. What the engine takes besides depends on what else it does.
const AT_ONCE: f64 = 10.0;
const LIMIT: Duration = Duration::from_secs(60);
/// For a build that looks for newer packages.
const BUILD_LIMIT: Duration = Duration::from_secs(300);

/// Runs the image in the foreground. Returns its log, which must have exactly one error.
pub fn refused(arguments: &[&str]) -> String {
    refused_again(&Container::create(&[arguments, &[image()]].concat()))
}

/// The same for a container that exists. Returns only the log of this start.
pub fn refused_again(container: &Container) -> String {
    let before = container.logs().len();
    let outcome = docker_within(LIMIT, &["start", "--attach", &container.id]);
    let log = container.logs()[before..].to_string();
    assert!(outcome.took < LIMIT, "it was still running after {} s:\n{log}", LIMIT.as_secs());
    assert_eq!(container.inspect("{{.State.Running}}"), "false");
    let status = container.inspect("{{.State.ExitCode}}");
    assert!(status != "0" && status != "137", "it ended with {status}:\n{log}");
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("ERROR")).collect();
    assert_eq!(errors.len(), 1, "not exactly one line says why:\n{log}");
    let after = errors[0].split_once("] +").and_then(|(_, rest)| rest.split_once("s ")?.0.parse::<f64>().ok());
    assert!(after.is_some_and(|seconds| seconds < AT_ONCE), "not at once:\n{log}");
    let ugly = ["panicked", "Some(", "Err(", "Os {", "RUST_BACKTRACE"];
    assert!(!ugly.iter().any(|mark| log.contains(mark)) && !log.contains("WARN"), "not a log for people:\n{log}");
    log.trim_end().to_string()
}

#[track_caller]
pub fn assert_says(log: &str, words: &[&str]) {
    for word in words {
        assert!(log.contains(word), "{word} is not in:\n{log}");
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_container_that_is_not_privileged_is_told_so() {
    assert_says(&refused(&[]), &["not privileged", "--privileged"]);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn an_invalid_static_ip_and_one_that_was_not_baked_are_refused() {
    assert_says(&refused(&["--privileged", "--env", "STATIC_IP=nonsense"]), &["STATIC_IP=nonsense", "not an IPv4 address"]);
    assert_says(&refused(&["--privileged", "--env", "STATIC_IP=172.99.98.7"]), &["STATIC_IP=172.99.98.7", "baked with"]);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_network_in_which_the_static_ip_is_taken_is_refused() {
    let ip = tools().static_ip.as_str();
    let prefix = ip.rsplit_once('.').expect("it is an IPv4 address").0;
    let subnet = format!("{prefix}.0/24");
    {
        let network = Network::create("gateway", &["--subnet", &subnet, "--gateway", ip]);
        assert_says(&refused(&["--privileged", "--network", &network.name]), &[ip, "gateway"]);
    }
    let network = Network::create("neighbour", &["--subnet", &subnet, "--gateway", &format!("{prefix}.254")]);
    let neighbour = Container::idle(&["--network", &network.name, "--ip", ip], &["sleep", "infinity"]);
    assert_says(&refused(&["--privileged", "--network", &network.name]), &[ip, "another machine"]);
    drop(neighbour);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_port_that_is_taken_is_named() {
    for port in ["10080", "8443", "2375"] {
        let listen = format!("TCP-LISTEN:{port},fork,reuseaddr");
        let holder = Container::idle(&[], &["socat", &listen, "EXEC:cat"]);
        let listening = || holder.exec(&["bash", "-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}")]).succeeded().then_some(());
        poll(LIMIT, listening).unwrap_or_else(|| panic!("nobody listens on {port}: {}", holder.logs()));
        let network = format!("container:{}", holder.id);
        assert_says(&refused(&["--privileged", "--network", &network]), &[port, "use"]);
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_build_without_an_engine_says_so() {
    let mut build = Command::new(crate::bake::build_sh());
    build.arg("--bundle").arg(crate::bake::bundle()).arg("kind-e2e:none").env("DOCKER_HOST", "unix:///nonexistent");
    let outcome = run(&mut build, LIMIT);
    assert!(!outcome.succeeded() && outcome.took < LIMIT, "{outcome}");
    assert_eq!(outcome.output().lines().count(), 1, "not exactly one line says why: {outcome}");
    assert_says(&outcome.stderr, &["build: error: no Docker engine answers", "/nonexistent"]);
}

/// Debian 12's openssl fails at the end of a bake, and its crun makes a bake wait for 300 s.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_build_with_an_old_userland_says_which_one_is_needed() {
    let old = format!("kind-e2e-{}:old-userland", std::process::id());
    let dockerfile = format!(
        "FROM {}\nRUN printf '#!/bin/sh\\necho -days >&2\\n' >/usr/local/bin/openssl && chmod +x /usr/local/bin/openssl\n",
        image()
    );
    run_with_input(Command::new("docker").args(["build", "--tag", &old, "-"]), &dockerfile, LIMIT).ok();
    let argument = |name| format!("{name}={old}");
    let (debian, docker_image) = (argument("DEBIAN_IMAGE"), argument("DOCKER_IMAGE"));
    let arguments = ["build", "--force-rm", "--target", "node", "--build-arg", &debian, "--build-arg", &docker_image, "-"];
    let dockerfile = include_str!("../../Dockerfile");
    let outcome = run_with_input(Command::new("docker").args(arguments), dockerfile, BUILD_LIMIT);
    docker(&["image", "rm", &old]);
    assert!(!outcome.succeeded(), "{outcome}");
    assert_says(&outcome.output(), &["DEBIAN_IMAGE is too old", "Debian 13 or newer"]);
}
