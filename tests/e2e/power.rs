//! The whole container, or a part of it, is killed in the middle of a boot.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, BOOT_LIMIT, FAILED, KUBERNETES_READY};
use crate::engine::{docker, Container, Volume};
use crate::failures::{kill_at_once, VICTIMS};
use crate::process::{poll, wait_for};
use crate::start::{on_both_starts, Start};

const MOMENTS: u32 = 10;

fn a_container_that_is_killed_at_any_moment_of_its_boot_becomes_ready_at_the_next_start(start: Start) {
    let cluster = start.create(&[]);
    // How long a boot takes here.
    let started = Instant::now();
    cluster.container.start();
    cluster.wait_until_ready();
    let boot = started.elapsed();
    docker(&["kill", "--signal", "KILL", &cluster.container.id]).ok();
    for moment in 0..MOMENTS {
        // The first ones on a new volume, where the store is made; the others on one that comes back.
        let fresh = (moment < MOMENTS / 2).then(|| start.create(&[]));
        let cluster = fresh.as_ref().unwrap_or(&cluster);
        let after = boot * moment / MOMENTS;
        cluster.container.start();
        let ready_before = poll(after, || cluster.serves(KUBERNETES_READY).then_some(())).is_some();
        docker(&["kill", "--signal", "KILL", &cluster.container.id]).ok();
        assert_eq!(cluster.container.inspect("{{.State.ExitCode}}"), "137");
        cluster.container.start();
        let ready =
            cluster.ready_within(BOOT_LIMIT).unwrap_or_else(|why| panic!("killed {:.1} s after its start: {why}", after.as_secs_f64()));
        println!(
            "killed {:.1} s after its start{}: ready {:.1} s after the next",
            after.as_secs_f64(),
            if ready_before { " (ready)" } else { "" },
            ready.as_secs_f64()
        );
        assert!(!cluster.serves(FAILED));
        cluster.kubectl(&["get", "nodes"]).ok();
        docker(&["kill", "--signal", "KILL", &cluster.container.id]).ok();
    }
}

/// The records of containers as a kill leaves them between two writes of containerd's: its CRI part then
/// keeps the names of containers that it can tell nothing of.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_start_that_finds_half_made_containers_becomes_ready_with_the_images_built_since() {
    const CRI: &str = "/var/lib/docker/kind/containerd/io.containerd.grpc.v1.cri";
    let volume = Volume::create("cut", &[]);
    let cluster = Cluster::ready(&[&volume.mount()]);
    let built = |tag: &str| cluster.build(&format!("since:{tag}"), tag).ok();
    built("0");
    cluster.inner_docker(&["run", "--detach", "--name", "of-docker", "since:0"]).ok();
    for (number, (what, damage)) in [
        ("a container without its status", "rm $0/containers/*/status"),
        ("an empty status", "for status in $0/containers/*/status; do : >$status; done"),
        ("containers and sandboxes without their directories", "rm -r $0/containers/* $0/sandboxes/*"),
    ]
    .into_iter()
    .enumerate()
    {
        docker(&["kill", "--signal", "KILL", &cluster.container.id]).ok();
        let holder = Container::idle(&[&volume.mount()], &["sleep", "infinity"]);
        holder.exec(&["sh", "-ec", damage, CRI]).ok();
        drop(holder);
        cluster.container.start();
        cluster.ready_within(BOOT_LIMIT).unwrap_or_else(|why| panic!("{what}: {why}"));
        for tag in 0..=number {
            cluster.inner_docker(&["run", "--rm", &format!("since:{tag}"), "true"]).ok();
        }
        built(&(number + 1).to_string());
        let of_docker = cluster.inner_docker(&["ps", "--all", "--format", "{{.Names}}"]).ok();
        assert!(of_docker.lines().any(|name| name == "of-docker"), "{what}: Docker's own containers are kept: {of_docker}");
    }
    cluster.kubectl(&["run", "of-kubelet", "--image=since:0"]).ok();
    cluster.wait_for_pod(&["of-kubelet"]);
}

fn what_is_killed_while_the_cluster_boots_does_not_keep_it_from_becoming_ready(start: Start) {
    let daemons = ["containerd", "dockerd", "kubelet"].map(|daemon| ("process", daemon));
    for (victim, process) in daemons.into_iter().chain(VICTIMS) {
        let cluster = start.create(&[]);
        cluster.container.start();
        kill_at_once(&cluster, victim, process);
        let ready = cluster.ready_within(BOOT_LIMIT).unwrap_or_else(|why| panic!("{victim} {process} was killed in the boot: {why}"));
        println!("{victim} {process} was killed in the boot: ready {:.1} s later", ready.as_secs_f64());
        cluster.kubectl(&["get", "nodes"]).ok();
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_container_that_is_paused_in_its_boot_for_longer_than_its_limit_is_ready_after_all() {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let cluster = Cluster::start(&["--env", &format!("KIND_READY_TIMEOUT={}", TIMEOUT.as_secs())]);
    // runc does not freeze a cgroup of version 1 in which processes are started faster than it looks.
    wait_for("the container is paused", BOOT_LIMIT, || docker(&["pause", &cluster.container.id]).succeeded().then_some(()));
    std::thread::sleep(TIMEOUT + Duration::from_secs(5));
    docker(&["unpause", &cluster.container.id]).ok();
    wait_for("ready after all", BOOT_LIMIT, || cluster.serves(KUBERNETES_READY).then_some(()));
    assert!(!cluster.serves(FAILED));
}

/// The negative control: a limit that is too short is noticed, and forgiven when the cluster is ready after all.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_cluster_that_is_late_has_failed_until_it_is_ready() {
    let cluster = Cluster::create(&["--env", "KIND_READY_TIMEOUT=1"]);
    cluster.hold();
    cluster.container.start();
    let why = wait_for("the boot is late", BOOT_LIMIT, || cluster.file(FAILED));
    cluster.let_go();
    assert!(why.contains("has not been ready for 1 s, waiting for"), "{why}");
    wait_for("ready after all", BOOT_LIMIT, || cluster.serves(KUBERNETES_READY).then_some(()));
    assert!(!cluster.serves(FAILED));
    docker(&["stop", &cluster.container.id]).ok();
    assert_eq!(cluster.container.inspect("{{.State.ExitCode}}"), "0", "it has not failed after all");
}

/// The negative control of "a panic ends the container": a key that is not the certificate's makes rustls panic.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_panic_ends_the_container_with_a_message() {
    let cluster = Cluster::create(&[]);
    cluster.put("/kind/credentials/client.key", &crate::certificates::new_key());
    cluster.container.start();
    let status = poll(BOOT_LIMIT, || {
        (cluster.container.inspect("{{.State.Running}}") == "false").then(|| cluster.container.inspect("{{.State.ExitCode}}"))
    });
    assert_eq!(status.as_deref(), Some("101"), "{}", cluster.container.logs());
    let log = cluster.container.logs();
    assert_eq!(log.lines().filter(|line| line.contains("internal error, please report it")).count(), 1, "{log}");
}

on_both_starts! {
    a_container_that_is_killed_at_any_moment_of_its_boot_becomes_ready_at_the_next_start
    what_is_killed_while_the_cluster_boots_does_not_keep_it_from_becoming_ready
}
