//! A volume on /var/lib/docker that is not as a new one: used, or refused with a line that says why.

use crate::cluster::{Cluster, DOCKER_READY, KUBERNETES_READY, LIMIT};
use crate::engine::{docker, tools, Container, Volume, BUSYBOX};
use crate::process::wait_for;
use crate::refusals::{assert_says, refused, refused_again};
use crate::watch::Watch;

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

/// What a claim of the first container's pods holds was gone when the second one had started.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_volume_in_use_is_refused_and_whoever_uses_it_notices_nothing() {
    let volume = Volume::create("shared", &[]);
    let mount = volume.mount();
    let first = Cluster::ready(&[&mount]);
    first.build("since:1", "built since").ok();
    first.apply(&format!(
        "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data}}
spec:
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 10Mi}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: writer}}
spec:
  containers:
  - name: writer
    image: {BUSYBOX}
    command: [sh, -c, 'echo kept >/data/file && exec sleep 3600']
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes:
  - name: data
    persistentVolumeClaim: {{claimName: data}}
"
    ));
    first.wait_for_pod(&["writer"]);
    let read = || first.in_pod("writer", &["cat", "/data/file"]).stdout;
    wait_for("what the pod writes", LIMIT, || (read() == "kept\n").then_some(()));

    let watches = [DOCKER_READY, KUBERNETES_READY].map(|state| Watch::new(&first, state));
    // Twice: the first one who is refused leaves nothing behind either. And as whoever mounts it by another way.
    let volumes_from = format!("--volumes-from={}", first.container.id);
    for arguments in [["--privileged", &mount], ["--privileged", &mount], ["--privileged", &volumes_from]] {
        assert_says(&refused(&arguments), &["/var/lib/docker is in use by another container", "volume of its own"]);
    }
    assert_eq!(read(), "kept\n");
    assert!(!watches.iter().any(Watch::was_lost), "the first one lost its readiness");
    assert_eq!(first.field("pod/writer", "{.status.containerStatuses[0].restartCount}"), "0");
    first.inner_docker(&["run", "--rm", "since:1", "true"]).ok();
    drop(watches);

    // Whoever is killed leaves no lock behind, and neither does one that is restarted.
    docker(&["kill", "--signal", "KILL", &first.container.id]).ok();
    let second = Cluster::ready(&[&mount]);
    second.inner_docker(&["run", "--rm", "since:1", "true"]).ok();
    assert_says(&refused_again(&first.container), &["in use by another container"]);
    docker(&["restart", "--time", "0", &second.container.id]).ok();
    second.wait_until_ready();
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
