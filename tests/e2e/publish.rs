//! scripts/release.sh: publishes to a registry on this machine, goes on where it stopped, and joins architectures.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::bake::{bundle, bundled_version, minor_of, with_lab_images};
use crate::cluster::Cluster;
use crate::engine::{docker, session, tools};
use crate::process::{run, Outcome};
use crate::registry::Registry;

/// For a bake, a commit and a push on a busy machine.
const LIMIT: Duration = Duration::from_secs(900);

fn release(arguments: &[&str]) -> Outcome {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/release.sh");
    let mut command = Command::new(script);
    with_lab_images(&mut command).arg("--dirty").arg("--bundle").arg(bundle()).env("KIND_INIT", &tools().kind);
    run(command.args(arguments), LIMIT)
}

fn tags(registry: &Registry) -> Vec<String> {
    let url = format!("http://{}/v2/kind/tags/list", registry.host);
    let mut answer = ureq::get(&url).call().expect("the registry answers");
    let list: Value = serde_json::from_reader(answer.body_mut().as_reader()).expect("it is JSON");
    let mut tags: Vec<String> = list["tags"].as_array().into_iter().flatten().filter_map(|tag| tag.as_str().map(str::to_string)).collect();
    tags.sort();
    tags
}

/// The architectures that a list names, with the digests of their images.
fn members(list: &str) -> Vec<(String, String)> {
    let text = docker(&["manifest", "inspect", "--insecure", list]).ok();
    let list: Value = serde_json::from_str(&text).expect("it is JSON");
    let manifests = list["manifests"].as_array().unwrap_or_else(|| panic!("it is no list: {text}"));
    let mut members: Vec<_> = manifests
        .iter()
        .map(|one| {
            let field = |pointer: &str| one.pointer(pointer).and_then(Value::as_str).expect("a list's entry has it").to_string();
            (field("/platform/architecture"), field("/digest"))
        })
        .collect();
    members.sort();
    members
}

/// Pushes an image that says that it is for this architecture, as a machine of that kind would.
fn push_as(name: &str, architecture: &str) {
    let directory: PathBuf = session().dir.join("other-architecture");
    std::fs::create_dir_all(&directory).expect("the session's directory can be written");
    let path = directory.to_string_lossy().into_owned();
    let empty = format!("kind-e2e-{}:empty", std::process::id());
    let script = r#"
        set -e
        tar -c --files-from /dev/null | docker import - "$1"
        docker save "$1" | tar -x -C "$2"
        configuration=$(sed 's/.*"Config":"\([^"]*\)".*/\1/' "$2/manifest.json")
        sed -i "s/\"architecture\":\"[a-z0-9]*\"/\"architecture\":\"$3\"/" "$2/$configuration"
        sed -i "s|$1|$4|" "$2/manifest.json"
        rm -f "$2/repositories" "$2/index.json" "$2/oci-layout"
        tar -C "$2" -c . | docker load
        docker push --quiet "$4"
        docker image rm "$4"
    "#;
    run(Command::new("sh").args(["-c", script, "sh", &empty, &path, architecture, name]), LIMIT).ok();
}

#[test]
#[ignore = "needs a Docker engine and a bundle: KIND_BUNDLE=bundle KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_release_is_pushed_once_and_its_lists_are_made_when_each_architecture_is_there() {
    let version = bundled_version();
    let (version, minor) = (version.trim_start_matches('v'), minor_of(&version));
    let registry = Registry::plain(&session().dir.join("published"));
    let repository = format!("{}/kind", registry.host);
    let arch = docker(&["version", "--format", "{{.Server.Arch}}"]).ok();
    let other = if arch == "amd64" { "arm64" } else { "amd64" };

    let first = release(&[&repository, minor]);
    assert!(first.succeeded() && first.output().contains(&format!("{repository}:{version} waits for {other}")), "{first}");
    let pushed = tags(&registry);
    let [tag] = pushed.as_slice() else { panic!("one tag was expected: {pushed:?}") };
    assert!(tag.starts_with(&format!("{version}-")) && tag.ends_with(&format!("-{arch}")), "{tag}");

    // A machine of the other architecture has pushed its own.
    push_as(&format!("{repository}:{}", tag.replace(&arch, other)), other);
    let second = release(&[&repository, minor]);
    assert!(second.succeeded() && second.output().contains("was pushed already"), "{second}");
    assert!(!second.output().contains("committed in"), "it was baked again: {second}");
    // Not `latest`: that is the newest version's.
    let lists = [version.to_string(), format!("latest-{minor}")];
    assert_eq!(tags(&registry).iter().filter(|tag| !tag.ends_with("64")).collect::<Vec<_>>(), lists.iter().collect::<Vec<_>>());
    let joined = members(&format!("{repository}:{version}"));
    assert_eq!(joined.iter().map(|(architecture, _)| architecture.as_str()).collect::<Vec<_>>(), ["amd64", "arm64"]);
    assert!(joined[0].1 != joined[1].1 && joined == members(&format!("{repository}:latest-{minor}")), "{joined:?}");

    // What was published starts.
    let image = format!("{repository}:latest-{minor}");
    docker(&["pull", "--quiet", &image]).ok();
    drop(Cluster::ready_of(&image));
    docker(&["image", "rm", &image]).ok();
}

#[test]
#[ignore = "needs a Docker engine and a bundle: KIND_BUNDLE=bundle KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_registry_that_does_not_answer_is_no_reason_to_bake() {
    let version = bundled_version();
    let minor = minor_of(&version);
    let registry = Registry::plain(&session().dir.join("gone"));
    let repository = format!("{}/kind", registry.host);
    drop(registry);
    let outcome = release(&[&repository, minor]);
    let said = outcome.output();
    assert!(!outcome.succeeded() && said.contains("release: error:") && said.contains(&repository), "{outcome}");
    assert!(!said.contains("baking Kubernetes"), "{outcome}");
    for wrong in ["kind", "ghcr.io/you/kind:1.36"] {
        let outcome = release(&[wrong]);
        assert!(!outcome.succeeded() && outcome.stderr.contains(wrong), "{outcome}");
    }
}
