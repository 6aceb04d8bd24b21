//! The networks that a container may be given, and neighbours on them.

use crate::api::Api;
use crate::cluster::{shared, Cluster, BOOT_LIMIT};
use crate::engine::{image, tools, Container, Network, BUSYBOX};
use crate::process::wait_for;

/// Boots a container that no port can be published of, and waits by asking inside.
fn boot(network: &str) -> Container {
    let container = Container::create(&["--privileged", "--network", network, image()]);
    container.start();
    let ready = crate::process::poll(BOOT_LIMIT, || container.exec(&["kind", "healthcheck"]).succeeded().then_some(()));
    assert!(
        ready.is_some(),
        "not ready after {} s: {}\n{}",
        BOOT_LIMIT.as_secs(),
        container.exec(&["kind", "status"]).output(),
        container.logs()
    );
    container
}

/// Runs kubectl where the cluster is.
fn kubectl(container: &Container, arguments: &[&str]) -> String {
    container.exec(&[&["kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf"], arguments].concat()).ok()
}

fn check(container: &Container) {
    let nodes = kubectl(container, &["get", "nodes", "--no-headers"]);
    assert!(nodes.starts_with("kind ") && nodes.contains(" Ready "), "{nodes}");
    let pods = kubectl(container, &["get", "pods", "--all-namespaces", "--no-headers"]);
    assert!(pods.lines().all(|pod| pod.contains(" Running ") || pod.contains(" Completed ")), "{pods}");
    crate::readiness::check_log(&container.logs());
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_network_with_no_route_out_is_enough() {
    let network = Network::create("internal", &["--internal"]);
    // Whether such a network has a default route that leads nowhere, or none, depends on the engine: none here.
    let holder = Container::idle(&["--network", &network.name, "--cap-add", "NET_ADMIN"], &["sleep", "infinity"]);
    holder.exec(&["ip", "route", "flush", "default"]).ok();
    assert_eq!(holder.exec(&["ip", "route", "show", "default"]).ok(), "", "the test is void");
    check(&boot(&format!("container:{}", holder.id)));
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn no_network_at_all_is_enough() {
    check(&boot("none"));
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_users_network_with_dockers_own_resolver_is_enough() {
    let cluster = shared();
    let resolver = cluster.container.exec(&["cat", "/etc/resolv.conf"]).ok();
    assert!(resolver.contains("127.0.0.11"), "the test is void: {resolver}");
    // The cluster is Ready, so CoreDNS has not found itself in a loop. That address is the container's own
    // loopback, where a pod finds nobody: a pod on the node's resolver must have another.
    cluster.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: resolver}}
spec:
  dnsPolicy: Default
  terminationGracePeriodSeconds: 0
  containers: [{{name: resolver, image: {BUSYBOX}, command: [sleep, '3600']}}]
"
    ));
    cluster.wait_for_pod(&["resolver"]);
    let inside = cluster.in_pod("resolver", &["cat", "/etc/resolv.conf"]).ok();
    assert!(!inside.contains("127.0.0."), "{inside}");
    let _neighbour = Container::idle(&["--network", cluster.network, "--network-alias", "neighbour"], &["sleep", "infinity"]);
    let found = cluster.container.exec(&["getent", "hosts", "neighbour"]);
    assert!(found.stdout.contains("neighbour"), "the node does not find its neighbour: {found}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn two_containers_side_by_side_are_two_clusters() {
    let first = shared();
    let second = Cluster::ready(&["--network", first.network]);
    first.kubectl(&["create", "configmap", "mine"]).ok();
    assert!(first.kubectl(&["get", "configmap", "mine"]).succeeded());
    let absent = second.kubectl(&["get", "configmap", "mine"]);
    assert!(absent.stderr.contains("NotFound"), "{absent}");
    first.build("mine:1", "mine").ok();
    assert!(!second.inner_docker(&["image", "inspect", "mine:1"]).succeeded(), "they share an image store");
    for cluster in [&*first, &second] {
        let pods = wait_for("every baked pod", BOOT_LIMIT, || Api::new(cluster).baked_pods());
        assert_eq!(pods.len(), tools().baked_pods.len());
        assert!(pods.iter().all(|pod| pod.runs_in_this_boot()), "{pods:?}");
        assert!(cluster.serves(crate::cluster::KUBERNETES_READY));
    }
    // Neither is the cluster of the other: container ids are new in every boot.
    let ids =
        |cluster: &Cluster| Api::new(cluster).baked_pods().expect("the API server answers").into_iter().flat_map(|pod| pod.containers);
    let of_first: Vec<String> = ids(&first).collect();
    assert!(!ids(&second).any(|id| of_first.contains(&id)));
}
