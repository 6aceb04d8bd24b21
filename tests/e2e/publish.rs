//! scripts/release.sh: publishes to a registry on this machine, goes on where it stopped, and joins architectures.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::bake::{bundle, bundled_version, minor_of, with_lab_images};
use crate::cluster::Cluster;
use crate::engine::{docker, docker_within, session, tools};
use crate::process::{run, run_with_input, Outcome};
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

    let sboms = session().dir.join("sboms");
    let first = release(&["--sboms", &sboms.to_string_lossy(), &repository, minor]);
    assert!(first.succeeded() && first.output().contains(&format!("{repository}:{version} waits for {other}")), "{first}");
    let pushed = tags(&registry);
    let [tag, lasting] = pushed.as_slice() else { panic!("two tags were expected: {pushed:?}") };
    let (tag, lasting) = if tag.len() < lasting.len() { (tag, lasting) } else { (lasting, tag) };
    let start = tag.strip_suffix(&format!("-{arch}")).expect("it ends with the architecture");
    assert!(start.starts_with(&format!("{version}-")) && lasting.starts_with(&format!("{start}-")), "{pushed:?}");
    for name in [tag, lasting] {
        assert!(first.output().contains(&format!("pushed {repository}:{name}@sha256:")), "{first}");
    }
    let sbom = std::fs::read_to_string(sboms.join(format!("kind-{version}-{arch}.cdx.json"))).expect("the list of its contents is there");
    for part in
        ["\"bomFormat\": \"CycloneDX\"", "pkg:deb/debian/bash@", &format!("pkg:golang/k8s.io/kubernetes@v{version}"), "pkg:cargo/nix@"]
    {
        assert!(sbom.contains(part), "{part} is not in {sbom}");
    }

    // A machine of the other architecture has pushed its own.
    push_as(&format!("{repository}:{}", tag.replace(&arch, other)), other);
    let second = release(&[&repository, minor]);
    assert!(second.succeeded() && second.output().contains("was pushed already"), "{second}");
    assert!(!second.output().contains("committed in"), "it was baked again: {second}");
    // Not `latest`: that is the newest version's.
    let made = || tags(&registry).into_iter().filter(|tag| !tag.ends_with("64")).collect::<Vec<_>>();
    let dated = made().into_iter().find(|tag| tag.starts_with(&format!("{version}-2"))).expect("a list has the date");
    assert!(dated[version.len() + 1..].len() == 8, "{dated}");
    let mut lists = vec![minor.to_string(), version.to_string(), dated.clone(), format!("latest-{minor}")];
    lists.sort();
    assert_eq!(made(), lists);
    for list in &lists {
        assert!(second.output().contains(&format!("published {repository}:{list}@sha256:")), "{list}: {second}");
    }
    let joined = members(&format!("{repository}:{version}"));
    assert_eq!(joined.iter().map(|(architecture, _)| architecture.as_str()).collect::<Vec<_>>(), ["amd64", "arm64"]);
    assert!(joined[0].1 != joined[1].1 && joined == members(&format!("{repository}:latest-{minor}")), "{joined:?}");

    // Nothing has changed since.
    let third = release(&[&repository, minor]);
    assert!(third.succeeded() && third.output().contains(&format!("{repository}:{version} is up to date")), "{third}");

    // What was published starts, and says what it is.
    let image = format!("{repository}:latest-{minor}");
    docker_within(LIMIT, &["pull", "--quiet", &image]).ok();
    let label = |name| {
        docker(&["image", "inspect", "--format", &format!("{{{{index .Config.Labels \"org.opencontainers.image.{name}\"}}}}"), &image]).ok()
    };
    assert!(label("created").starts_with("20") && label("licenses").contains("Apache-2.0"), "{} {}", label("created"), label("licenses"));
    assert!(label("revision").len() >= 40 && !label("base.name").is_empty(), "{} {}", label("revision"), label("base.name"));
    drop(Cluster::ready_of(&image));
    docker(&["image", "rm", &image]).ok();
}

#[test]
#[ignore = "needs a Docker engine and a bundle: KIND_BUNDLE=bundle KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn another_base_image_or_package_is_a_reason_to_bake_again() {
    let contents = |base: Option<&str>| {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("build.sh"));
        with_lab_images(&mut command).args(["--print-contents", "--bundle"]).arg(bundle());
        if let Some(base) = base {
            command.env("DEBIAN_IMAGE", base);
        }
        let outcome = run(&mut command, LIMIT);
        assert!(outcome.succeeded() && outcome.stdout.contains("\nbash\t"), "{outcome}");
        outcome.stdout
    };
    let before = contents(None);
    assert_eq!(contents(None), before);
    let base =
        before.lines().find_map(|line| line.split_once(' ').filter(|(name, _)| name.contains("debian"))).expect("it names its base").0;
    let newer = format!("kind-e2e-{}:newer", std::process::id());
    let dockerfile = format!("FROM {base}\nRUN sed -i '/^Package: bash$/,/^$/s/^Version: .*/Version: 99/' /var/lib/dpkg/status\n");
    run_with_input(Command::new("docker").args(["build", "--tag", &newer, "-"]), &dockerfile, LIMIT).ok();
    let after = contents(Some(&newer));
    docker(&["image", "rm", &newer]);
    assert!(after.contains("bash\t99") && !before.contains("bash\t99"), "{after}");
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
