//! A build that is interrupted, at any of its steps, leaves nothing behind and says which step it was.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::bake::{build_sh, bundle, partial_bundle, with_lab_images};
use crate::engine::{docker, session};
use crate::process::{poll, run};

/// From the signal to the end: what is under way in the engine is waited for, such as a commit of more than a gigabyte, and
/// so are other tests' builds, which have containers and images like these.
const LIMIT: Duration = Duration::from_secs(300);

const COMPILING: &str = "compiling the init";

/// Everything that a build could leave: containers of its own and of docker build, volumes without a
/// container, images under its own names, files. The engine's build cache, which is untagged images with the legacy builder, is
/// not the build's to remove: others may go on from it.
fn inventory() -> BTreeSet<String> {
    // Other tests' processes have images of their own.
    let images = format!("reference=kind-e2e-{}", std::process::id());
    let lists = [
        &["ps", "--all", "--filter", "label=kind.build", "--format", "container {{.ID}} build={{.Label \"kind.build\"}}"][..],
        &["ps", "--all", "--filter", "label=kind.stage=build", "--format", "container {{.ID}} {{.Names}}"],
        &["volume", "ls", "--filter", "dangling=true", "--format", "volume {{.Name}}"],
        &["images", "--filter", "reference=kind-build", "--format", "image {{.ID}} {{.Repository}}:{{.Tag}}"],
        &["images", "--filter", &images, "--format", "image {{.ID}} {{.Repository}}:{{.Tag}}"],
    ];
    let mut all: BTreeSet<String> = lists.iter().flat_map(|list| docker(list).ok().lines().map(String::from).collect::<Vec<_>>()).collect();
    let folders = std::fs::read_dir(&session().dir).expect("it is there").flatten();
    all.extend(folders.map(|entry| format!("folder {}", entry.path().display())));
    all
}

/// Whether a build has given it its name that is not this one, or it is a container of a baked image.
fn is_anothers(what: &str, build: u32) -> bool {
    let build = format!("kind-build-{build}-");
    what.contains("kind-build-") && !what.contains(&build) || what.ends_with(" build=")
}

/// Starts a build, and sends it `signal` as soon as it has said `moment`.
fn interrupt(arguments: &[&str], moment: &str, signal: Signal, step: &str) {
    let cache = session().dir.join("cache");
    // Under nohup SIGHUP is ignored, and a shell cannot trap a signal that it was started to ignore.
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(build_sh());
    with_lab_images(&mut command).args(arguments).env("TMPDIR", &session().dir);
    if moment == COMPILING {
        // Where the init was compiled already, it is not again.
        command.env("KIND_CACHE", &cache);
    }
    command.env("KIND_TEST_SECRET", "interrupted").stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let before = inventory();
    let mut build = command.spawn().expect("build.sh can be run");
    let mut said = String::new();
    let mut lines = BufReader::new(build.stderr.take().expect("it is piped"));
    while !said.contains(moment) {
        let read = lines.read_line(&mut said).expect("it writes text");
        assert!(read > 0, "it never said {moment}:\n{said}");
    }
    // A terminal's Ctrl-C reaches the whole group; whoever kills a job may know its first process only.
    let pid = Pid::from_raw(build.id() as i32);
    kill(if signal == Signal::SIGINT { Pid::from_raw(-pid.as_raw()) } else { pid }, signal).expect("it still runs");
    let status = poll(LIMIT, || build.try_wait().expect("nobody else waits for it"));
    let status = status.unwrap_or_else(|| panic!("interrupted at `{moment}`, it still runs after {} s", LIMIT.as_secs()));
    lines.read_to_string(&mut said).expect("it writes text");
    assert_eq!((status.code(), status.signal()), (Some(128 + signal as i32), None), "at `{moment}`:\n{said}");
    let last = said.lines().last().unwrap_or_default();
    // What was under way may have written half a line before.
    assert!(last.contains("build: interrupted while ") && last.contains(step), "at `{moment}`:\n{said}");
    // What the engine was asked for just before may show up a moment later, and other tests' volumes take a moment to go.
    let _ = std::fs::remove_dir_all(&cache);
    let ours = |what: &&String| !is_anothers(what, build.id());
    let left = || inventory().difference(&before).filter(ours).cloned().collect::<Vec<_>>();
    assert!(poll(LIMIT, || left().is_empty().then_some(())).is_some(), "at `{moment}`, left behind: {:#?}\n{said}", left());
}

#[test]
#[ignore = "needs a Docker engine and a bundle: KIND_BUNDLE=bundle KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_build_that_is_interrupted_leaves_nothing() {
    use Signal::{SIGHUP, SIGINT, SIGTERM};
    let (whole, partial) = (bundle(), partial_bundle());
    let (whole, partial) = (whole.to_string_lossy(), partial.to_string_lossy());
    for (bundle, moment, signal, step) in [
        (&whole, "checking ", SIGHUP, "checking"),
        (&whole, "loading the node's image", SIGTERM, "loading the node's image"),
        (&partial, "building the node's image", SIGTERM, "building the node's image"),
        (&partial, COMPILING, SIGINT, "compiling the init"),
        (&whole, "starting a container to bake in", SIGINT, "starting a container"),
        (&whole, "copying the bundle into it", SIGTERM, "copying the bundle"),
        (&whole, "[bake] ", SIGINT, "baking Kubernetes"),
        (&whole, "[hook] ", SIGTERM, "baking Kubernetes"),
        (&whole, "API server up", SIGINT, "baking Kubernetes"),
        (&whole, "committing ", SIGTERM, "committing"),
    ] {
        let name = format!("kind-e2e-{}:interrupted", std::process::id());
        interrupt(&["--bundle", bundle, &name], moment, signal, step);
    }
}

#[test]
#[ignore = "needs a Docker engine and a bundle: KIND_BUNDLE=bundle KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn an_interrupted_bundle_leaves_the_old_one_alone() {
    let old = partial_bundle();
    let files = || run(Command::new("find").arg(&old).args(["-type", "f", "-printf", "%P %s %T@\\n"]), LIMIT).ok();
    let before = files();
    let step = "copying the bundle into it";
    interrupt(&["--bundle-only", "--bundle", &old.to_string_lossy()], step, Signal::SIGTERM, "copying the bundle");
    assert_eq!(files(), before);
}
