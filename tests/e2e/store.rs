//! The store that is linked and not copied: whatever Docker and kubelet do with baked images works on it.

use std::path::PathBuf;

use crate::cluster::{shared, Cluster, LIMIT};
use crate::engine::{docker, session, BUSYBOX};
use crate::image_names::settled_names;
use crate::process::{run_with_input, wait_for};
use crate::watch::kill_and_wait;

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
    let baked = settled_names(&cluster.container);
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
        kill_and_wait(&cluster, process);
    }
    // After a start, too, with the volume as the prune has left it.
    docker(&["restart", &cluster.container.id]).ok();
    cluster.wait_until_ready();
    assert_eq!(settled_names(&cluster.container), baked);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn layers_of_kubernetes_are_in_the_image_once() {
    let megabytes = |directory: &str| {
        let said = shared().container.exec(&["du", "-sm", &format!("/kind/store/io.containerd.{directory}")]).ok();
        said.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or_else(|| panic!("{said}"))
    };
    let (archives, unpacked) = (megabytes("content.v1.content"), megabytes("snapshotter.v1.overlayfs"));
    assert!(unpacked > 100, "the test is void: {unpacked} MB of layers");
    assert!(archives < unpacked / 10, "{archives} MB of archives beside {unpacked} MB of layers");
}

/// Kubernetes' own images, of whose layers the image has no archives.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn pods_and_builds_of_kubernetes_images_outlive_a_restart_a_kill_and_a_prune() {
    let cluster = Cluster::ready(&[]);
    let scheduler = ["get", "pods", "--namespace=kube-system", "--selector=component=kube-scheduler"];
    let image = cluster.kubectl(&[&scheduler[..], &["--output=jsonpath={.items[0].spec.containers[0].image}"]].concat()).ok();
    let version_in_pod = |name: &str, image: &str| {
        let run = ["run", name, &format!("--image={image}"), "--restart=Never", "--command", "--", "kube-scheduler", "--version"];
        cluster.kubectl(&run).ok();
        wait_for(&format!("{name} has run {image}"), LIMIT, || {
            (cluster.field(&format!("pod/{name}"), "{.status.phase}") == "Succeeded").then_some(())
        });
        assert!(cluster.kubectl(&["logs", name]).ok().contains("Kubernetes v"));
    };
    let everything = |round: &str| {
        version_in_pod(&format!("own-{round}"), &image);
        for (builder, value) in [("legacy", 0), ("buildkit", 1)] {
            let built = format!("{builder}:{round}");
            let build = format!(
                r#"printf 'FROM {image}\nRUN ["kube-scheduler", "--version"]\n' |
                docker build --quiet --no-cache --tag {built} -"#
            );
            cluster.container.exec(&["env", &format!("DOCKER_BUILDKIT={value}"), "bash", "-euc", &build]).ok();
            let ran = cluster.inner_docker(&["run", "--rm", &built, "kube-scheduler", "--version"]);
            assert!(ran.stdout.contains("Kubernetes v"), "{round}: {ran}");
            version_in_pod(&format!("{builder}-{round}"), &built);
        }
    };
    everything("first");
    let keep_nothing = cluster.inner_docker(&["system", "prune", "--all", "--force", "--volumes"]);
    assert!(keep_nothing.succeeded(), "{keep_nothing}");
    everything("pruned");
    kill_and_wait(&cluster, "containerd");
    // dockerd takes a moment more to connect to the new one.
    wait_for("a container", LIMIT, || cluster.inner_docker(&["run", "--rm", BUSYBOX, "true"]).succeeded().then_some(()));
    everything("killed");
    docker(&["restart", &cluster.container.id]).ok();
    cluster.wait_until_ready();
    everything("restarted");
}
