//! `docker stop`, and what a second start finds.

use crate::api::Api;
use crate::cluster::{Cluster, DOCKER_READY, KUBERNETES_READY, LIMIT};
use crate::engine::{docker, session, tools, Container, BUSYBOX};
use crate::process::wait_for;
use crate::readiness::check_log;
use crate::start::{on_both_starts, Start};

/// Stops the container and checks how it ended; its log from then on. Docker kills it after 10 s, with another status: what
/// the engine takes besides is not the container's.
fn stop(cluster: &Cluster) -> String {
    let before = cluster.container.logs().len();
    docker(&["stop", &cluster.container.id]).ok();
    assert_eq!(cluster.container.inspect("{{.State.ExitCode}} {{.State.OOMKilled}}"), "0 false");
    let log = cluster.container.logs()[before..].to_string();
    assert!(!log.contains("left by a shim"), "a stop is not taken for a shim's death:\n{log}");
    assert!(log.contains("SIGTERM") && log.lines().last().is_some_and(|line| line.contains("stopped")), "{log}");
    log
}

fn a_stop_is_orderly_and_the_next_start_is_the_baked_cluster_with_the_images_built_since(start: Start) {
    let cluster = start.ready(&[]);
    cluster.build("since:1", "built since").ok();
    cluster.kubectl(&["create", "deployment", "since", "--image=since:1"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment", "since", "--timeout=60s"]).ok();
    cluster.inner_docker(&["run", "--detach", "--name", "of-docker", "since:1"]).ok();
    let first: Vec<String> = Api::new(&cluster).wait_until_baked_pods_run().into_iter().flat_map(|pod| pod.containers).collect();
    let log = stop(&cluster);

    cluster.hold();
    cluster.container.start();
    let status = wait_for("an answer", LIMIT, || cluster.status(KUBERNETES_READY));
    assert_eq!(status, 404, "the second start served the first one's readiness");
    cluster.let_go();
    cluster.wait_until_ready();
    start.check(&cluster);
    let pods = Api::new(&cluster).wait_until_baked_pods_run();
    let of_first = |pod: &crate::api::Pod| pod.containers.iter().any(|id| first.contains(id));
    assert!(!pods.iter().any(of_first), "{pods:?}, of the first start were {first:?}");
    let deployments = cluster.kubectl(&["get", "deployments,pods", "--output=name"]).ok();
    assert_eq!(deployments, "", "the first start's objects are still there");
    // Nor does anything run that the API server does not know of.
    // (The lab's DNS has servers too, which run in the background.)
    // A server has a child for as long as it answers a probe.
    let baked_servers = if tools().baked_pods.iter().any(|pod| pod.starts_with("from-hook/")) { 1 } else { 0 };
    wait_for("the servers of this start to be the only ones", LIMIT, || {
        let processes = cluster.container.exec(&["pgrep", "-f", "^httpd -f "]).stdout;
        (processes.lines().count() == baked_servers).then_some(())
    });

    cluster.inner_docker(&["image", "inspect", "since:1"]).ok();
    let containers = cluster.inner_docker(&["ps", "--all", "--format", "{{.Names}}"]).ok();
    assert!(containers.lines().any(|name| name == "of-docker"), "Docker's own containers are kept, as dind keeps them: {containers}");
    cluster.kubectl(&["run", "again", "--image=since:1"]).ok();
    cluster.wait_for_pod(&["again"]);
    cluster.build("since:2", "and another").ok();
    stop(&cluster);
    // Last, so that nothing else goes unseen for it.
    check_log(&log);
}

fn a_stop_in_the_middle_of_the_boot_is_orderly_too(start: Start) {
    let cluster = start.create(&[]);
    cluster.container.start();
    wait_for("docker-ready", LIMIT, || cluster.serves(DOCKER_READY).then_some(()));
    stop(&cluster);
}

/// Writes down how it was ended.
const ORDERLY: &str = r#"trap 'echo by itself >/ends/'$NAME'; exit 7' TERM; echo runs >/ends/$NAME; while :; do sleep 0.1; done"#;

/// Pods are told to end when kubelet has gone, Docker's containers by dockerd, which needs containerd for it.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_stop_lets_pods_and_containers_end_by_themselves() {
    let ends = session().dir.join("ends");
    std::fs::create_dir_all(&ends).expect("the session's directory can be written");
    let cluster = Cluster::ready(&[&format!("--volume={}:/ends", ends.display())]);
    let arguments = ["--detach", "--name=container", "--env=NAME=container", "--volume=/ends:/ends", BUSYBOX, "sh", "-c", ORDERLY];
    cluster.inner_docker(&[&["run"], &arguments[..]].concat()).ok();
    cluster.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: pod}}
spec:
  containers:
  - name: pod
    image: {BUSYBOX}
    command: [sh, -c]
    args: [{ORDERLY:?}]
    env: [{{name: NAME, value: pod}}]
    volumeMounts: [{{name: ends, mountPath: /ends}}]
  volumes: [{{name: ends, hostPath: {{path: /ends, type: Directory}}}}]
"
    ));
    let end_of = |name: &str| std::fs::read_to_string(ends.join(name)).unwrap_or_default();
    for name in ["container", "pod"] {
        wait_for(name, LIMIT, || (end_of(name) == "runs\n").then_some(()));
    }
    stop(&cluster);
    for name in ["container", "pod"] {
        assert_eq!(end_of(name), "by itself\n", "{name}");
    }
    cluster.container.start();
    cluster.wait_until_ready();
    assert_eq!(cluster.inner_docker(&["inspect", "--format={{.State.ExitCode}}", "container"]).ok(), "7", "dockerd has not seen its end");
}

/// With an init of Docker's own as PID 1, ours is a subreaper, and ends in order all the same.
/// The restored programs have parents of that name too, so the oldest is meant.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn beside_dockers_own_init_it_boots_reaps_and_stops_in_order() {
    let cluster = Cluster::ready(&["--init"]);
    let parents = cluster.container.exec(&["sh", "-c", "pgrep -o -x kind; pgrep -P $(pgrep -o -x kind) | wc -l; pgrep -P 1 | wc -l"]).ok();
    let lines: Vec<&str> = parents.lines().collect();
    assert!(lines[0] != "1", "{parents}");
    assert!(lines[1].parse::<u32>().is_ok_and(|children| children > 5), "daemons and shims are its children: {parents}");
    assert_eq!(lines[2], "1", "nobody but ours is the init's: {parents}");
    let collected = cluster.container.exec(&["sh", "-c", "kind logs | tar -xzO ./node/kind.txt"]).ok();
    assert!(collected.starts_with("kind 0."), "not the version of the other init: {collected}");
    docker(&["stop", &cluster.container.id]).ok();
    assert_eq!(cluster.container.inspect("{{.State.ExitCode}}"), "0");
}

/// What kubelet would write to, and a limit that the init would raise, with values that neither would choose.
const HOST_SETTINGS: [(&str, &str); 4] =
    [("vm/overcommit_memory", "0"), ("kernel/panic", "17"), ("kernel/panic_on_oops", "0"), ("fs/inotify/max_user_instances", "300")];

/// The machine's settings, put back at the end.
struct HostSettings {
    container: Container,
    before: Vec<String>,
}

impl HostSettings {
    fn change() -> HostSettings {
        let container = Container::idle(&["--privileged"], &["sleep", "300"]);
        let before = HOST_SETTINGS.iter().map(|(name, _)| read_setting(&container, name)).collect();
        let settings = HostSettings { container, before };
        HOST_SETTINGS.iter().for_each(|(name, value)| settings.write(name, value));
        settings
    }

    fn write(&self, name: &str, value: &str) {
        self.container.exec(&["sh", "-c", &format!("echo {value} >/proc/sys/{name}")]).ok();
    }

    fn now(&self) -> Vec<String> {
        HOST_SETTINGS.iter().map(|(name, _)| read_setting(&self.container, name)).collect()
    }
}

impl Drop for HostSettings {
    fn drop(&mut self) {
        for ((name, _), value) in HOST_SETTINGS.iter().zip(&self.before) {
            self.container.exec(&["sh", "-c", &format!("echo {value} >/proc/sys/{name}")]);
        }
    }
}

fn read_setting(container: &Container, name: &str) -> String {
    container.exec(&["cat", &format!("/proc/sys/{name}")]).ok().trim().to_string()
}

on_both_starts! {
    a_stop_is_orderly_and_the_next_start_is_the_baked_cluster_with_the_images_built_since
    a_stop_in_the_middle_of_the_boot_is_orderly_too
}

/// What all containers of a machine share: run with no other cluster beside.
mod alone {
    use super::*;

    #[test]
    #[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
    fn the_machines_kernel_settings_are_left_alone_when_that_is_asked_for() {
        let settings = HostSettings::change();
        let chosen: Vec<&str> = HOST_SETTINGS.iter().map(|(_, value)| *value).collect();
        let cluster = Cluster::ready(&["--env", "KIND_SYSCTLS=0"]);
        assert_eq!(settings.now(), chosen);
        assert!(cluster.container.logs().contains("KIND_SYSCTLS=0: the machine's kernel settings stay as they are"));
        // Volumes that kubelet mounts still reach the pods.
        let own = cluster.kubectl(&[
            "exec",
            "--namespace=from-hook",
            "deployment/web",
            "--",
            "cat",
            "/var/run/secrets/kubernetes.io/serviceaccount/namespace",
        ]);
        assert_eq!(own.ok(), "from-hook");
        drop(cluster);
        // The negative control.
        let _cluster = Cluster::ready(&[]);
        let raised: Vec<String> = settings.now();
        assert!(raised.iter().zip(&chosen).all(|(now, chosen)| now != chosen), "{raised:?}");
    }
}
