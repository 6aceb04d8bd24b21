//! `hooks/` and `images.sh` beside this file have run when the image was baked, and are gone.

use std::process::Command;
use std::time::Duration;

use crate::cluster::{shared, LIMIT};
use crate::engine::{docker, docker_within, image, session, Container};
use crate::process::{run_with_input, wait_for};
use crate::secrets;

/// For more than a gigabyte, on a machine that does other things besides.
const SAVE_LIMIT: Duration = Duration::from_secs(300);
/// A word of the hooks' comments.
const HOOK_TEXT: &str = "the-text-of-a-hook";
/// What the scripts have left in the image, to be found.
const KEPT: [&str; 7] =
    ["kept-as-it-is", "kept-in-gzip", "kept-in-zstd", "kept-in-base64", "kept-in-a-tar", "kept-in-a-layer", "kept-in-a-secret"];

/// What the bake was given with `--env KIND_TEST_SECRET`.
fn secret() -> String {
    std::env::var("KIND_TEST_SECRET").expect("KIND_TEST_SECRET is not set: give the value that the image was baked with")
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn both_hooks_have_run_and_got_the_value_that_was_passed() {
    let cluster = shared();
    let ran = cluster.container.exec(&["cat", "/var/lib/from-hook"]).ok();
    assert_eq!(ran, "before-cluster\nafter-cluster", "which hooks ran, in their order");
    let there = cluster.kubectl(&["-n", "from-hook", "get", "configmap", "values", "--output=jsonpath={.data.secret-sha256}"]).ok();
    let digest = run_with_input(&mut Command::new("sha256sum"), &secret(), LIMIT).ok();
    assert_eq!(Some(there.as_str()), digest.split(' ').next());
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn an_image_of_images_sh_is_there_for_docker_and_for_pods() {
    let cluster = shared();
    cluster.inner_docker(&["run", "--rm", "from-images:1", "true"]).ok();
    // The hook's own deployment is waited for like everything else that was baked: its pod. The deployment's status follows.
    let ready = r#"--output=jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#;
    assert_eq!(cluster.kubectl(&["-n", "from-hook", "get", "pods", ready]).ok(), "True");
    let address = cluster.kubectl(&["-n", "from-hook", "get", "pods", "--output=jsonpath={.items[*].status.podIP}"]).ok();
    let page = cluster.in_pod(cluster.client(), &["wget", "-q", "-T", "5", "-O", "-", &format!("http://{address}:8080/")]);
    assert_eq!(page.stdout, "from-hook\n", "{page}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_baked_pod_is_probed_every_second_and_what_made_it_is_as_it_was() {
    let of_probe = |object: &str, spec: &str| {
        let probe = format!("--output=jsonpath={{{spec}.containers[0].readinessProbe['periodSeconds','failureThreshold']}}");
        shared().kubectl(&["-n", "from-hook", "get", object, &probe]).ok()
    };
    assert_eq!(of_probe("pods", ".items[*].spec"), "1 30");
    assert_eq!(of_probe("deployment/web", ".spec.template.spec"), "10 3");
    // Whose ReplicaSet has kept it.
    let owner = "--output=jsonpath={.items[*].metadata.ownerReferences[0].name}";
    let sets = "--output=jsonpath={.items[*].metadata.name}";
    assert_eq!(
        shared().kubectl(&["-n", "from-hook", "get", "pods", owner]).ok(),
        shared().kubectl(&["-n", "from-hook", "get", "replicasets", sets]).ok()
    );
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn an_operator_that_elects_a_leader_finds_no_lease_of_the_bake() {
    let leases = shared().kubectl(&["-n", "from-hook", "get", "leases", "--output=name"]).ok();
    assert_eq!(leases, "lease.coordination.k8s.io/data", "a lease that no pod holds is somebody's data");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn what_a_baked_layer_deletes_stays_deleted() {
    // The outer image can carry neither whiteouts nor opaque directories.
    let cluster = shared();
    let seen = cluster.inner_docker(&["run", "--rm", "deletes:1", "sh", "-c", "ls -d /deleted; ls /replaced"]);
    assert_eq!(seen.stdout, "above\n", "{seen}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn an_image_that_buildkit_made_in_the_bake_runs_and_is_built_upon() {
    let cluster = shared();
    cluster.inner_docker(&["run", "--rm", "buildkit:1", "grep", "-q", "a-layer", "/kept"]).ok();
    let context = session().dir.join("upon");
    std::fs::create_dir_all(&context).expect("the session's directory can be written");
    std::fs::write(context.join("Dockerfile"), "FROM buildkit:1\nRUN rm /numbers && test -s /kept\n").expect("it can be written");
    cluster.inner_docker(&["build", "--tag", "upon:1", &context.to_string_lossy()]).ok();
    cluster.inner_docker(&["run", "--rm", "upon:1", "test", "!", "-e", "/numbers"]).ok();
    cluster.kubectl(&["run", "buildkit", "--image=buildkit:1", "--restart=Never", "--command", "--", "test", "-s", "/kept"]).ok();
    wait_for("the pod has run", LIMIT, || (cluster.field("pod/buildkit", "{.status.phase}") == "Succeeded").then_some(()));
    cluster.kubectl(&["delete", "pod", "buildkit"]).ok();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn the_image_keeps_neither_the_scripts_nor_any_secret_of_theirs() {
    let secret = secret();
    for arguments in [["history", "--no-trunc", image()], ["image", "inspect", image()]] {
        assert!(!docker(&arguments).ok().contains(&secret), "the secret is in `docker {}`", arguments.join(" "));
    }
    let container = Container::create(&[image()]);
    for path in ["/hooks", "/images.sh", "/root/.docker", "/root/.netrc", "/tmp/token"] {
        let copy = docker(&["cp", &format!("{}:{path}", container.id), "-"]);
        assert!(!copy.succeeded(), "the image still has {path}");
    }
    let saved = session().dir.join("image.tar");
    docker_within(SAVE_LIMIT, &["save", "--output", &saved.to_string_lossy(), image()]).ok();
    let mut marks = secrets::forms("e2e", &secret);
    marks.push((HOOK_TEXT.into(), HOOK_TEXT.into()));
    marks.extend(KEPT.map(|kept| (kept.into(), kept.into())));
    let found = secrets::search(&saved, &marks);
    std::fs::remove_file(&saved).expect("it was just made");
    // The control: what the scripts have kept is found in each form that a secret might have.
    for kept in KEPT {
        assert!(found.iter().any(|(what, _)| what == kept), "the search does not find what is {kept}: {found:#?}");
    }
    let leaked: Vec<_> = found.iter().filter(|(what, _)| !KEPT.contains(&what.as_str())).collect();
    assert!(leaked.is_empty(), "the image holds secrets of its bake: {leaked:#?}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn containerds_configuration_is_in_the_form_that_it_wants() {
    let cluster = shared();
    let wanted = cluster.container.exec(&["containerd", "config", "default"]).ok();
    let version = |text: &str| text.lines().find(|line| line.starts_with("version = ")).map(str::to_string);
    let ours = cluster.container.exec(&["cat", "/run/kind/containerd.toml"]).ok();
    assert_eq!(version(&ours), version(&wanted));
    let log = cluster.container.exec(&["cat", "/var/log/kind/containerd.log"]).ok();
    for complaint in ["migrated", "is deprecated, please use", "Ignoring unknown key"] {
        assert!(!log.contains(complaint), "containerd complains about its configuration: {log}");
    }
    // What it has made of it: the pause image and the registries' directory have arrived.
    let used = cluster.container.exec(&["containerd", "--config", "/run/kind/containerd.toml", "config", "dump"]).ok();
    for words in ["registry.k8s.io/pause:", "/run/kind/certs.d", "tolerate_missing_hugetlb_controller = true"] {
        assert!(used.contains(words), "{words} is not in: {used}");
    }
}
