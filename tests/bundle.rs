//! `./build.sh --bundle DIR`: a complete bundle is accepted, and any other is refused with what is wrong with it.
#![allow(clippy::disallowed_methods, reason = "no reaper runs in this process, so std's own wait calls are safe")]

mod common;

use std::fs;
use std::process::Command;

use common::build::Machine;

/// A machine with a bundle that is complete, though its files have no real contents.
fn machine() -> (Machine, String) {
    let machine = Machine::new("amd64");
    machine.home.write("bundle/bundle.env", "KUBERNETES_VERSION=v1.36.2\nARCH=amd64\n");
    for name in ["bin/kubeadm", "bin/kubelet", "bin/kubectl", "cni/bridge", "images/etcd.tar"] {
        machine.home.write(&format!("bundle/{name}"), name);
    }
    let bundle = machine.home.join("bundle").to_string_lossy().into_owned();
    seal(&bundle);
    (machine, bundle)
}

/// Writes SHA256SUMS as docs/build.md and the error message say.
fn seal(bundle: &str) {
    let line = "find . -type f ! -name SHA256SUMS | cut -c 3- | xargs sha256sum >../sums && mv ../sums SHA256SUMS";
    assert!(Command::new("sh").args(["-c", line]).current_dir(bundle).status().unwrap().success());
}

#[test]
fn a_complete_bundle_is_accepted() {
    let (machine, bundle) = machine();
    machine.build(&["--bundle", &bundle, "an-image"], &[]).went_on();
    machine.build(&["--bundle", &bundle, "an-image"], &[("KUBERNETES_VERSION", "1.36")]).went_on();
}

#[test]
fn missing_corrupt_and_unknown_files_are_named() {
    let (machine, bundle) = machine();
    let build = || machine.build(&["--bundle", &bundle, "an-image"], &[]);
    machine.home.write("bundle/images/etcd.tar", "etcd was changed");
    build().failed_with(&[&bundle, "is damaged", "images/etcd.tar", "Copy it again"]);
    fs::remove_file(machine.home.join("bundle/images/etcd.tar")).unwrap();
    build().failed_with(&[&bundle, "is missing images/etcd.tar"]);
    machine.home.write("bundle/images/etcd.tar", "images/etcd.tar");
    build().went_on();
    machine.home.write("bundle/images/mine.tar", "an image");
    build().failed_with(&["images/mine.tar is in the bundle", "not in its SHA256SUMS", "sha256sum images/mine.tar >>SHA256SUMS"]);
    // Following the advice helps.
    seal(&bundle);
    build().went_on();
}

#[test]
fn a_truncated_list_of_checksums_is_refused() {
    let (machine, bundle) = machine();
    let sums = machine.home.read("bundle/SHA256SUMS");
    machine.home.write("bundle/SHA256SUMS", &sums[..sums.len() / 2]);
    machine.build(&["--bundle", &bundle, "an-image"], &[]).failed_with(&["is in the bundle", "not in its SHA256SUMS"]);
    machine.home.write("bundle/SHA256SUMS", "");
    machine.build(&["--bundle", &bundle, "an-image"], &[]).failed_with(&["not in its SHA256SUMS"]);
}

#[test]
fn another_version_or_architecture_is_refused_by_name() {
    let (machine, bundle) = machine();
    let build = |settings| machine.build(&["--bundle", &bundle, "an-image"], settings);
    build(&[("KUBERNETES_VERSION", "v1.35.1")]).failed_with(&["contains Kubernetes v1.36.2", "asks for v1.35.1"]);
    machine.home.write("bundle/bundle.env", "KUBERNETES_VERSION=v1.36.2\nARCH=arm64\n");
    seal(&bundle);
    build(&[]).failed_with(&[&bundle, "is for arm64", "runs on amd64"]);
}

#[test]
fn a_directory_that_is_not_a_bundle_is_refused() {
    let (machine, bundle) = machine();
    machine.build(&["--bundle", "/nowhere", "an-image"], &[]).failed_with(&["/nowhere is not a bundle", "--bundle-only"]);
    fs::remove_file(machine.home.join("bundle/SHA256SUMS")).unwrap();
    machine.build(&["--bundle", &bundle, "an-image"], &[]).failed_with(&["has no SHA256SUMS", "xargs sha256sum"]);
}

#[test]
fn a_directory_with_other_files_is_not_overwritten() {
    let (machine, _) = machine();
    let papers = machine.home.write("papers/thesis", "years of work");
    let directory = papers.parent().unwrap().to_string_lossy().into_owned();
    machine.build(&["--bundle-only", "--bundle", &directory], &[]).failed_with(&[&directory, "is neither a bundle nor empty"]);
    assert_eq!(machine.home.read("papers/thesis"), "years of work");
}

/// Its Kubernetes is what the bundle has: nothing is downloaded, and the directory is as it was if the build fails.
#[test]
fn a_bundle_of_kubernetes_alone_is_completed() {
    let (machine, bundle) = machine();
    let servers = [("KUBERNETES_URL", "http://127.0.0.1:1"), ("CNI_URL", "http://127.0.0.1:1"), ("CRIU_URL", "http://127.0.0.1:1")];
    let before = machine.home.read("bundle/SHA256SUMS");
    let build = machine.build(&["--bundle-only", "--bundle", &bundle], &servers);
    build.went_on();
    assert!(!build.said().contains("127.0.0.1"), "{}", build.said());
    assert_eq!(machine.home.read("bundle/SHA256SUMS"), before);
    machine.home.write("bundle/bin/kubeadm", "another");
    machine.build(&["--bundle-only", "--bundle", &bundle], &servers).failed_with(&["damaged", "bin/kubeadm"]);
    // The control: a complete one is made anew, of the release server's newest version.
    machine.home.write("bundle/bundle.env", "KUBERNETES_VERSION=v1.36.2\nARCH=amd64\nCOMPLETE=1\n");
    let said = machine.build(&["--bundle-only", "--bundle", &bundle], &[&servers[..], &[("KIND_STALL", "1")]].concat()).said();
    assert!(said.contains("127.0.0.1:1/stable.txt does not answer"), "{said}");
}

#[test]
fn an_invalid_command_line_is_refused() {
    let (machine, bundle) = machine();
    for (arguments, words) in [
        (&["--bundle-only", "an-image"][..], "--bundle-only makes no image"),
        (&["--frobnicate", "an-image"], "unknown option --frobnicate; --help lists the options"),
        (&["--env", "NOT_SET", "an-image"], "--env NOT_SET: that variable is not set"),
        (&["--bundle", &bundle, "an-image", "--env"], "--env needs the name of a variable"),
    ] {
        machine.build(arguments, &[]).failed_with(&[words]);
    }
    let build = machine.build(&[], &[]);
    assert!(build.said().starts_with("Usage: ./build.sh"), "{}", build.said());
    let build = machine.build(&["--bundle", &bundle, "an-image"], &[("HTTP_PROXY", "http://127.0.0.1:3128")]);
    assert!(build.said().contains("HTTP_PROXY is ignored"), "{}", build.said());
}
