//! `hooks/` and `images.sh` beside this file have run when the image was baked, and are gone.

use std::process::Command;

use crate::cluster::{shared, LIMIT};
use crate::engine::{docker, image, Container};
use crate::process::run_with_input;

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
    // The hook's own deployment is waited for like everything else that was baked.
    let ready = cluster.kubectl(&["-n", "from-hook", "get", "deployment", "web", "--output=jsonpath={.status.readyReplicas}"]).ok();
    assert_eq!(ready, "1");
    let address = cluster.kubectl(&["-n", "from-hook", "get", "pods", "--output=jsonpath={.items[*].status.podIP}"]).ok();
    let page = cluster.in_pod(cluster.client(), &["wget", "-q", "-T", "5", "-O", "-", &format!("http://{address}:8080/")]);
    assert_eq!(page.stdout, "from-hook\n", "{page}");
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
fn the_image_keeps_neither_the_scripts_nor_the_secret() {
    let secret = secret();
    for arguments in [["history", "--no-trunc", image()], ["image", "inspect", image()]] {
        assert!(!docker(&arguments).ok().contains(&secret), "the secret is in `docker {}`", arguments.join(" "));
    }
    let container = Container::create(&[image()]);
    for path in ["/hooks", "/images.sh", "/root/.docker"] {
        let copy = docker(&["cp", &format!("{}:{path}", container.id), "-"]);
        assert!(!copy.succeeded(), "the image still has {path}");
    }
    // A control beside each search: it would find what is there.
    assert!(holds(&container, "/root", "root/"), "the search of /root does not work");
    assert!(holds(&container, "/var/lib/from-hook", "before-cluster"), "the search of a file does not work");
    for path in ["/root", "/etc", "/var/lib/from-hook", "/kind/cluster.json"] {
        assert!(!holds(&container, path, &secret), "the secret is in {path}");
    }
}

/// Whether the tar of a path in the container holds a text.
fn holds(container: &Container, path: &str, text: &str) -> bool {
    let copy = Command::new("docker").args(["cp", &format!("{}:{path}", container.id), "-"]).output().expect("docker is there");
    assert!(copy.status.success(), "cannot copy {path}: {}", String::from_utf8_lossy(&copy.stderr));
    copy.stdout.windows(text.len()).any(|window| window == text.as_bytes())
}
