//! Services of type LoadBalancer have the container's address, and what is sent there arrives.

use std::time::Duration;

use crate::cluster::{fetch, fetch_within, shared, Cluster, LIMIT};
use crate::engine::{Container, Network};
use crate::process::wait_for;

const ADDRESS: &str = "{.status.loadBalancer.ingress[*].ip}";
/// For a client that is to find nobody.
const SHORT: Duration = Duration::from_secs(2);

fn serve(cluster: &Cluster, name: &str, ports: &str) {
    cluster.build(&format!("{name}:1"), name).ok();
    cluster.apply(&format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: web, image: '{name}:1'}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{type: LoadBalancer, selector: {{app: {name}}}, ports: {ports}}}
"
    ));
    cluster.kubectl(&["rollout", "status", "deployment", name, "--timeout=60s"]).ok();
}

fn address_of(cluster: &Cluster, service: &str) -> String {
    cluster.field(&format!("service/{service}"), ADDRESS)
}

fn wait_for_address(cluster: &Cluster, service: &str) {
    wait_for(&format!("{service} has the container's address"), LIMIT, || {
        (address_of(cluster, service) == cluster.address()).then_some(())
    });
}

fn wait_for_page(url: &str, page: &str) {
    wait_for(&format!("{url} shows {page:?}"), LIMIT, || fetch(url).filter(|(status, body)| *status == 200 && body == page).map(drop));
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_load_balancer_is_reached_from_outside_and_gives_its_port_back() {
    let cluster = shared();
    let address = cluster.address();
    assert!(fetch_within(SHORT, &format!("http://{address}:800/")).is_none(), "nobody is there to begin with");
    serve(&cluster, "balanced", "[{port: 800, targetPort: 8080}]");
    wait_for_address(&cluster, "balanced");
    wait_for_page(&format!("http://{address}:800/"), "balanced\nbuilt\n");
    // From another container, by alias, and from a pod.
    let job = Container::idle(&["--network", cluster.network], &["sleep", "infinity"]);
    let ask = "exec 3<>/dev/tcp/my-cluster/800; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let answer = job.exec(&["timeout", "10", "bash", "-c", ask]).ok();
    assert!(answer.contains("200 OK") && answer.contains("balanced"), "{answer}");
    let pod = cluster.in_pod(cluster.client(), &["wget", "-q", "-T", "5", "-O", "-", &format!("http://{address}:800/")]);
    assert_eq!(pod.stdout, "balanced\nbuilt\n", "{pod}");

    // The same port again: it is the first one's until that is gone.
    serve(&cluster, "second", "[{port: 800, targetPort: 8080}]");
    wait_for("the log says why", LIMIT, || cluster.container.logs().contains("port 800/TCP is in use by default/balanced").then_some(()));
    wait_for("the Service says why", LIMIT, || {
        let described = cluster.kubectl(&["describe", "service", "second"]).ok();
        (described.contains("PortConflict") && described.contains("port 800/TCP is in use by default/balanced")).then_some(())
    });
    assert_eq!(address_of(&cluster, "second"), "");
    wait_for_page(&format!("http://{address}:800/"), "balanced\nbuilt\n");
    cluster.kubectl(&["delete", "service", "balanced"]).ok();
    wait_for_address(&cluster, "second");
    wait_for_page(&format!("http://{address}:800/"), "second\nbuilt\n");
    // No longer one: nothing of it is left.
    cluster.kubectl(&["patch", "service", "second", "--patch", r#"{"spec": {"type": "ClusterIP"}}"#]).ok();
    wait_for("the port is free", LIMIT, || fetch_within(SHORT, &format!("http://{address}:800/")).is_none().then_some(()));
    cluster.kubectl(&["delete", "deployment/balanced", "deployment/second", "service/second"]).ok();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_load_balancer_on_a_port_of_the_containers_own_takes_nothing_away() {
    let cluster = shared();
    cluster.kubectl(&["create", "service", "loadbalancer", "greedy", "--tcp=8443:8080"]).ok();
    wait_for("the log says why", LIMIT, || {
        cluster.container.logs().contains("port 8443/TCP is in use by the container itself").then_some(())
    });
    assert_eq!(address_of(&cluster, "greedy"), "");
    cluster.kubectl(&["get", "nodes"]).ok();
    cluster.kubectl(&["delete", "service", "greedy"]).ok();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_baked_load_balancer_has_this_starts_address_when_kubernetes_is_ready() {
    let cluster = shared();
    let address = cluster.kubectl(&["-n", "from-hook", "get", "service", "web", "--output", &format!("jsonpath={ADDRESS}")]).ok();
    assert_eq!(address, cluster.address());
    // The hook waited for the address of the bake, which is another one where two containers run.
    wait_for_page(&format!("http://{address}:8800/"), "from-hook\n");
}

/// MetalLB, for example.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_service_that_another_controller_serves_is_left_to_it() {
    let cluster = shared();
    let labels = cluster.field("node/kind", "{.metadata.labels}");
    assert!(!labels.contains("exclude-from-external-load-balancers"), "another one would not announce this node: {labels}");
    let create = |name: &str, port: u16| cluster.kubectl(&["create", "service", "loadbalancer", name, &format!("--tcp={port}:8080")]).ok();
    create("others", 801);
    wait_for_address(&cluster, "others");
    let theirs = r#"{"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}}}"#;
    cluster.kubectl(&["patch", "service", "others", "--subresource=status", "--type=merge", "--patch", theirs]).ok();
    wait_for("the log says why", LIMIT, || {
        cluster
            .container
            .logs()
            .contains("default/others gets no address from kind: another controller has given it 198.51.100.9")
            .then_some(())
    });
    cluster.kubectl(&["annotate", "service", "others", "changed=1"]).ok();
    // The port is free for another one, whose address comes after all of that.
    create("after", 801);
    wait_for_address(&cluster, "after");
    assert_eq!(address_of(&cluster, "others"), "198.51.100.9");
    cluster.kubectl(&["delete", "service", "others", "after"]).ok();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn without_a_load_balancer_no_service_gets_an_address() {
    // In no network of the bake's: the baked Service has an address of that.
    let network = Network::create("unbalanced", &["--subnet", "10.199.4.0/24"]);
    let cluster = Cluster::ready(&["--network", &network.name, "--env=KIND_LOAD_BALANCER=0"]);
    let baked = cluster.kubectl(&["-n", "from-hook", "get", "service", "web", "--output", &format!("jsonpath={ADDRESS}")]).ok();
    assert_ne!(baked, cluster.address());
}
