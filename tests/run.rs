//! `run.sh`, with an engine that does nothing: where the tools are not GNU's, and where the port answers late.
#![allow(clippy::disallowed_methods, reason = "the tests have no reaper of their own that std's waiting could race")]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use common::network::Network;
use common::{namespaces, Namespaces, TempDir};
use nix::sys::socket::{setsockopt, sockopt};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/run.sh");

/// Runs it beside a file server that has everything once it has reset `resets` connections. Returns what it says, after
/// it has succeeded without a word on stderr.
fn run(home: &TempDir, resets: usize) -> String {
    let _network = Network::enter_new();
    let listener = TcpListener::bind("127.0.0.1:10080").unwrap();
    thread::spawn(move || {
        for (number, mut client) in listener.incoming().flatten().enumerate() {
            if number < resets {
                setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
                continue;
            }
            let _ = client.read(&mut [0; 512]);
            let _ = client.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
        }
    });
    home.script("bin/docker", "case \"$1\" in container) [ \"$3\" = --format ] && echo true ;; esac");
    let path = format!("{}:{}", home.join("bin").display(), std::env::var("PATH").unwrap());
    // bash 3.2 has no such variable; unset, it is none in a newer one either.
    let line = format!("unset EPOCHREALTIME; . {SCRIPT}");
    let output = Command::new("bash").args(["-c", &line, "run.sh", "IMAGE"]).env("PATH", path).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && errors.is_empty(), "{said}{errors}");
    said.into_owned()
}

#[test]
fn the_time_is_told_with_the_date_of_macos() {
    if namespaces(Namespaces::Root).is_none() {
        return;
    }
    let home = TempDir::new();
    // What BSD's date did until recently.
    home.script("bin/date", "case \"$1\" in +%s%N) echo 1700000000N ;; *) echo 1700000000 ;; esac");
    let said = run(&home, 0);
    assert!(said.contains("docker-ready     after") && said.contains("kubernetes-ready after"), "{said}");
}

/// Docker's proxy accepts a connection before anybody listens in the container, and then resets it.
#[test]
fn a_connection_that_is_reset_is_tried_again_without_a_word() {
    if namespaces(Namespaces::Root).is_none() {
        return;
    }
    let said = run(&TempDir::new(), 20);
    assert!(said.contains("kubernetes-ready after"), "{said}");
}
