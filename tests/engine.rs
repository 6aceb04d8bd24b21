//! Which engine `./build.sh` takes, and which ones it refuses at once, with the reason and what to do.
#![allow(clippy::disallowed_methods, reason = "no reaper runs in this process, so std's own wait calls are safe")]

mod common;

use std::process::Command;

use common::build::Machine;
use common::TempDir;

const PODMAN: &str = "[ \"$1\" != --version ] || echo podman version 4.3.1";
const DOCKER: &str = "[ \"$1\" != --version ] || echo Docker version 28.5.2, build ecc6942";

/// What find_engine of scripts/engine.sh says on a machine with these commands and no others.
fn found(commands: &[(&str, &str)], setting: &str) -> String {
    let machine = TempDir::new();
    for (name, body) in commands {
        machine.script(name, body);
    }
    let script =
        "die() { echo \"$*\"; exit 1; }; . scripts/engine.sh; PATH=$1; find_engine; echo \"$docker ${podman:-docker} ${bake_options[*]}\"";
    let output = Command::new("bash")
        .args(["-euc", script, "bash"])
        .arg(machine.path())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("KIND_ENGINE", setting)
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_string()
}

#[test]
fn docker_is_taken_before_podman_and_podman_is_known_under_any_name() {
    let (docker, podman, shim) = (("docker", DOCKER), ("podman", PODMAN), ("docker", PODMAN));
    for (commands, setting, expected) in [
        (&[docker][..], "", "docker docker"),
        (&[docker, podman], "", "docker docker"),
        (&[docker, podman], "podman", "podman 1"),
        (&[podman], "", "podman 1"),
        // The command of podman-docker, which would add a line to each answer.
        (&[shim, podman], "", "podman 1"),
        (&[shim], "", "docker 1"),
        (&[("my-podman", PODMAN), docker], "my-podman", "my-podman 1"),
    ] {
        let said = found(commands, setting);
        assert!(said.starts_with(&format!("{expected} ")) || said == expected, "{commands:?} {setting}: {said}");
        assert_eq!(said.contains("--pids-limit=-1"), expected.ends_with('1'), "{said}");
    }
    assert!(found(&[], "").starts_with("there is neither a docker nor a podman command"), "{}", found(&[], ""));
    assert!(found(&[docker], "nerdctl").starts_with("KIND_ENGINE=nerdctl: there is no such command"));
}

/// Builds from a bundle, with an engine whose command answers like this.
fn build(name: &str, cases: &str) -> common::build::Build {
    let machine = Machine::new("amd64");
    machine.home.script(&format!("bin/{name}"), &format!("case $1 in {cases} build) exit 9 ;; image) exit 1 ;; esac"));
    let bundle = machine.bundle(&[]);
    machine.build(&["--bundle", &bundle, "an-image"], &[("KIND_ENGINE", name)])
}

#[test]
fn a_docker_that_will_not_do_is_refused_with_the_reason() {
    let answers = |version: &str, info: &str| format!("version) echo '{version}' ;; info) echo '{info}' ;;");
    for (version, info) in [
        ("amd64 linux 20.10.24+dfsg1 Engine,containerd,", "[name=seccomp,profile=default]"),
        ("arm64 linux 29.0.0-rc.1 Engine,", "[name=seccomp,profile=builtin name=cgroupns]"),
        // One that somebody has compiled.
        ("amd64 linux library-import Engine,", "[]"),
    ] {
        let build = build("docker", &answers(version, info));
        // The bundle is for amd64.
        if version.starts_with("arm64") {
            build.failed_with(&["is for amd64, but the engine runs on arm64"]);
        } else {
            build.went_on();
        }
    }
    for (version, info, words) in [
        ("amd64 linux 19.03.15 Engine,", "[]", &["Docker 19.03.15 is too old", "20.10 or newer"][..]),
        ("amd64 windows 28.5.2 Engine,", "[]", &["runs windows containers", "Switch to Linux containers"]),
        ("riscv64 linux 28.5.2 Engine,", "[]", &["runs on riscv64"]),
        ("amd64 linux 4.3.1 Podman Engine,Conmon,", "[]", &["podman's service", "KIND_ENGINE=podman"]),
        ("amd64 linux 28.5.2 Engine,", "[name=seccomp,profile=builtin name=rootless]", &["rootless", "DOCKER_HOST"]),
        ("amd64 linux 28.5.2 Engine,", "[name=userns]", &["userns-remap", "another engine"]),
    ] {
        build("docker", &answers(version, info)).failed_with(words);
    }
    build("docker", "version) echo no such host >&2; exit 1 ;;").failed_with(&["no Docker engine answers: no such host"]);
}

/// Not at the end of a build that took minutes.
#[test]
fn a_build_that_is_to_run_its_image_is_refused_at_once_where_a_container_named_kind_exists() {
    let machine = Machine::new("amd64");
    let built = machine.home.join("built");
    let answers = "version) echo amd64 linux 28.5.2 Engine, ;; info) echo '[]' ;;";
    machine.home.script("bin/docker", &format!("case $1 in {answers} build) touch {} ;; image) exit 1 ;; esac", built.display()));
    let bundle = machine.bundle(&[]);
    machine
        .build(&["--bundle", &bundle, "--run", "an-image"], &[])
        .failed_with(&["a container named kind already exists", "docker rm --force --volumes kind"]);
    assert!(!built.exists());
}

#[test]
fn an_engine_that_can_write_a_start_interval_into_the_image_is_asked_to() {
    let added = |version: &str| {
        let machine = TempDir::new();
        let answers = format!("version) echo 'amd64 linux {version} Engine,' ;; info) echo '[]' ;;");
        machine.script("docker", &format!("case $1 in --version) ;; {answers} esac"));
        let script = "here=. work=$1; . scripts/engine.sh; PATH=$1:$PATH; find_engine; check_engine; echo \"${commit_options[*]}\"";
        let output = Command::new("bash").args(["-euc", script, "bash"]).arg(machine.path()).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{version}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_string()
    };
    let dockerfile = std::fs::read_to_string("Dockerfile").unwrap();
    let written = dockerfile.lines().find_map(|line| line.strip_prefix("HEALTHCHECK ")).unwrap();
    for version in ["25.0.0", "28.5.2+dfsg4", "29.0.0-rc.1"] {
        assert_eq!(added(version), format!("--change HEALTHCHECK --start-interval=1s {written}"));
    }
    for version in ["20.10.24+dfsg1", "24.0.9", "library-import"] {
        assert_eq!(added(version), "", "{version}");
    }
}

#[test]
fn a_podman_that_will_not_do_is_refused_with_the_reason() {
    let answers = |version: &str, info: &str| format!("--version) echo podman version {version} ;; info) echo '{info}' ;;");
    for version in ["4.3.1", "5.4.2", "6.0.0-dev"] {
        build("podman", &answers(version, "amd64 false")).went_on_with("podman");
    }
    for (version, info, words) in [
        ("3.4.4", "amd64 false", &["podman 3.4.4 is too old", "4.3 or newer"][..]),
        ("4.3.1", "amd64 true", &["podman is rootless here", "sudo", "podman machine set --rootful"]),
        ("4.3.1", "s390x false", &["runs on s390x"]),
    ] {
        build("podman", &answers(version, info)).failed_with(words);
    }
    build("podman", "--version) echo podman version 4.3.1 ;; info) echo cannot connect >&2; exit 125 ;;")
        .failed_with(&["no podman answers: cannot connect"]);
}

/// Engines' own words, of a build whose base image is not there.
#[test]
fn a_build_that_reaches_no_registry_says_what_to_do_and_no_other_does() {
    let build = |output: &str| {
        let said = format!("build) cat >&2 <<'TEXT'\n{output}\nTEXT\nexit 9 ;;");
        build("docker", &format!("version) echo 'amd64 linux 28.5.2 Engine,' ;; info) echo '[]' ;; {said}"))
    };
    let advice =
        ["DOCKER_IMAGE, DEBIAN_IMAGE and RUST_IMAGE", "IMAGE_REGISTRY", "--bundle", "--debian", "docker build of the node image failed"];
    for unreached in [
        "Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io on 127.0.0.11:53: no such host",
        "ERROR: failed to solve: debian:trixie-slim: failed to resolve source metadata for docker.io/library/debian:trixie-slim: failed to do request: Head \"https://registry-1.docker.io/v2/library/debian/manifests/trixie-slim\": dial tcp 198.51.100.7:443: i/o timeout",
        // Docker 20.10
        "Get https://registry-1.docker.io/v2/: net/http: request canceled while waiting for connection (Client.Timeout exceeded)",
        // podman
        "Error: initializing source docker://docker:29-dind: pinging container registry registry-1.docker.io: Get \"https://registry-1.docker.io/v2/\": proxyconnect tcp: dial tcp 10.0.0.1:3128: connect: connection refused",
    ] {
        let said = build(unreached).said();
        assert!(advice.iter().all(|words| said.contains(words)), "{said}");
    }
    for other in [
        "manifest for docker:no-such-dind not found: manifest unknown: manifest unknown",
        "toomanyrequests: You have reached your unauthenticated pull rate limit. https://www.docker.com/increase-rate-limit",
        "E: Failed to fetch http://deb.debian.org/debian/dists/trixie/InRelease  Could not connect to deb.debian.org:80, connection timed out",
        "failed to solve: process \"/bin/sh -c apt-get update\" did not complete successfully: exit code: 100",
    ] {
        let said = build(other).said();
        assert!(said.contains("docker build of the node image failed") && !said.contains("--debian"), "{said}");
    }
}
