//! `./build.sh --bundle DIR`: a bundle that is whole is taken, and any other refused by what is wrong with it.
#![allow(clippy::disallowed_methods, reason = "the tests have no reaper of their own that std's waiting could race")]

mod common;

use std::fs;
use std::process::Command;

use common::build::Machine;

/// A machine, and on it a bundle with everything but sense.
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

/// As docs/build.md and the error itself say to.
fn seal(bundle: &str) {
    let line = "find . -type f ! -name SHA256SUMS | cut -c 3- | xargs sha256sum >../sums && mv ../sums SHA256SUMS";
    assert!(Command::new("sh").args(["-c", line]).current_dir(bundle).status().unwrap().success());
}

#[test]
fn a_whole_bundle_is_taken() {
    let (machine, bundle) = machine();
    machine.build(&["--bundle", &bundle, "an-image"], &[]).went_on();
    machine.build(&["--bundle", &bundle, "an-image"], &[("KUBERNETES_VERSION", "1.36")]).went_on();
}

#[test]
fn a_missing_a_corrupt_and_an_unknown_file_are_named() {
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
    // What the advice says helps.
    seal(&bundle);
    build().went_on();
}

#[test]
fn a_list_of_checksums_that_was_cut_is_noticed() {
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
    build(&[("KUBERNETES_VERSION", "v1.35.1")]).failed_with(&["holds Kubernetes v1.36.2", "asks for v1.35.1"]);
    machine.home.write("bundle/bundle.env", "KUBERNETES_VERSION=v1.36.2\nARCH=arm64\n");
    seal(&bundle);
    build(&[]).failed_with(&[&bundle, "is for arm64", "runs on amd64"]);
}

#[test]
fn what_is_no_bundle_is_refused() {
    let (machine, bundle) = machine();
    machine.build(&["--bundle", "/nowhere", "an-image"], &[]).failed_with(&["/nowhere is not a bundle", "--bundle-only"]);
    fs::remove_file(machine.home.join("bundle/SHA256SUMS")).unwrap();
    machine.build(&["--bundle", &bundle, "an-image"], &[]).failed_with(&["has no SHA256SUMS", "xargs sha256sum"]);
}

#[test]
fn nothing_but_a_bundle_is_replaced_by_one() {
    let (machine, _) = machine();
    let papers = machine.home.write("papers/thesis", "years of work");
    let folder = papers.parent().unwrap().to_string_lossy().into_owned();
    machine.build(&["--bundle-only", "--bundle", &folder], &[]).failed_with(&[&folder, "contains something else"]);
    assert_eq!(machine.home.read("papers/thesis"), "years of work");
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused() {
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
