//! `run.sh` where the tools are not GNU's: macOS has bash 3.2 and a date without fractions of a second.
#![allow(clippy::disallowed_methods, reason = "the tests have no reaper of their own that std's waiting could race")]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use common::network::Network;
use common::{namespaces, Namespaces, TempDir};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/run.sh");

#[test]
fn the_time_is_told_with_the_date_of_macos() {
    if namespaces(Namespaces::Root).is_none() {
        return;
    }
    let _network = Network::enter_new();
    let listener = TcpListener::bind("127.0.0.1:10080").unwrap();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 512]);
            let _ = client.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
        }
    });
    let home = TempDir::new();
    home.script("bin/docker", "case \"$1\" in container) exit 1 ;; esac");
    // What BSD's date did until recently.
    home.script("bin/date", "case \"$1\" in +%s%N) echo 1700000000N ;; *) echo 1700000000 ;; esac");
    let path = format!("{}:{}", home.join("bin").display(), std::env::var("PATH").unwrap());
    // bash 3.2 has no such variable; unset, it is none in a newer one either.
    let line = format!("unset EPOCHREALTIME; . {SCRIPT}");
    let output = Command::new("bash").args(["-c", &line, "run.sh", "IMAGE"]).env("PATH", path).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && errors.is_empty(), "{said}{errors}");
    assert!(said.contains("docker-ready     after") && said.contains("kubernetes-ready after"), "{said}");
}
