//! Files of the host: what a pod sees of them, and archives of images that are loaded before the cluster is ready.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::{shared, Cluster, BOOT_LIMIT, FAILED, KUBERNETES_READY, LIMIT, TIMELINE};
use crate::engine::{session, BUSYBOX};
use crate::process::{run, wait_for};

/// An empty directory of the host.
fn directory(name: &str) -> PathBuf {
    let directory = session().dir.join(name);
    std::fs::create_dir_all(&directory).expect("the session's directory can be written");
    directory
}

fn volume(directory: &Path, path: &str) -> String {
    format!("--volume={}:{path}:ro", directory.display())
}

/// Runs the image as soon as it is there: a pull would fail.
fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: web, image: '{image}', imagePullPolicy: Never}}]
"
    )
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn archives_of_images_are_loaded_before_manifests_are_applied() {
    let (images, manifests) = (directory("archives"), directory("manifests-of-archives"));
    let builder = shared();
    for name in ["plain:1", "compressed:1"] {
        builder.build(name, name).ok();
    }
    let plain = images.join("plain.tar").to_string_lossy().into_owned();
    builder.inner_docker(&["save", "--output", &plain, "plain:1"]).ok();
    let compressed = images.join("compressed.tar").to_string_lossy().into_owned();
    builder.inner_docker(&["save", "--output", &compressed, "compressed:1"]).ok();
    run(Command::new("gzip").arg(&compressed), LIMIT).ok();
    std::fs::write(images.join("SHA256SUMS"), "not an archive\n").expect("the session's directory can be written");
    for name in ["plain", "compressed"] {
        std::fs::write(manifests.join(format!("{name}.yaml")), pod(name, &format!("{name}:1"))).expect("it can be written");
    }
    let cluster = Cluster::ready(&[&volume(&images, "/kind/images"), &volume(&manifests, "/kind/manifests")]);
    for name in ["plain", "compressed"] {
        assert_eq!(cluster.field(&format!("pod/{name}"), "{.status.phase}"), "Running");
        cluster.inner_docker(&["run", "--rm", &format!("{name}:1"), "cat", "/www/index.html"]).ok();
    }
    let log = cluster.container.logs();
    assert!(log.contains("/kind/images/plain.tar loaded in ") && log.contains(": plain:1"), "{log}");
    assert!(log.contains("/kind/images/compressed.tar.gz loaded in "), "{log}");
    let timeline = cluster.file(TIMELINE).expect("it is always served");
    let position = |name: &str| timeline.lines().position(|line| line.ends_with(&format!(" {name}")));
    assert!(position("images").is_some() && position("images") < position("manifests"), "{timeline}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_file_that_is_no_archive_of_images_is_named_and_fails_the_boot() {
    let images = directory("no-archives");
    std::fs::write(images.join("app.tar"), "this is text\n".repeat(1000)).expect("the session's directory can be written");
    let cluster = Cluster::start(&[&volume(&images, "/kind/images")]);
    let why = wait_for("the boot fails", BOOT_LIMIT, || cluster.file(FAILED));
    for words in ["/kind/images/app.tar cannot be loaded", "docker save"] {
        assert!(why.contains(words), "{words} is not in: {why}");
    }
    assert!(!cluster.serves(KUBERNETES_READY));
}

/// What is `extraMounts` elsewhere.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_pod_sees_a_directory_of_the_host_that_is_mounted_into_the_container() {
    let sources = directory("sources");
    std::fs::write(sources.join("page"), "of the host\n").expect("the session's directory can be written");
    let cluster = Cluster::ready(&[&format!("--volume={}:/src", sources.display())]);
    cluster.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: reader}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: reader
    image: {BUSYBOX}
    command: [sh, -c, 'cat /src/page; echo of the pod >/src/answer; exec sleep 3600']
    volumeMounts: [{{name: src, mountPath: /src}}]
  volumes: [{{name: src, hostPath: {{path: /src, type: Directory}}}}]
"
    ));
    cluster.wait_for_pod(&["reader"]);
    wait_for("the pod's file on the host", LIMIT, || {
        std::fs::read_to_string(sources.join("answer")).ok().filter(|text| text == "of the pod\n")
    });
    cluster.wait_for_log("reader", "of the host");
    // What changes later is seen, too: it is the directory itself.
    std::fs::write(sources.join("page"), "changed\n").expect("the session's directory can be written");
    assert_eq!(cluster.in_pod("reader", &["cat", "/src/page"]).stdout, "changed\n");
}
