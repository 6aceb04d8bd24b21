//! In a Kubernetes pod: privileged, with an emptyDir on /var/lib/docker, and with the node's cgroups visible. The node
//! is a container of the image under test, and so is the pod.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use crate::cluster::{Cluster, BOOT_LIMIT, LIMIT};
use crate::engine::{image, BUSYBOX};
use crate::process::{poll, run, wait_for, Outcome};

/// To copy the image, about a gigabyte, from this machine's engine to the node's.
const LOAD_LIMIT: Duration = Duration::from_secs(600);

/// The cgroups, in every hierarchy, of all processes that the node sees, by `pid name`.
fn cgroups(node: &Cluster) -> BTreeMap<String, String> {
    let script = r#"
        for dir in /proc/[0-9]*; do
            name=$(cat "$dir/comm") && groups=$(tr "\n" " " <"$dir/cgroup") && echo "${dir#/proc/} $name=$groups"
        done 2>/dev/null"#;
    let said = node.container.exec(&["sh", "-c", script]).ok();
    said.lines().filter_map(|line| line.split_once('=')).map(|(process, groups)| (process.to_string(), groups.to_string())).collect()
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn in_a_pod_it_boots_and_does_not_affect_the_nodes_processes() {
    let node = Cluster::ready(&[]);
    let load = format!("docker save {} | DOCKER_HOST=tcp://127.0.0.1:{} docker load", image(), node.docker_port);
    let loaded = run(Command::new("bash").args(["-o", "pipefail", "-c", &load]), LOAD_LIMIT);
    println!("the image was loaded in {:.0} s", loaded.took.as_secs_f64());
    loaded.ok();
    let before = cgroups(&node);
    node.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: inner
spec:
  terminationGracePeriodSeconds: 10
  containers:
  - name: kind
    image: {}
    imagePullPolicy: Never
    securityContext:
      privileged: true
    volumeMounts:
    - name: docker
      mountPath: /var/lib/docker
  volumes:
  - name: docker
    emptyDir: {{}}
",
        image()
    ));
    node.wait_for_pod(&["inner"]);
    let inside = |argv: &[&str]| node.in_pod("inner", argv);
    wait_for("kubernetes-ready in the pod", 2 * BOOT_LIMIT, || inside(&["kind", "healthcheck"]).succeeded().then_some(()));
    println!("{}", inside(&["kind", "status"]).stdout);
    // The pod has its own cluster.
    let nodes = inside(&["kubectl", "get", "nodes", "--output=jsonpath={.items[*].status.conditions[-1].status}"]).ok();
    assert_eq!(nodes, "True");

    check_that_containers_use_the_nodes_dns(&inside);

    let after = cgroups(&node);
    let moved: Vec<_> = before.iter().filter(|(process, groups)| after.get(*process).is_some_and(|now| now != *groups)).collect();
    assert!(moved.is_empty(), "moved to other cgroups: {moved:?}");
    for daemon in DAEMONS {
        // The pod's daemon is in the pod's cgroup, whose path contains the pod's uid. One of the node's own has a child of its
        // name for a moment, whenever it starts a process.
        let mut last = vec![];
        let placed = poll(LIMIT, || {
            let now = cgroups(&node);
            last = new(daemon, &before, &now).into_iter().map(|process| format!("{process}: {}", now[&process])).collect();
            (!last.is_empty() && last.iter().all(|process| process.contains("/kubelet/") && process.contains("pod"))).then_some(())
        });
        assert!(placed.is_some(), "{daemon}: {last:?}");
    }

    node.kubectl(&["delete", "pod", "inner", "--timeout=60s"]).ok();
    wait_for("the pod's processes are gone", LIMIT, || {
        let now = cgroups(&node);
        DAEMONS.iter().all(|daemon| new(daemon, &before, &now).is_empty()).then_some(())
    });
    let now = cgroups(&node);
    let gone = |daemon: &&str| !before.keys().any(|process| process.ends_with(&format!(" {daemon}")) && now.contains_key(process));
    let gone: Vec<_> = DAEMONS.iter().filter(|daemon| gone(daemon)).collect();
    assert!(gone.is_empty(), "the node has lost {gone:?}");
    node.wait_until_ready();
}

/// Both clusters' DNS Services have the same address, and queries that leave the pod must go to the node's.
fn check_that_containers_use_the_nodes_dns(inside: &dyn Fn(&[&str]) -> Outcome) {
    let ask = |server: &[&str]| {
        inside(&[&["docker", "run", "--rm", BUSYBOX, "nslookup", "kubernetes.default.svc.cluster.local"], server].concat())
    };
    inside(&["sh", "-c", "pkill -STOP -x dnsmasq || pkill -STOP -x coredns"]).ok();
    let own = ask(&["10.96.0.10"]);
    let nodes = ask(&[]);
    inside(&["sh", "-c", "pkill -CONT -x dnsmasq || pkill -CONT -x coredns"]).ok();
    assert!(nodes.succeeded() && nodes.stdout.contains("10.96.0.1"), "{nodes}");
    // The negative control: a query to that address goes to the pod's own DNS, which is frozen.
    assert!(!own.succeeded(), "{own}");
}

const DAEMONS: [&str; 5] = ["containerd", "dockerd", "kubelet", "kube-apiserver", "etcd"];

/// The processes with a name that did not exist before.
fn new(name: &str, before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    now.keys().filter(|process| process.ends_with(&format!(" {name}")) && !before.contains_key(*process)).cloned().collect()
}
