//! What builds keep for the next one: an init that is there is whole, whenever a build is interrupted and whoever
//! else builds at the same time.
#![allow(clippy::disallowed_methods, reason = "the tests have no reaper of their own that std's waiting could race")]

mod common;

use std::fs;
use std::os::unix::process::CommandExt;

use common::build::{engine, Machine};
use common::{wait_for, LIMIT};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

const INIT: &str = "the whole init";

/// A machine with a bundle and an engine that builds images, and hands an init out of one of them. Its temporary
/// folder is on another file system than its cache, so that `mv` copies: slowly, as long as there is a file `slow`.
fn machine() -> Machine {
    let machine = Machine::new("amd64");
    machine.bundle(&[("bin/kubeadm", "kubeadm")]);
    let engine = engine("amd64");
    let engine = format!("case $1 in {engine} image) exit 1 ;; cp) printf '{INIT}' >\"$3\" ;; run) exit 9 ;; esac");
    machine.home.script("bin/docker", &engine);
    let home = machine.home.path().display();
    let copy = format!(
        "case \"$1\" in {home}/tmp/*) ;; *) exec /bin/mv \"$@\" ;; esac\n\
         head -c 5 \"$1\" >\"$2\"\n\
         if [ -e {home}/slow ]; then touch {home}/halfway; sleep 60; fi\n\
         exec cp \"$1\" \"$2\""
    );
    machine.home.script("bin/mv", &copy);
    machine
}

/// Every file of the cache's folder for inits, with what is in it.
fn inits(machine: &Machine) -> Vec<(String, String)> {
    let entries = fs::read_dir(machine.home.join("cache/init")).into_iter().flatten().flatten();
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path()).unwrap())).collect()
}

/// Builds to where the container to bake in cannot be started.
fn build(machine: &Machine, bundle: &str) -> String {
    let build = machine.build(&["--bundle", bundle, "an-image"], &[]);
    let said = build.said();
    assert!(said.contains("cannot run a privileged container"), "{said}");
    said
}

/// Builds from a bundle with these files and an init, with an engine that does `commands`, in the form of `case`, each of which
/// writes a line to the file `done`. Returns how many there are.
fn attempts(files: &[(&str, &str)], commands: &str) -> usize {
    let machine = Machine::new("amd64");
    let bundle = machine.bundle(&[&[("kind", INIT)], files].concat());
    let (engine, done) = (engine("amd64"), machine.home.join("done").display().to_string());
    let script = format!("done={done}; case $1 in {engine} {commands} image) exit 1 ;; run) exit 9 ;; esac");
    machine.home.script("bin/docker", &script);
    build(&machine, &bundle);
    machine.home.read("done").lines().count()
}

/// The image has the same name in every build from a bundle, and each removes it at its end.
#[test]
fn a_nodes_image_whose_name_another_build_removes_is_loaded_again() {
    let load = "load) echo once >>$done; echo 'Loaded image: node' ;;";
    let tag = "tag) [ $(wc -l <$done) = 2 ] || { echo 'No such image: node' >&2; exit 1; } ;;";
    assert_eq!(attempts(&[("node.tar", "")], &format!("{load} {tag}")), 2);
}

/// With the legacy builder a step is an untagged image, which goes with the image of a build that ends.
#[test]
fn a_nodes_image_of_which_another_build_removes_a_step_is_built_again() {
    for words in ["failed to set parent sha256:1: unknown parent image ID sha256:1", "No such image: sha256:1"] {
        let fail = format!("echo '{words}' >&2; exit 1;");
        let build = format!("build) grep -q FROM || exit 2; echo once >>$done; [ $(wc -l <$done) = 2 ] || {{ {fail} }} ;;");
        assert_eq!(attempts(&[], &build), 2, "{words}");
    }
}

/// Another one may be going on from them.
#[test]
fn a_build_that_fails_leaves_the_steps_of_others_alone() {
    let load = "load) echo once >>$done; echo 'Loaded image: node' ;; tag) ;;";
    assert_eq!(attempts(&[("node.tar", "")], &format!("{load} image) [ $2 != prune ] || echo pruned >>$done; exit 1 ;;")), 1);
}

#[test]
fn a_build_that_is_interrupted_leaves_no_half_of_an_init() {
    let machine = machine();
    let bundle = machine.home.join("bundle").to_string_lossy().into_owned();
    machine.home.write("slow", "");
    let mut first = machine.command(&["--bundle", &bundle, "an-image"], &[]);
    let mut first = first.process_group(0).spawn().unwrap();
    wait_for("half of the init is there", LIMIT, || machine.home.join("halfway").exists().then_some(()));
    // Whoever looks now finds none, and compiles another.
    fs::remove_file(machine.home.join("slow")).unwrap();
    let half: Vec<_> = inits(&machine).into_iter().filter(|(name, _)| !name.contains("kind-build")).collect();
    assert_eq!(half, [], "a file that is not whole has the name of one that is");
    // As Ctrl-C does.
    kill(Pid::from_raw(-(first.id() as i32)), Signal::SIGINT).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(130));
    assert_eq!(inits(&machine), [], "the interrupted build has left something in the cache");

    assert!(build(&machine, &bundle).contains("compiling the init"));
    let kept = inits(&machine);
    assert!(matches!(kept.as_slice(), [(_, text)] if text == INIT), "{kept:?}");
    // The control: what is there is taken.
    assert!(!build(&machine, &bundle).contains("compiling the init"));
    assert_eq!(inits(&machine), kept);
}
