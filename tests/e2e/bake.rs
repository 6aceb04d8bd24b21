//! A bake that fails: its own words, a status, and nothing left behind.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::engine::{docker, session, tools};
use crate::process::run;

/// Up to the first hook, with the node's image there or built.
const LIMIT: Duration = Duration::from_secs(300);
/// What stands in for Docker Hub where there is none (scripts/debian).
const LAB: [(&str, &str); 3] =
    [("DEBIAN_IMAGE", "kind-lab/debian:trixie"), ("DOCKER_IMAGE", "kind-lab/docker:trixie-dind"), ("RUST_IMAGE", "kind-lab/rust:1")];

/// Says which container and which volume the bake runs in, and fails.
const HOOK: &str = r#"echo "the hook's own words"
echo "container=$(hostname)"
sed -n 's|.* [^ ]*/volumes/\([^/ ]*\)/_data /var/lib/docker .*|volume=\1|p' /proc/self/mountinfo
echo "and why it fails" >&2
exit 7
"#;

pub fn build_sh() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("build.sh")
}

#[test]
#[ignore = "needs a Docker engine and a bundle: KIND_BUNDLE=bundle KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_hook_that_fails_fails_the_build_and_leaves_nothing() {
    let hooks = session().dir.join("hooks");
    write(&hooks.join("before-cluster.sh"), HOOK);
    let target = format!("kind-e2e-{}:failed", std::process::id());
    let mut build = Command::new(build_sh());
    build.arg("--bundle").arg(bundle()).arg(&target).env("KIND_HOOKS", &hooks);
    let outcome = run(with_lab_images(&mut build), LIMIT);
    assert!(!outcome.succeeded(), "{outcome}");
    let log = outcome.output();
    for words in ["the hook's own words", "and why it fails", "before-cluster.sh", "7", "build: error: the bake failed"] {
        assert!(log.contains(words), "{words} is not in: {outcome}");
    }
    assert!(!docker(&["image", "inspect", &target]).succeeded(), "there is an image all the same");
    for kind in ["container", "volume"] {
        let id = log.lines().find_map(|line| line.strip_prefix(&format!("{kind}="))).unwrap_or_else(|| panic!("no {kind} in {outcome}"));
        assert!(!docker(&[kind, "inspect", id]).succeeded(), "the bake's {kind} is still there: {id}");
    }
}

/// Makes the last steps of a bake fail, when the cluster has been stopped.
const LATE_HOOK: &str = r#"mv /usr/local/bin/ctr /usr/local/bin/real-ctr
cat >/usr/local/bin/ctr <<'CTR'
#!/bin/sh
case "$*" in *"content label"*) echo "ctr: the disk is full" >&2; exit 1 ;; esac
exec real-ctr "$@"
CTR
chmod +x /usr/local/bin/ctr
"#;

#[test]
#[ignore = "needs a Docker engine and a bundle: KIND_BUNDLE=bundle KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_bake_that_fails_after_the_cluster_was_stopped_leaves_no_image() {
    let (hooks, images) = (session().dir.join("late-hooks"), session().dir.join("no-images.sh"));
    write(&hooks.join("after-cluster.sh"), LATE_HOOK);
    write(&images, "");
    let target = format!("kind-e2e-{}:late", std::process::id());
    let mut build = Command::new(build_sh());
    with_lab_images(&mut build).arg("--bundle").arg(bundle()).arg(&target).env("KIND_HOOKS", &hooks).env("KIND_IMAGES", &images);
    let outcome = run(build.env("KIND_INIT", &tools().kind), 3 * LIMIT);
    assert!(!outcome.succeeded(), "{outcome}");
    let log = outcome.output();
    for words in ["failed: ctr ", "the disk is full", "build: error: the bake failed"] {
        assert!(log.contains(words), "{words} is not in: {outcome}");
    }
    assert!(!docker(&["image", "inspect", &target]).succeeded(), "there is an image all the same");
}

/// The bundle that `./build.sh --bundle-only` made.
pub fn bundle() -> PathBuf {
    let bundle = std::env::var_os("KIND_BUNDLE").expect("KIND_BUNDLE names no bundle: ./build.sh --debian --bundle-only makes one");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(bundle)
}

/// The Kubernetes of the bundle, such as `v1.36.5`.
pub fn bundled_version() -> String {
    let settings = std::fs::read_to_string(bundle().join("bundle.env")).expect("a bundle says what it is for");
    settings.lines().find_map(|line| line.strip_prefix("KUBERNETES_VERSION=")).expect("a bundle has a version").to_string()
}

/// The `1.36` of `v1.36.5`.
pub fn minor_of(version: &str) -> &str {
    version.trim_start_matches('v').rsplit_once('.').expect("a version has three numbers").0
}

/// The bundle without what is no Kubernetes: the node's image and the init have to be built.
pub fn partial_bundle() -> PathBuf {
    let partial = session().dir.join("partial-bundle");
    let script = r#"
        rm -rf "$2" && cp -r "$1" "$2" && cd "$2" && rm -f node.tar kind images/pulled.tar SHA256SUMS
        sed -i /^COMPLETE=/d bundle.env && find * -type f -exec sha256sum {} + >../sums && mv ../sums SHA256SUMS
    "#;
    run(Command::new("sh").args(["-ec", script, "sh"]).arg(bundle()).arg(&partial), LIMIT).ok();
    partial
}

/// Builds from the lab's images where there are any.
pub fn with_lab_images(build: &mut Command) -> &mut Command {
    for (name, image) in LAB {
        if std::env::var_os(name).is_none() && docker(&["image", "inspect", image]).succeeded() {
            build.env(name, image);
        }
    }
    build
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("it lies in a directory")).expect("the session's directory can be written");
    std::fs::write(path, text).expect("the session's directory can be written");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("the file is ours");
}
