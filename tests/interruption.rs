//! What a build that is interrupted says: at once that it is, and last of all which step it was and what is left.
#![allow(clippy::disallowed_methods, reason = "the tests have no reaper of their own that std's waiting could race")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use common::build::{engine, Machine};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// Interrupts a bake whose program still has something to say when it is told to end, by an engine that answers
/// some questions like this. What the build has said after the interruption.
fn interrupted(signal: Signal, answers: &str) -> String {
    let machine = Machine::new("amd64");
    let bake = "trap 'sleep 0.5; echo the hook is done >&2; exit 1' TERM; echo the hook runs >&2; while :; do sleep 0.1; done";
    machine.home.script(
        "bin/docker",
        &format!(
            "case $1 in {} load) echo 'Loaded image: node' ;; {answers} image) exit 1 ;;\n\
             exec) case \"$*\" in *'kind bake'*) {bake} ;; esac ;; esac",
            engine("amd64")
        ),
    );
    let bundle = machine.bundle(&[("kind", "the init"), ("node.tar", "")]);
    let mut command = machine.command(&["--bundle", &bundle, "an-image"], &[]);
    let mut build = command.stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
    let (mut said, mut lines) = (String::new(), BufReader::new(build.stderr.take().unwrap()));
    while !said.contains("the hook runs\n") {
        assert_ne!(lines.read_line(&mut said).unwrap(), 0, "it never baked: {said}");
    }
    let process = Pid::from_raw(build.id() as i32);
    // As Ctrl-C does, which reaches the whole group.
    kill(if signal == Signal::SIGINT { Pid::from_raw(-process.as_raw()) } else { process }, signal).unwrap();
    said.clear();
    lines.read_to_string(&mut said).unwrap();
    assert_eq!(build.wait().unwrap().code(), Some(128 + signal as i32), "{said}");
    said
}

#[test]
fn its_last_words_come_after_those_of_what_was_under_way() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        assert_eq!(
            interrupted(signal, "ps) echo 0123 ;;").lines().collect::<Vec<_>>(),
            [
                "build: interrupted; cleaning up",
                "the hook is done",
                "build: interrupted while baking Kubernetes v1.36.2; nothing is left behind but the engine's build cache"
            ],
            "{signal}"
        );
    }
}

#[test]
fn what_the_engine_has_not_removed_is_named_with_how_to_remove_it() {
    let container = "docker rm --force --volumes $(docker ps --all --quiet --filter label=kind.build=kind-build-";
    // Of the images, one that was loaded for the build.
    for (engine, command) in [
        ("ps) echo 0123 ;; rm) exit 1 ;;", container),
        ("ps) echo 'no such host' >&2; exit 1 ;;", container),
        ("image) [ \"$*\" != 'image rm node' ] || exit 1; exit 0 ;;", "docker image rm node"),
    ] {
        let said = interrupted(Signal::SIGTERM, engine);
        let last: Vec<_> = said.lines().skip(2).collect();
        let [how, what] = last.as_slice() else { panic!("{said}") };
        assert!(how.contains(&format!("may have kept something of this build; to remove it: {command}")), "{said}");
        assert_eq!(*what, "build: interrupted while baking Kubernetes v1.36.2");
    }
}
