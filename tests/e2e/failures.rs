//! What is true no longer is not said any longer, and what died comes back.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, DOCKER_READY, KUBERNETES_READY, LIMIT};
use crate::engine::BUSYBOX;
use crate::process::wait_for;
use crate::watch::Watch;

/// Within which a state that is not true must be gone.
const TRUTH_LIMIT: Duration = Duration::from_secs(5);

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_system_pod_that_dies_takes_kubernetes_ready_away_until_it_runs_again() {
    let cluster = Cluster::ready(&[]);
    // One that is a static pod, and one that is not.
    for process in ["kube-scheduler", "kube-proxy"] {
        let watch = Watch::new(&cluster, KUBERNETES_READY);
        let docker = Watch::new(&cluster, DOCKER_READY);
        let killed = Instant::now();
        cluster.kill(process);
        let lost = watch.lost(killed, TRUTH_LIMIT);
        watch.back(lost, LIMIT);
        assert!(!docker.was_lost(), "Docker has nothing to do with {process}");
        cluster.container.exec(&["pgrep", "-x", process]).ok();
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_daemon_that_is_killed_comes_back_and_readiness_follows() {
    let cluster = Cluster::ready(&[]);
    for (daemon, states) in [("dockerd", &[DOCKER_READY, KUBERNETES_READY][..]), ("kubelet", &[KUBERNETES_READY]), ("containerd", &[])] {
        let before = pid(&cluster, daemon).unwrap_or_else(|| panic!("there is no {daemon}"));
        let watches: Vec<Watch> = states.iter().map(|state| Watch::new(&cluster, state)).collect();
        let killed = Instant::now();
        cluster.kill(daemon);
        for watch in watches {
            let lost = watch.lost(killed, TRUTH_LIMIT);
            watch.back(lost, LIMIT);
        }
        wait_for(&format!("a new {daemon}"), LIMIT, || pid(&cluster, daemon).filter(|now| *now != before));
        wait_for(&format!("readiness after {daemon} was killed"), LIMIT, || {
            [DOCKER_READY, KUBERNETES_READY].iter().all(|state| cluster.serves(state)).then_some(())
        });
        let log = cluster.container.logs();
        let told = log.lines().filter(|line| line.starts_with("WARN") && line.contains(&format!("[{daemon}]"))).count();
        assert_eq!(told, 1, "one line says that {daemon} died:\n{log}");
        use_it(&cluster, daemon);
    }
}

fn pid(cluster: &Cluster, daemon: &str) -> Option<String> {
    cluster.container.exec(&["pgrep", "-o", "-x", daemon]).stdout.lines().next().map(str::to_string)
}

/// Builds an image and runs it as a pod, and shows that a pod which ran all the while still does.
fn use_it(cluster: &Cluster, after: &str) {
    let name = format!("after-{after}");
    // containerd answers a moment after its process is there, and dockerd finds it a moment later.
    wait_for(&format!("a build after {after} was killed"), LIMIT, || cluster.build(&format!("{name}:1"), after).succeeded().then_some(()));
    cluster.kubectl(&["run", &name, &format!("--image={name}:1")]).ok();
    cluster.wait_for_pod(&[&name]);
    cluster.inner_docker(&["run", "--rm", BUSYBOX, "true"]).ok();
    let restarts = cluster.kubectl(&["get", "pods", "--output=jsonpath={.items[*].status.containerStatuses[*].restartCount}"]).ok();
    assert!(restarts.split(' ').all(|count| count == "0"), "pods were restarted with {after}: {restarts}");
}
