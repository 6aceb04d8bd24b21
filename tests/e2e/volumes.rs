//! A volume on /var/lib/docker that is not as a new one: used, or refused with a line that says why.

use crate::cluster::Cluster;
use crate::engine::{docker, tools, Container, Volume};
use crate::refusals::{assert_says, refused, refused_again};

const STORE: &str = "/var/lib/docker/kind/containerd";

/// A container that only holds a volume, after a script has written to it.
fn prepared(volume: &Volume, script: &str) -> Container {
    let holder = Container::idle(&[&volume.mount()], &["sleep", "infinity"]);
    holder.exec(&["sh", "-ec", script]).ok();
    holder
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_volume_of_another_image_is_refused_and_left_as_it_is() {
    let volume = Volume::create("other", &[]);
    let script =
        format!("mkdir -p {STORE} {STORE}/../hostpath && echo other-bake >{STORE}/kind-bake && echo data >{STORE}/../hostpath/data");
    let holder = prepared(&volume, &script);
    let all = ["sh", "-c", "cd /var/lib/docker && find . -exec stat -c '%n %Y %s' {} + && cat kind/hostpath/data"];
    let before = holder.exec(&all).ok();
    let mount = volume.mount();
    assert_says(&refused(&["--privileged", &mount]), &["another image", "other-bake", &tools().bake, "empty volume"]);
    assert_eq!(holder.exec(&all).ok(), before);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_half_written_volume_is_used() {
    let volume = Volume::create("half", &[]);
    // As a start that was cut short leaves it; an empty stamp is what a machine without power leaves.
    let script = format!(
        "mkdir -p {STORE}/io.containerd.metadata.v1.bolt {STORE}.new/io.containerd.content.v1.content/blobs {STORE}/../probe/merged {STORE}/../kubelet/pods/old
         head -c 1000 /dev/urandom >{STORE}/io.containerd.metadata.v1.bolt/meta.db
         ln -s /kind/store/nothing {STORE}.new/io.containerd.content.v1.content/blobs/sha256
         : >{STORE}/kind-bake"
    );
    let _holder = prepared(&volume, &script);
    let cluster = Cluster::ready(&[&volume.mount()]);
    cluster.build("on-it:1", "on a volume that was half written").ok();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_damaged_volume_is_refused() {
    for (name, damage) in [("empty", ": >$0"), ("noise", "head -c 65536 /dev/urandom >$0"), ("gone", "rm -f $0")] {
        let volume = Volume::create(name, &[]);
        let database = "io.containerd.metadata.v1.bolt/meta.db";
        let script = format!("mkdir -p {STORE}/{} && echo {} >{STORE}/kind-bake", "io.containerd.metadata.v1.bolt", tools().bake);
        let holder = prepared(&volume, &script);
        holder.exec(&["sh", "-ec", damage, &format!("{STORE}/{database}")]).ok();
        assert_says(&refused(&["--privileged", &volume.mount()]), &["damaged", database, "empty volume"]);
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_read_only_volume_is_refused() {
    let volume = Volume::create("read-only", &[]);
    assert_says(&refused(&["--privileged", &format!("{}:ro", volume.mount())]), &["/var/lib/docker", "Read-only", "docker run -v"]);
    let small = "--mount=type=tmpfs,destination=/var/lib/docker,tmpfs-size=1m";
    assert_says(&refused(&["--privileged", small]), &["/var/lib/docker", "full", "1 MiB", "docker run -v"]);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_volume_that_is_full_when_it_comes_back_is_refused_until_it_has_room() {
    let volume = Volume::create("full", &["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=300m"]);
    // Keeps what is on it while the other one does not run.
    let holder = prepared(&volume, "true");
    let cluster = Cluster::ready(&[&volume.mount()]);
    cluster.build("kept:1", "kept").ok();
    docker(&["stop", &cluster.container.id]).ok();
    let filled = holder.exec(&["dd", "if=/dev/zero", "of=/var/lib/docker/filler", "bs=1M"]);
    assert!(filled.output().contains("No space left"), "{filled}");
    assert_says(&refused_again(&cluster.container), &["/var/lib/docker", "full", "0 MiB"]);
    holder.exec(&["rm", "/var/lib/docker/filler"]).ok();
    cluster.container.start();
    cluster.wait_until_ready();
    cluster.inner_docker(&["image", "inspect", "kept:1"]).ok();
}
