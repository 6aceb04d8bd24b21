//! Which Kubernetes `./build.sh` takes: from a release server on loopback that knows what is newest, knows nothing,
//! or does not answer.
#![allow(clippy::disallowed_methods, reason = "no reaper runs in this process, so std's own wait calls are safe")]

mod common;

use std::net::TcpListener;

use common::build::{Build, Machine};
use common::server::{Fault, Server};

/// The first row of scripts/versions.
fn newest_known() -> &'static str {
    known().next().unwrap()
}

fn known() -> impl Iterator<Item = &'static str> {
    include_str!("../scripts/versions").lines().filter(|line| line.starts_with('v'))
}

/// The patch release that scripts/versions has of a minor version.
fn known_of(minor: &str) -> &'static str {
    known().find(|version| version.starts_with(&format!("v{minor}."))).unwrap()
}

/// A release server that says what is newest.
fn server(stable: &[(&str, &str)]) -> Server {
    let server = Server::start();
    for (name, version) in stable {
        server.publish(&format!("/release/{name}.txt"), version.as_bytes());
    }
    server
}

fn address(server: &Server) -> String {
    format!("http://127.0.0.1:{}/release", server.port)
}

fn build(server: &Server, arguments: &[&str], settings: &[(&str, &str)]) -> Build {
    Machine::new("amd64").build(arguments, &[&[("KUBERNETES_URL", address(server).as_str()), ("KIND_STALL", "1")], settings].concat())
}

/// What `--print-version` prints for this value of KUBERNETES_VERSION, and what it says besides.
fn version_for(server: &Server, wanted: &str) -> (String, String) {
    let build = build(server, &["--print-version"], &[("KUBERNETES_VERSION", wanted)]);
    (build.printed(), build.said())
}

#[test]
fn the_newest_release_is_what_the_server_says() {
    let server = server(&[("stable", "v1.37.4\n"), ("stable-1.36", "v1.36.8")]);
    for (wanted, version) in [("", "v1.37.4"), ("1.36", "v1.36.8"), ("v1.36.2", "v1.36.2"), ("1.35.1", "v1.35.1")] {
        assert_eq!(version_for(&server, wanted), (format!("{version}\n"), String::new()), "{wanted}");
    }
    let requests: Vec<String> = server.state.lock().unwrap().requests.iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(requests, ["/release/stable.txt", "/release/stable-1.36.txt"], "a whole version needs no question");
}

#[test]
fn a_version_that_nobody_knew_is_downloaded_and_one_line_says_that_it_is_new() {
    let server = server(&[("stable", "v1.41.0"), ("stable-1.42", "v1.42.3")]);
    for (wanted, version) in [("", "v1.41.0"), ("1.42", "v1.42.3"), ("v1.43.0", "v1.43.0")] {
        let build = build(&server, &["an-image"], &[("KUBERNETES_VERSION", wanted)]);
        let newest = newest_known().trim_start_matches('v').rsplit_once('.').unwrap().0;
        let line = format!("build: Kubernetes {version} is new to this checkout, and is baked like {newest}, the newest that it knows\n");
        assert_eq!(build.said().matches(&line).count(), 1, "{}", build.said());
        build.failed_with(&[&format!("/release/{version}/bin/linux/amd64/kubeadm"), "does not exist"]);
    }
    let known = build(&server, &["an-image"], &[("KUBERNETES_VERSION", newest_known())]);
    assert!(!known.said().contains("is new to"), "{}", known.said());
}

#[test]
fn a_minor_that_does_not_exist_is_named_with_the_newest_that_does() {
    let server = server(&[("stable", "v1.37.4")]);
    build(&server, &["an-image"], &[("KUBERNETES_VERSION", "1.99")]).failed_with(&[
        "there is no Kubernetes 1.99",
        &address(&server),
        "newest is v1.37.4",
    ]);
}

#[test]
fn a_server_without_these_files_or_with_others_leaves_what_the_checkout_knows() {
    let empty = server(&[]);
    // A proxy's page; a file of another minor version.
    let wrong = server(&[("stable", "<html>Please log in</html>"), ("stable-1.36", "v1.35.9")]);
    let failing = server(&[]);
    let stable = |version: &str, server: &Server, reason: &str, wanted: &str| {
        let (printed, said) = version_for(server, wanted);
        assert_eq!(printed, format!("{version}\n"), "{said}");
        assert!(said.contains(reason) && said.contains(&format!("taking {version}")) && said.lines().count() == 1, "{said}");
    };
    stable(newest_known(), &empty, "/release/stable.txt does not exist", "");
    stable(known_of("1.32"), &empty, "/release/stable-1.32.txt does not exist", "1.32");
    stable(newest_known(), &wrong, "does not contain a version, but: <html>Please log in", "");
    stable(known_of("1.36"), &wrong, "does not contain a version, but: v1.35.9", "1.36");
    failing.spoil("/release/stable.txt", &[Fault::Status(503)]);
    stable(newest_known(), &failing, "the server answered 503", "");
    // It may have that minor, but does not say so.
    let build = build(&empty, &["an-image"], &[("KUBERNETES_VERSION", "1.99")]);
    build.failed_with(&["stable-1.99.txt does not exist", "does not know Kubernetes 1.99", "such as v1.99.0"]);
}

#[test]
fn a_server_that_does_not_answer_costs_seconds_and_leaves_what_the_checkout_knows() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stalls = server(&[("stable", "v1.37.4"), ("stable-1.36", "v1.36.8")]);
    stalls.spoil("/release/stable.txt", &[Fault::Stall]);
    stalls.spoil("/release/stable-1.36.txt", &[Fault::Stall]);
    for address in [format!("http://{nobody}/release"), address(&stalls)] {
        for (wanted, version) in [("", newest_known()), ("1.36", known_of("1.36"))] {
            let settings = [("KUBERNETES_URL", address.as_str()), ("KIND_STALL", "1"), ("KUBERNETES_VERSION", wanted)];
            let build = Machine::new("amd64").build(&["--print-version"], &settings);
            assert_eq!(build.printed(), format!("{version}\n"), "{}", build.said());
            assert!(build.said().contains("does not answer (") && build.said().contains(&format!("taking {version}")), "{}", build.said());
        }
    }
    let settings = [("KUBERNETES_URL", format!("http://{nobody}")), ("KUBERNETES_VERSION", "1.99".into())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Machine::new("amd64").build(&["an-image"], &settings).failed_with(&["does not answer", "does not know Kubernetes 1.99"]);
}

#[test]
fn a_version_that_is_too_old_is_refused() {
    let server = server(&[("stable", "v1.30.1"), ("stable-1.30", "v1.30.14")]);
    for (wanted, named) in [("1.30", "1.30"), ("v1.30.14", "1.30.14"), ("1.19", "1.19"), ("v1.5.0", "1.5.0"), ("", "1.30.1")] {
        let newest = newest_known().trim_start_matches('v').rsplit_once('.').unwrap().0;
        let words = [&format!("Kubernetes {named} is not supported"), newest, "1.31", "and newer ones"];
        build(&server, &["an-image"], &[("KUBERNETES_VERSION", wanted)]).failed_with(&words);
    }
}

#[test]
fn a_bundle_and_debian_have_versions_of_their_own_and_ask_nobody() {
    let server = server(&[("stable", "v1.37.4"), ("stable-1.36", "v1.36.8")]);
    let machine = Machine::new("amd64");
    machine.home.write("bundle/bundle.env", "KUBERNETES_VERSION=v1.36.3\nARCH=amd64\n");
    let bundle = machine.home.join("bundle").to_string_lossy().into_owned();
    let print =
        |arguments: &[&str], wanted: &str| build(&server, &[&["--print-version"], arguments].concat(), &[("KUBERNETES_VERSION", wanted)]);
    for wanted in ["", "1.36", "v1.36.3", "1.36.3"] {
        assert_eq!(print(&["--bundle", &bundle], wanted).printed(), "v1.36.3\n", "{wanted}");
    }
    for wanted in ["1.37", "v1.36.8"] {
        print(&["--bundle", &bundle], wanted).failed_with(&[&bundle, "contains Kubernetes v1.36.3", &format!("asks for {wanted}")]);
    }
    machine.home.write("bundle/bundle.env", "ARCH=amd64\n");
    print(&["--bundle", &bundle], "").failed_with(&[&bundle, "names no KUBERNETES_VERSION"]);
    assert_eq!(print(&["--debian"], "").printed(), "v1.20.2\n");
    assert_eq!(print(&["--debian"], "1.20").printed(), "v1.20.2\n");
    print(&["--debian"], "1.36").failed_with(&["Debian has Kubernetes v1.20.2", "asks for 1.36"]);
    assert_eq!(server.state.lock().unwrap().requests.len(), 0);
    print(&["an-image"], "").failed_with(&["--print-version builds nothing"]);
}
