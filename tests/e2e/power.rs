//! The whole container, or a part of it, is killed in the middle of a boot.

use std::time::Instant;

use crate::cluster::{Cluster, BOOT_LIMIT, FAILED, KUBERNETES_READY};
use crate::engine::docker;
use crate::failures::{kill_at_once, VICTIMS};
use crate::process::poll;

const MOMENTS: u32 = 10;

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_container_that_is_killed_at_any_moment_of_its_boot_becomes_ready_at_the_next_start() {
    let cluster = Cluster::create(&[]);
    // How long a boot takes here.
    let started = Instant::now();
    cluster.container.start();
    cluster.wait_until_ready();
    let boot = started.elapsed();
    docker(&["kill", "--signal", "KILL", &cluster.container.id]).ok();
    for moment in 0..MOMENTS {
        // The first ones on a new volume, where the store is made; the others on one that comes back.
        let fresh = (moment < MOMENTS / 2).then(|| Cluster::create(&[]));
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

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn what_is_killed_while_the_cluster_boots_does_not_keep_it_from_becoming_ready() {
    let daemons = ["containerd", "dockerd", "kubelet"].map(|daemon| ("process", daemon));
    for (victim, process) in daemons.into_iter().chain(VICTIMS) {
        let cluster = Cluster::start(&[]);
        kill_at_once(&cluster, victim, process);
        let ready = cluster.ready_within(BOOT_LIMIT).unwrap_or_else(|why| panic!("{victim} {process} was killed in the boot: {why}"));
        println!("{victim} {process} was killed in the boot: ready {:.1} s later", ready.as_secs_f64());
        cluster.kubectl(&["get", "nodes"]).ok();
    }
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
