//! The store that is linked and not copied: whatever Docker and kubelet do with baked images works on it.

use std::path::PathBuf;

use crate::cluster::{shared, Cluster, BOOT_LIMIT, KUBERNETES_READY, LIMIT};
use crate::engine::{docker, session, BUSYBOX};
use crate::process::{run_with_input, wait_for};

/// Layers whose lower directories lie in the image under test.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_new_layer_deletes_what_is_baked_for_docker_and_for_pods() {
    let cluster = shared();
    let dockerfile = format!("FROM {BUSYBOX}\nRUN rm /bin/vi && echo new >/new\n");
    let mut build = std::process::Command::new("docker");
    build.env("DOCKER_HOST", format!("tcp://127.0.0.1:{}", cluster.docker_port));
    run_with_input(build.args(["build", "--tag", "without:1", "-"]), &dockerfile, LIMIT).ok();
    let look = ["sh", "-c", "ls /bin/vi 2>/dev/null || cat /new"];
    assert_eq!(cluster.inner_docker(&[&["run", "--rm", "without:1"][..], &look].concat()).ok(), "new");
    // The baked image has it still.
    assert_eq!(cluster.inner_docker(&["run", "--rm", BUSYBOX, "ls", "/bin/vi"]).ok(), "/bin/vi");
    cluster.kubectl(&[&["run", "without", "--image=without:1", "--restart=Never", "--"][..], &look].concat()).ok();
    wait_for("the pod has run", LIMIT, || (cluster.field("pod/without", "{.status.phase}") == "Succeeded").then_some(()));
    assert_eq!(cluster.kubectl(&["logs", "without"]).ok(), "new");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_baked_image_is_saved_whole() {
    let cluster = shared();
    for image in [BUSYBOX, "deletes:1"] {
        let file: PathBuf = session().dir.join("saved.tar");
        cluster.inner_docker(&["save", "--output", &file.to_string_lossy(), image]).ok();
        let loaded = docker(&["load", "--quiet", "--input", &file.to_string_lossy()]).ok();
        assert!(loaded.contains(image), "{loaded}");
        let seen = docker(&["run", "--rm", image, "sh", "-c", "ls -d /bin/vi /deleted; ls /replaced"]);
        let expected = if image == BUSYBOX { "/bin/vi\n" } else { "/bin/vi\nabove\n" };
        assert_eq!(seen.stdout, expected, "{seen}");
    }
    docker(&["image", "rm", "deletes:1"]).ok();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn baked_images_survive_a_prune_and_what_was_built_does_not() {
    let cluster = Cluster::ready(&[]);
    let names = || {
        let list = cluster.inner_docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
        let mut names: Vec<String> = list.lines().map(str::to_string).collect();
        names.sort();
        names
    };
    let baked = names();
    assert!(baked.len() > 5, "{baked:?}");
    cluster.build("built:1", "one").ok();
    cluster.inner_docker(&["tag", "built:1", "from-images:1"]).ok();

    cluster.inner_docker(&["image", "rm", "--force", "deletes:1"]).ok();
    wait_for("the baked image that was removed is back", LIMIT, || names().contains(&"deletes:1".into()).then_some(()));
    let id = |image: &str| cluster.inner_docker(&["image", "inspect", "--format", "{{.Id}}", image]).ok();
    assert_eq!(id("from-images:1"), id("built:1"), "what the user has given a baked name keeps it");

    let keep_nothing = cluster.inner_docker(&["system", "prune", "--all", "--force"]);
    assert!(keep_nothing.succeeded(), "{keep_nothing}");
    wait_for("every baked image is back, and the built one is gone", LIMIT, || (names() == baked).then_some(()));
    assert_ne!(cluster.inner_docker(&["run", "--rm", "deletes:1", "ls", "/replaced"]).ok(), "");

    // Each is started anew from its image by kubelet, which must see it.
    for process in ["kube-scheduler", "kube-apiserver"] {
        cluster.kill(process);
        wait_for("the cluster notices", LIMIT, || (!cluster.serves(KUBERNETES_READY)).then_some(()));
        cluster.ready_within(BOOT_LIMIT).unwrap_or_else(|why| panic!("without {process}: {why}"));
    }
    // After a start, too, with the volume as the prune has left it.
    docker(&["restart", &cluster.container.id]).ok();
    cluster.wait_until_ready();
    assert_eq!(names(), baked);
}
