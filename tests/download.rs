//! `./build.sh IMAGE`: its downloads, from a server on loopback that fails in many ways.
//!
//! The docker command is a stub that only reports the engine's architecture, so each build ends right after the
//! downloads. tests/e2e/release.rs covers the rest, with a real engine and registry.
#![allow(clippy::disallowed_methods, reason = "no reaper runs in this process, so std's own wait calls are safe")]

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use common::build::{Build, Machine};
use common::server::{sha256, Fault, Server};
use common::TempDir;

const VERSION: &str = "v1.36.2";
const PROGRAMS: [&str; 3] = ["kubeadm", "kubelet", "kubectl"];

fn kubernetes(arch: &str, program: &str) -> String {
    format!("/release/{VERSION}/bin/linux/{arch}/{program}")
}

/// A server with all files of a release and their checksums.
fn release(arch: &str) -> Server {
    let server = Server::start();
    for program in PROGRAMS {
        server.publish(&kubernetes(arch, program), program.repeat(5000).as_bytes());
    }
    server.publish(
        &format!("/cni/v9.9.9/cni-plugins-linux-{arch}-v9.9.9.tgz"),
        &archive(&["bridge", "host-local", "portmap", "loopback", "vlan"]),
    );
    server
}

fn archive(names: &[&str]) -> Vec<u8> {
    let directory = TempDir::new();
    for name in names {
        directory.script(name, "echo I am a program");
    }
    let output =
        Command::new("tar").arg("-cz").arg("-C").arg(directory.path()).args(names.iter().map(|name| format!("./{name}"))).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn build(machine: &Machine, server: &Server, settings: &[(&str, &str)]) -> Build {
    let url = |part: &str| format!("http://127.0.0.1:{}/{part}", server.port);
    let (release, cni) = (url("release"), url("cni"));
    let ours = [
        ("KUBERNETES_URL", release.as_str()),
        ("KUBERNETES_VERSION", VERSION),
        ("CNI_URL", &cni),
        ("CNI_VERSION", "v9.9.9"),
        // Seconds without a byte, which a busy machine must not reach by itself.
        ("KIND_STALL", "3"),
    ];
    machine.build(&["an-image"], &[&ours, settings].concat())
}

fn cached(machine: &Machine, server: &Server, program: &str) -> PathBuf {
    machine.home.join(&format!("cache/downloads/127.0.0.1:{}{}", server.port, kubernetes("amd64", program)))
}

#[test]
fn a_release_is_downloaded_once_and_kept() {
    let (server, machine) = (release("amd64"), Machine::new("amd64"));
    build(&machine, &server, &[]).went_on();
    for program in PROGRAMS {
        assert_eq!(server.requests(&kubernetes("amd64", program)), [None], "{program}");
        assert_eq!(fs::read_to_string(cached(&machine, &server, program)).unwrap(), program.repeat(5000));
    }
    let before = server.state.lock().unwrap().requests.len();
    build(&machine, &server, &[]).went_on();
    assert_eq!(server.state.lock().unwrap().requests.len(), before, "it downloaded a file again");
}

#[test]
fn the_engines_architecture_decides_what_is_downloaded() {
    let (server, machine) = (release("arm64"), Machine::new("arm64"));
    build(&machine, &server, &[]).went_on();
    let requests = server.state.lock().unwrap().requests.clone();
    assert!(requests.iter().all(|(path, _)| path.contains("arm64")), "{requests:?}");
    let (server, machine) = (release("amd64"), Machine::new("riscv64"));
    build(&machine, &server, &[]).failed_with(&["riscv64", "amd64 and arm64"]);
}

#[test]
fn an_interrupted_or_stalled_download_is_resumed() {
    let (server, machine) = (release("amd64"), Machine::new("amd64"));
    let (kubelet, kubectl) = (kubernetes("amd64", "kubelet"), kubernetes("amd64", "kubectl"));
    server.spoil(&kubelet, &[Fault::Stall]);
    server.spoil(&kubectl, &[Fault::Close, Fault::Status(503)]);
    build(&machine, &server, &[]).went_on();
    let half = "kubelet".len() * 5000 / 2;
    assert_eq!(server.requests(&kubelet), [None, Some(half)]);
    assert_eq!(server.requests(&kubectl), [None, Some(half), Some(half)]);
    assert_eq!(fs::read_to_string(cached(&machine, &server, "kubelet")).unwrap(), "kubelet".repeat(5000));
}

#[test]
fn without_range_requests_a_download_starts_over() {
    let (server, machine) = (release("amd64"), Machine::new("amd64"));
    let kubelet = kubernetes("amd64", "kubelet");
    server.spoil(&kubelet, &[Fault::Close, Fault::NoRanges]);
    build(&machine, &server, &[]).went_on();
    assert_eq!(server.requests(&kubelet), [None, Some("kubelet".len() * 5000 / 2), None]);
}

#[test]
fn after_several_stalls_it_gives_up_and_keeps_the_partial_file() {
    let (server, machine) = (release("amd64"), Machine::new("amd64"));
    server.spoil(&kubernetes("amd64", "kubelet"), &[Fault::Stall; 4]);
    let given_up = build(&machine, &server, &[]);
    given_up.failed_with(&["bin/linux/amd64/kubelet", "gave up after 4 tries", "run the same command again"]);
    // Each try downloads half of what is missing.
    assert_eq!(server.requests(&kubernetes("amd64", "kubelet")).len(), 4);
    build(&machine, &server, &[]).went_on();
    assert!(server.requests(&kubernetes("amd64", "kubelet")).last().unwrap().is_some_and(|start| start > 30_000), "it started over");
}

#[test]
fn a_corrupt_file_is_downloaded_again_and_then_refused() {
    let (server, machine) = (release("amd64"), Machine::new("amd64"));
    let kubelet = kubernetes("amd64", "kubelet");
    server.spoil(&kubelet, &[Fault::Corrupt]);
    build(&machine, &server, &[]).went_on();
    assert_eq!(server.requests(&kubelet).len(), 2);

    let machine = Machine::new("amd64");
    server.spoil(&kubelet, &[Fault::Corrupt, Fault::Corrupt]);
    let sum = sha256("kubelet".repeat(5000).as_bytes());
    build(&machine, &server, &[]).failed_with(&[&kubelet, "damaged", &sum]);
    assert!(!cached(&machine, &server, "kubelet").exists(), "a damaged file is still in the cache");
    build(&machine, &server, &[]).went_on();
}

#[test]
fn a_wrong_or_malformed_checksum_is_refused() {
    let (server, machine) = (release("amd64"), Machine::new("amd64"));
    let sum = format!("{}.sha256", kubernetes("amd64", "kubeadm"));
    let wrong = sha256(b"something else");
    server.state.lock().unwrap().files.insert(sum.clone(), wrong.clone().into_bytes());
    build(&machine, &server, &[]).failed_with(&["kubeadm", "damaged", &wrong]);
    server.state.lock().unwrap().files.insert(sum, b"<html>Please log in</html>".to_vec());
    build(&machine, &server, &[]).failed_with(&["kubeadm.sha256", "does not contain a SHA-256 checksum", "Please log in"]);
}

#[test]
fn a_checksum_of_the_checkout_counts_and_not_the_servers() {
    let (server, machine) = (release("amd64"), Machine::new("amd64"));
    let path = "/release/v1.31.14/bin/linux/amd64/kubeadm";
    let listed = include_str!("../scripts/checksums").lines().find(|line| path.ends_with(line.split(' ').nth(1).unwrap()));
    let listed = listed.expect("scripts/checksums has it").split(' ').next().unwrap();
    // The server's own checksum agrees with what it sends.
    server.publish(path, b"not what was released");
    let settings = [("KUBERNETES_VERSION", "v1.31.14")];
    build(&machine, &server, &settings).failed_with(&[path, "is damaged", "scripts/checksums says", listed]);
    assert_eq!(server.requests(&format!("{path}.sha256")).len(), 0, "nobody needs the server's checksum");
    let cached = machine.home.join(&format!("cache/downloads/127.0.0.1:{}{path}", server.port));
    assert!(!cached.exists(), "a damaged file is in the cache");
    // What an earlier build, or somebody else, has put into the cache counts no more.
    fs::write(&cached, "not what was released").unwrap();
    fs::write(cached.with_extension("sha256"), sha256(b"not what was released")).unwrap();
    build(&machine, &server, &settings).failed_with(&[path, "scripts/checksums says", listed]);
}

#[test]
fn the_checksums_of_the_checkout_are_for_the_versions_that_it_takes() {
    let script = include_str!("../scripts/download.sh");
    let versions = include_str!("../scripts/versions");
    let lines: Vec<&str> = include_str!("../scripts/checksums").lines().filter(|line| !line.starts_with('#')).collect();
    assert!(lines.iter().any(|line| line.contains("cni-plugins-linux-arm64")), "{lines:?}");
    for line in lines {
        let (sum, name) = line.split_once(' ').unwrap();
        assert!(sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()), "{line}");
        let version = name.split('/').next().unwrap();
        assert!(versions.lines().any(|line| line == version) || script.contains(&format!(":={version}}}")), "{line} is of no version here");
    }
}

#[test]
fn a_file_that_does_not_exist_is_named_at_once() {
    let (server, machine) = (release("amd64"), Machine::new("amd64"));
    build(&machine, &server, &[("KUBERNETES_VERSION", "v1.36.99")]).failed_with(&[
        "v1.36.99/bin/linux/amd64/kubeadm",
        "does not exist",
        "check the version",
    ]);
    assert_eq!(server.state.lock().unwrap().requests.len(), 1, "it tried again");
    server.spoil(&kubernetes("amd64", "kubelet"), &[Fault::Status(403)]);
    build(&machine, &server, &[]).failed_with(&["kubelet", "403"]);
}

#[test]
fn a_damaged_file_in_the_cache_is_downloaded_again() {
    let (server, machine) = (release("amd64"), Machine::new("amd64"));
    build(&machine, &server, &[]).went_on();
    fs::write(cached(&machine, &server, "kubectl"), "not what it was").unwrap();
    let build = build(&machine, &server, &[]);
    build.went_on();
    assert!(build.said().contains("kubectl is damaged: downloading it again"), "{}", build.said());
    assert_eq!(server.requests(&kubernetes("amd64", "kubectl")).len(), 2);
    assert_eq!(server.requests(&kubernetes("amd64", "kubelet")).len(), 1, "only the damaged file is downloaded again");
}

#[test]
fn it_gives_up_if_nobody_listens() {
    let (server, machine) = (release("amd64"), Machine::new("amd64"));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    build(&machine, &server, &[("KUBERNETES_URL", &format!("http://{nobody}/release"))]).failed_with(&[&nobody.to_string(), "gave up"]);
}

#[test]
fn invalid_settings_are_refused_before_anything_is_downloaded() {
    let (server, machine) = (release("amd64"), Machine::new("amd64"));
    for (setting, words) in [
        (("KUBERNETES_VERSION", "latest"), ["KUBERNETES_VERSION=latest", "1.36 or v1.36.5"]),
        (("KUBERNETES_VERSION", "1.19"), ["Kubernetes 1.19 is not supported", "1.37 1.36 1.35"]),
        (("KIND_HOOKS", "/nowhere"), ["KIND_HOOKS=/nowhere", "is not a directory"]),
        (("KIND_IMAGES", "/nowhere"), ["KIND_IMAGES=/nowhere", "is not a file"]),
    ] {
        build(&machine, &server, &[setting]).failed_with(&words);
    }
    assert_eq!(server.state.lock().unwrap().requests.len(), 0);
    let said = build(&machine, &server, &[("MINIKUBE_VERSION", "v0.28.0")]).said();
    assert!(said.contains("MINIKUBE_VERSION is no longer needed"), "{said}");
    for setting in [("CRICTL_VERSION", "v1.36.0"), ("CRICTL_URL", "http://mirror.example/crictl")] {
        let said = build(&machine, &server, &[setting]).said();
        assert!(said.contains("CRICTL_URL and CRICTL_VERSION are no longer needed"), "{said}");
    }
}

#[test]
fn concurrent_builds_share_a_cache() {
    let (server, machine) = (release("amd64"), Machine::new("amd64"));
    server.spoil(&kubernetes("amd64", "kubelet"), &[Fault::Stall]);
    let (beside, cache) = (Machine::new("amd64"), machine.home.join("cache").to_string_lossy().into_owned());
    thread::scope(|scope| {
        let builds = [&machine, &beside].map(|machine| scope.spawn(|| build(machine, &server, &[("KIND_CACHE", &cache)])));
        for build in builds {
            build.join().unwrap().went_on();
        }
    });
    assert_eq!(server.requests(&kubernetes("amd64", "kubectl")).len(), 1, "both builds downloaded it");
}
