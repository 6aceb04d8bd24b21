//! When something dies, its state is withdrawn, and it comes back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::api::Api;
use crate::cluster::{Cluster, BOOT_LIMIT, DOCKER_READY, FAILED, KUBERNETES_READY, LIMIT};
use crate::engine::{docker, session, BUSYBOX};
use crate::process::wait_for;
use crate::restore::restored_with_programs;
use crate::start::{on_both_starts, Start};
use crate::watch::Watch;

/// How soon a state that is no longer true must be withdrawn.
const TRUTH_LIMIT: Duration = Duration::from_secs(5);

/// Fails the first call of the network plugin for a pod, and notes when the first and the next came.
const FAILING_PLUGIN: &str = "#!/bin/sh
pod=${CNI_ARGS##*K8S_POD_NAME=}
if [ \"$CNI_COMMAND\" = ADD ]; then
    mkdir \"/run/failed-${pod%%;*}\" && exit 4
    mkdir \"/run/again-${pod%%;*}\"
fi 2>/dev/null
exec /opt/cni/bin/real-bridge
";

/// kubelet itself would wait 10 to 15 s.
fn a_pod_whose_network_fails_once_is_tried_again_a_moment_later(start: Start) {
    let cluster = start.create(&[]);
    let real = session().dir.join("real-bridge");
    docker(&["cp", &format!("{}:/opt/cni/bin/bridge", cluster.container.id), &real.to_string_lossy()]).ok();
    cluster.container.copy_to(&real, "/opt/cni/bin/real-bridge");
    cluster.put_program("/opt/cni/bin/bridge", FAILING_PLUGIN);
    cluster.container.start();
    cluster.wait_until_ready();
    let waits = "for failed in /run/failed-*; do
        echo $(($(stat -c %Y /run/again-${failed#/run/failed-}) - $(stat -c %Y $failed)))
    done";
    let waits = cluster.container.exec(&["sh", "-c", waits]).ok();
    let seconds: Vec<u32> = waits.lines().map(|line| line.parse().expect("it is a number")).collect();
    assert!(!seconds.is_empty() && seconds.iter().all(|seconds| *seconds < 8), "{seconds:?}");
    let arguments = ["get", "pods", "--all-namespaces", "--output=jsonpath={.items[*].metadata.annotations}"];
    wait_for("the annotations' removal", LIMIT, || (!cluster.kubectl(&arguments).ok().contains("kind-init/probe")).then_some(()));
}

/// Follows every pod from the API server's first answer on: what kubelet was asked, and whether a container runs and is ready.
const FOLLOW: &str = "until kubectl get --raw /readyz; do sleep 0.02; done >/dev/null 2>&1
exec kubectl get pods --all-namespaces --watch --output \\
    'jsonpath={.metadata.name}|{.metadata.annotations.kind-init/probe}|{.status.containerStatuses[*].state.running}|{.status.containerStatuses[*].ready}{\"\\n\"}' >/run/followed";

/// It would look again after the probe's own period, of a second or more. A pod that is ready at its first probe needs nothing,
/// which is how a start goes now and then, and most cold ones.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn kubelet_is_asked_to_probe_a_pod_that_runs_before_its_time() {
    let starts: Vec<String> = (0..5).map_while(|_| was_not_asked_to_probe()).collect();
    assert!(starts.len() < 5, "{}", starts.join("\n"));
}

/// What was seen of the pods in a start in which kubelet was not asked to probe any of them.
fn was_not_asked_to_probe() -> Option<String> {
    let cluster = Start::Restored.create(&[]);
    cluster.container.start();
    docker(&["exec", "--detach", "--env=KUBECONFIG=/kind/credentials/config", &cluster.container.id, "sh", "-c", FOLLOW]).ok();
    cluster.wait_until_ready();
    let followed = cluster.container.exec(&["cat", "/run/followed"]).ok();
    let mut known = BTreeSet::new();
    // What it was asked before the container ran was to start it.
    let was_asked = followed.lines().any(|line| {
        let fields: Vec<&str> = line.split('|').collect();
        let is_new = known.insert((fields[0], fields[1]));
        is_new && !fields[1].is_empty() && !fields[2].is_empty() && fields[3] == "false"
    });
    (!was_asked).then(|| followed.clone())
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_system_pod_that_dies_withdraws_kubernetes_ready_until_it_runs_again() {
    let cluster = Cluster::ready(&[]);
    // A static pod, and one of a DaemonSet.
    for process in ["kube-scheduler", "kube-proxy"] {
        settle(&cluster);
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

fn a_daemon_that_is_killed_comes_back_and_readiness_follows(start: Start) {
    let cluster = start.ready(&[]);
    let both = &[DOCKER_READY, KUBERNETES_READY][..];
    for (daemon, states) in [("dockerd", both), ("kubelet", &[KUBERNETES_READY]), ("containerd", both)] {
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
        assert_eq!(told, 1, "not exactly one line says that {daemon} died:\n{log}");
        use_it(&cluster, daemon);
    }
}

/// Has the containers of restored programs wait until the test lets them run.
const HOLDING_CRUN: &str = "#!/bin/sh
for argument in \"$@\"; do
    if grep -q '\"stand-in\"' \"$argument/config.json\"; then
        until [ -e /run/let-them ]; do sleep 0.1; done
    fi
done 2>/dev/null
exec /usr/bin/crun \"$@\"
";

/// Without a container, neither kubelet nor the kernel can tell.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_restored_program_that_dies_before_it_has_a_container_withdraws_kubernetes_ready() {
    let cluster = restored_with_programs(&["/usr/local/sbin/crun"], HOLDING_CRUN);
    cluster.wait_until_ready();
    let watch = Watch::new(&cluster, KUBERNETES_READY);
    assert!(!cluster.container.exec(&["pgrep", "-f", "^/usr/local/bin/kind stand-in"]).succeeded(), "the test is void");
    let killed = Instant::now();
    cluster.kill("kube-scheduler");
    let lost = watch.lost(killed, TRUTH_LIMIT);
    cluster.container.exec(&["touch", "/run/let-them"]).ok();
    watch.back(lost, BOOT_LIMIT);
    assert_eq!(cluster.container.exec(&["pgrep", "-x", "-c", "kube-scheduler"]).stdout.trim(), "1");
}

/// Kills processes of the control plane, and shims, whose pods die with them. kubelet restarts them. Each victim has a
/// cluster of its own: after a restart kubelet reports pods in several steps, which must not be taken for the next one's.
fn a_control_plane_or_a_shim_that_is_killed_comes_back_and_readiness_follows(start: Start) {
    for (victim, process) in VICTIMS {
        let cluster = settled(start);
        let before = containers(&cluster, process);
        let watch = Watch::new(&cluster, KUBERNETES_READY);
        let docker = Watch::new(&cluster, DOCKER_READY);
        let killed = Instant::now();
        kill_at_once(&cluster, victim, process);
        let lost = watch.lost(killed, TRUTH_LIMIT);
        let back = watch.back(lost, BOOT_LIMIT);
        // kubelet could tell nobody while the API server or etcd was gone: the pod was listed Ready all the while.
        let after = containers(&cluster, process);
        assert!(!after.is_empty() && after != before, "{KUBERNETES_READY} is back before {process}: its pod is listed with {after:?}");
        // A container whose shim has died runs on without it, unless somebody ends it.
        assert_eq!(
            cluster.container.exec(&["pgrep", "-x", "-c", crate::restore::comm(process)]).stdout.trim(),
            "1",
            "{process} of before {victim} was killed runs on"
        );
        let seconds = |from: Instant, to: Instant| (to - from).as_secs_f64();
        println!("{victim} {process}: not ready after {:.2} s, ready again {:.1} s later", seconds(killed, lost), seconds(lost, back));
        assert!(!docker.was_lost(), "Docker has nothing to do with {victim} {process}");
        assert!(!cluster.serves(FAILED));
        // The cluster is usable.
        wait_for("a list of pods", LIMIT, || cluster.kubectl(&["get", "pods", "--all-namespaces"]).succeeded().then_some(()));
        cluster.kubectl(&["run", "afterwards", &format!("--image={BUSYBOX}"), "--command", "--", "sleep", "3600"]).ok();
        cluster.wait_for_pod(&["afterwards"]);
    }
}

/// kubelet may be busy, or may have started a pod anew before it reports anything of it.
fn a_container_that_ends_is_noticed_before_kubelet_tells(start: Start) {
    for victim in ["process", "shim"] {
        let cluster = settled(start);
        let watch = Watch::new(&cluster, KUBERNETES_READY);
        cluster.container.exec(&["pkill", "-STOP", "-x", "kubelet"]).ok();
        let killed = Instant::now();
        kill_at_once(&cluster, victim, "kube-proxy");
        let lost = watch.lost(killed, TRUTH_LIMIT);
        cluster.container.exec(&["pkill", "-CONT", "-x", "kubelet"]).ok();
        watch.back(lost, BOOT_LIMIT);
    }
}

/// A cluster in which everything runs that is to run, the containers of restored programs included.
fn settled(start: Start) -> Cluster {
    let cluster = start.ready(&[]);
    settle(&cluster);
    cluster
}

/// Waits until every pod is reported as it is: kubelet reports one that it has started again in several steps.
fn settle(cluster: &Cluster) {
    Api::new(cluster).wait_until_baked_pods_run();
    cluster.wait_until_ready();
}

/// The containers that the API server names of a baked pod.
fn containers(cluster: &Cluster, process: &str) -> Vec<String> {
    let pods = wait_for("the list of pods", LIMIT, || Api::new(cluster).baked_pods());
    pods.into_iter().filter(|pod| pod.name.contains(process)).flat_map(|pod| pod.containers).collect()
}

pub const VICTIMS: [(&str, &str); 5] =
    [("process", "kube-apiserver"), ("process", "etcd"), ("shim", "kube-proxy"), ("shim", "etcd"), ("shim", "kube-apiserver")];

/// Kills a process, or the shim that is its parent, as soon as it exists.
pub fn kill_at_once(cluster: &Cluster, victim: &str, process: &str) {
    // The fourth field of proc_pid_stat(5) is the parent.
    let script = r#"
        until pid=$(pgrep -o -x "$2"); do sleep 0.02; done
        [ "$1" = process ] || pid=$(cut -d " " -f 4 "/proc/$pid/stat")
        kill -KILL "$pid""#;
    let killed = || cluster.container.exec(&["sh", "-c", script, "kill", victim, process]).succeeded().then_some(());
    wait_for(&format!("{victim} {process}"), LIMIT, killed);
}

fn pid(cluster: &Cluster, daemon: &str) -> Option<String> {
    cluster.container.exec(&["pgrep", "-o", "-x", daemon]).stdout.lines().next().map(str::to_string)
}

/// Builds an image and runs it as a pod, and checks that pods were not restarted.
fn use_it(cluster: &Cluster, after: &str) {
    let name = format!("after-{after}");
    // A new containerd takes a moment to answer, and dockerd a moment more to reconnect.
    wait_for(&format!("a build after {after} was killed"), LIMIT, || cluster.build(&format!("{name}:1"), after).succeeded().then_some(()));
    cluster.kubectl(&["run", &name, &format!("--image={name}:1")]).ok();
    cluster.wait_for_pod(&[&name]);
    cluster.inner_docker(&["run", "--rm", BUSYBOX, "true"]).ok();
    let restarts = cluster.kubectl(&["get", "pods", "--output=jsonpath={.items[*].status.containerStatuses[*].restartCount}"]).ok();
    assert!(restarts.split(' ').all(|count| count == "0"), "killing {after} restarted pods: {restarts}");
}

on_both_starts! {
    a_control_plane_or_a_shim_that_is_killed_comes_back_and_readiness_follows
    a_container_that_ends_is_noticed_before_kubelet_tells
    a_pod_whose_network_fails_once_is_tried_again_a_moment_later
    a_daemon_that_is_killed_comes_back_and_readiness_follows
}
