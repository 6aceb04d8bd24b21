//! What a runner reads of an image before it starts it, and what people ask of one that is up.

use crate::cluster::{shared, Cluster, KUBERNETES_READY, LIMIT};
use crate::engine::{docker, image, session, Container};
use crate::process::wait_for;

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn the_image_tells_a_runner_what_it_needs_to_know() {
    let field = |template: &str| docker(&["image", "inspect", "--format", template, image()]).ok();
    assert_eq!(field("{{json .Config.ExposedPorts}}"), r#"{"10080/tcp":{},"10081/tcp":{},"2375/tcp":{},"2376/tcp":{},"8443/tcp":{}}"#);
    assert_eq!(field("{{json .Config.Volumes}}"), r#"{"/var/lib/docker":{}}"#);
    assert_eq!(field("{{.Config.StopSignal}} {{json .Config.Healthcheck.Test}}"), r#"SIGTERM ["CMD","kind","healthcheck"]"#);
    assert_eq!(field(r#"{{index .Config.Labels "org.opencontainers.image.title"}}"#), "kind");
    let version = field(r#"{{index .Config.Labels "org.opencontainers.image.version"}}"#);
    let container = Container::create(&[image()]);
    let file = session().dir.join("cluster-of-the-label.json");
    docker(&["cp", &format!("{}:/kind/cluster.json", container.id), &file.to_string_lossy()]).ok();
    let text = std::fs::read_to_string(file).expect("it was just copied");
    assert!(version.starts_with("v1.") && text.contains(&format!("\"kubernetesVersion\": \"{version}\"")), "{version}: {text}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn the_image_holds_what_a_job_needs_and_nothing_that_only_a_bake_does() {
    let job = Container::idle(&[], &["sleep", "infinity"]);
    for program in ["docker", "kubectl", "bash", "wait-for-kind.sh", "kind"] {
        job.exec(&["bash", "-c", &format!("command -v {program}")]).ok();
    }
    assert!(!job.exec(&["bash", "-c", "command -v kubeadm"]).succeeded());
    // Whoever passes the image on passes these on too.
    for package in ["bash", "iproute2", "openssl"] {
        job.exec(&["test", "-s", &format!("/usr/share/doc/{package}/copyright")]).ok();
    }
}

/// So that an engine downloads several side by side.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn no_layer_has_half_of_the_image_and_its_files_are_as_they_were() {
    let history = docker(&["history", "--human=false", "--format", "{{.Size}}", image()]).ok();
    let layers: Vec<u64> = history.lines().map(|line| line.parse().expect("it is a number of bytes")).collect();
    assert!(layers.iter().all(|layer| *layer < layers.iter().sum::<u64>() / 2), "{layers:?}");
    let job = Container::idle(&[], &["sleep", "infinity"]);
    // As tests/e2e/images.sh has made it.
    let find = |more: &[&str]| job.exec(&[&["find", "/kind/store", "-path", "*/fs/linked"], more].concat()).ok();
    assert!(find(&["-links", "2", "!", "-newermt", "2001-01-02"]).contains("/linked"), "{}", find(&["-ls"]));
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn status_names_the_pods_that_are_not_ready_and_why() {
    let cluster = shared();
    cluster.kubectl(&["run", "impossible", "--image=no-such-image:1", "--image-pull-policy=Never"]).ok();
    let status = wait_for("the status tells of it", LIMIT, || {
        let status = cluster.container.exec(&["kind", "status"]).ok();
        status.contains("ErrImageNeverPull").then_some(status)
    });
    cluster.kubectl(&["delete", "pod", "impossible", "--grace-period=0", "--force"]).ok();
    assert!(
        status.contains("default/impossible: container impossible: ErrImageNeverPull") && status.contains("no-such-image:1"),
        "{status}"
    );
    assert!(status.contains("kubernetes-ready  yes") && status.contains("api-server"), "{status}");
    // The control: without it, there is nothing to tell.
    wait_for("the status tells of it no more", LIMIT, || {
        (!cluster.container.exec(&["kind", "status"]).ok().contains("impossible")).then_some(())
    });
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_boot_that_hangs_says_what_it_waits_for() {
    let cluster = Cluster::create(&[]);
    let broken = session().dir.join("etcd.yaml");
    std::fs::write(&broken, "apiVersion: v1\nkind: Pod\nmetadata: {name: etcd}\nspec: {}\n")
        .expect("the session's directory can be written");
    cluster.container.copy_to(&broken, "/etc/kubernetes/manifests/etcd.yaml");
    cluster.container.start();
    let waiting = wait_for("it tells what it waits for", LIMIT, || cluster.file("waiting"));
    assert!(waiting.contains("the API server: no answer yet"), "{waiting}");
    let status = cluster.container.exec(&["kind", "status"]).ok();
    assert!(status.contains("kubernetes-ready  no") && status.contains("the API server: no answer yet"), "{status}");
    assert!(!cluster.serves(KUBERNETES_READY));
}
