//! The networks that a container may be given, and neighbours on them.

use crate::api::Api;
use crate::cluster::{fetch, kubectl_with, shared, Cluster, BOOT_LIMIT, LIMIT};
use crate::engine::{docker, image, session, Container, Network, BUSYBOX};
use crate::process::wait_for;

const POD_IPS: &str = "jsonpath={.items[*].status.podIP}";

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
    wait_for("all pods to run", LIMIT, || {
        let pods = kubectl(container, &["get", "pods", "--all-namespaces", "--no-headers"]);
        pods.lines().all(|pod| pod.contains(" Running ") || pod.contains(" Completed ")).then_some(())
    });
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

/// As in a Kubernetes pod, whose network outlives its container: the second start finds the static address there, as
/// `eth0:kind`.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_second_start_in_the_same_network_is_as_the_first() {
    let network = Network::create("outlives", &["--internal", "--opt", "com.docker.network.driver.mtu=1400"]);
    let holder = Container::idle(&["--network", &network.name, "--cap-add", "NET_ADMIN"], &["sleep", "infinity"]);
    holder.exec(&["ip", "route", "flush", "default"]).ok();
    for start in ["first", "second"] {
        let container = boot(&format!("container:{}", holder.id));
        let network = container.exec(&["cat", "/etc/cni/net.d/10-kind.conflist"]).ok();
        assert!(network.contains("\"mtu\":1400"), "the {start} start: {network}");
        check(&container);
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn no_network_at_all_is_enough() {
    check(&boot("none"));
}

/// Others know no way back to a pod's address.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_pod_reaches_others_under_the_nodes_address() {
    let cluster = shared();
    let said =
        Container::idle(&["--network", cluster.network], &["socat", "TCP-LISTEN:7000,fork,reuseaddr", "SYSTEM:echo from $SOCAT_PEERADDR"]);
    let outside = address_of(&said);
    let client = cluster.client();
    let answer = |address: &str| cluster.in_pod(client, &["nc", "-w", "5", address, "7000"]).stdout;
    wait_for("an answer from outside", LIMIT, || (answer(&outside).trim() == format!("from {}", cluster.address())).then_some(()));
}

fn address_of(container: &Container) -> String {
    container.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
}

/// A pod that asks the servers that CoreDNS asks.
fn resolver_pod(cluster: &Cluster) -> &'static str {
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
    "resolver"
}

/// Waits until the pod finds the address under that name, and under the root, whatever its search list.
fn wait_for_name(cluster: &Cluster, pod: &str, name: &str, address: &str) {
    wait_for(&format!("a pod finds {address} under {name}"), LIMIT, || {
        let found = cluster.in_pod(pod, &["nslookup", &format!("{name}.")]);
        found.stdout.contains(&format!("Address: {address}\n")).then_some(())
    });
}

/// An address of a container in one of its networks, by the engine's own word for it.
fn address_in(container: &Container, network: &Network, field: &str) -> String {
    container.inspect(&format!("{{{{(index .NetworkSettings.Networks \"{}\").{field}}}}}", network.name))
}

fn idle_in(network: &Network, alias: &str) -> Container {
    Container::idle(&["--network", &network.name, "--network-alias", alias], &["sleep", "infinity"])
}

fn connect(container: &Container, network: &Network) {
    docker(&["network", "connect", &network.name, &container.id]).ok();
}

/// Every address of the container, as a Service has them in the end.
fn wait_for_addresses(cluster: &Cluster, service: &str, mut expected: Vec<String>) {
    expected.sort();
    wait_for(&format!("{service} has the addresses {expected:?}"), LIMIT, || {
        let found = cluster.field(&format!("service/{service}"), "{.status.loadBalancer.ingress[*].ip}");
        let mut found: Vec<&str> = found.split_whitespace().collect();
        found.sort();
        (found == expected).then_some(())
    });
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn every_network_of_the_container_counts_those_joined_and_left_later_too() {
    // The Docker inside could choose the one that it cannot know of yet.
    let network = |name, subnet| Network::create(name, &["--subnet", subnet]);
    let (before, later) = (network("before", "10.199.2.0/24"), network("later", "10.199.3.0/24"));
    let (near, far) = (idle_in(&before, "near"), idle_in(&later, "far"));
    let cluster = Cluster::create(&[]);
    connect(&cluster.container, &before);
    cluster.container.start();
    cluster.wait_until_ready();
    cluster.build("page:1", "page").ok();
    cluster.kubectl(&["run", "page", "--image=page:1", "--labels=app=page"]).ok();
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/page", "--timeout=60s"]).ok();
    cluster.kubectl(&["create", "service", "loadbalancer", "page", "--tcp=800:8080"]).ok();
    let bridge = cluster.container.inspect("{{.NetworkSettings.IPAddress}}");
    let mut addresses = vec![bridge, address_in(&cluster.container, &before, "IPAddress")];
    wait_for_addresses(&cluster, "page", addresses.clone());
    let resolver = resolver_pod(&cluster);
    wait_for_name(&cluster, resolver, "near", &address_in(&near, &before, "IPAddress"));

    connect(&cluster.container, &later);
    addresses.push(address_in(&cluster.container, &later, "IPAddress"));
    wait_for_addresses(&cluster, "page", addresses.clone());
    wait_for_name(&cluster, resolver, "far", &address_in(&far, &later, "IPAddress"));
    for address in &addresses {
        wait_for(&format!("the Service answers on {address}"), LIMIT, || fetch(&format!("http://{address}:800/")));
    }

    docker(&["network", "disconnect", &later.name, &cluster.container.id]).ok();
    addresses.pop();
    wait_for_addresses(&cluster, "page", addresses);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_container_that_had_dockers_own_bridge_alone_knows_the_neighbours_of_a_network_joined_later() {
    // The Docker inside chooses a free network, too, and cannot know which one the container will join.
    let network = Network::create("joined", &["--subnet", "10.199.1.0/24"]);
    let neighbour = idle_in(&network, "neighbour");
    let cluster = Cluster::ready(&[]);
    // Docker has its own resolver for networks of users alone, and changes to it now.
    assert!(!cluster.container.exec(&["cat", "/etc/resolv.conf"]).ok().contains("127.0.0.11"), "the test is void");
    connect(&cluster.container, &network);
    wait_for_name(&cluster, resolver_pod(&cluster), "neighbour", &address_in(&neighbour, &network, "IPAddress"));
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn files_docker_and_the_cluster_answer_over_ipv6() {
    let network = Network::create("six", &["--ipv6", "--subnet", "fd00:6b69:6e64::/64"]);
    let cluster = Cluster::ready(&["--network", &network.name]);
    let address = address_in(&cluster.container, &network, "GlobalIPv6Address");
    let (status, config) = fetch(&format!("http://[{address}]:10080/config")).expect("the file server answers over IPv6");
    assert_eq!(status, 200, "{config}");
    let kubeconfig = session().dir.join("six.kubeconfig");
    std::fs::write(&kubeconfig, &config).expect("the session's directory can be written");
    let node = kubectl_with(&kubeconfig, &["get", "nodes", "--no-headers"]).ok();
    assert!(node.contains(" Ready "), "{node}");
    docker(&["--host", &format!("tcp://[{address}]:2375"), "version"]).ok();
    // busybox takes the first address alone.
    let hosts = ["--network=host", "--volume=/etc/six:/etc/hosts:ro", BUSYBOX, "wget", "-q", "-O-", "http://localhost:10080/docker-ready"];
    cluster.container.exec(&["sh", "-c", "printf '::1 localhost\\n127.0.0.1 localhost\\n' >/etc/six"]).ok();
    cluster.inner_docker(&[&["run", "--rm"], &hosts[..]].concat()).ok();
}

/// A name server that knows one address for everything, and that of IPv4.
const SERVER: &str = r#"
    use IO::Socket::IP;
    my $socket = IO::Socket::IP->new(LocalHost => "::", LocalPort => 53, Proto => "udp", V6Only => 0) or die $@;
    while (my $client = $socket->recv(my $query, 512)) {
        my ($question) = substr($query, 12) =~ /^(.*?\0....)/s or next;
        my $answer = substr($question, -4, 2) eq "\0\1" ? "\xc0\x0c\0\1\0\1\0\0\0\5\0\4" . pack("C4", 10, 20, 30, 40) : "";
        my $count = length $answer ? "\0\1" : "\0\0";
        $socket->send(substr($query, 0, 2) . "\x81\x80\0\1$count\0\0\0\0$question$answer", 0, $client);
    }
"#;

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn pods_are_answered_from_a_name_server_that_has_ipv6_alone() {
    let network = Network::create("server", &["--ipv6", "--subnet", "fd00:6b69:6e64:1::/64"]);
    let server = Container::idle(&["--network", &network.name], &["perl", "-e", SERVER]);
    let address = address_in(&server, &network, "GlobalIPv6Address");
    let file = session().dir.join("six.resolv.conf");
    // One that nobody has comes first, and the last is of IPv4: of those, pods could only reach the last.
    std::fs::write(&file, format!("nameserver fd00:6b69:6e64:1::dead\nnameserver {address}\nnameserver 203.0.113.1\n"))
        .expect("the session's directory can be written");
    let mount = format!("--volume={}:/etc/resolv.conf", file.display());
    let cluster = Cluster::ready(&["--network", &network.name, &mount]);
    wait_for_name(&cluster, resolver_pod(&cluster), "anything.test", "10.20.30.40");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn names_of_add_host_are_known_to_pods_and_to_containers() {
    // Where the engine is not Docker's own, people give this name by hand: theirs wins.
    let cluster = Cluster::ready(&["--add-host", "db.test:10.1.2.3", "--add-host", "host.docker.internal:10.1.2.4"]);
    let resolver = resolver_pod(&cluster);
    wait_for_name(&cluster, resolver, "db.test", "10.1.2.3");
    wait_for_name(&cluster, resolver, "host.docker.internal", "10.1.2.4");
    let found = cluster.inner_docker(&["run", "--rm", BUSYBOX, "nslookup", "db.test."]);
    assert!(found.stdout.contains("Address: 10.1.2.3\n"), "{found}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn networks_that_are_made_inside_have_the_outer_networks_mtu() {
    let network = Network::create("narrow", &["--opt", "com.docker.network.driver.mtu=1400"]);
    let cluster = Cluster::ready(&["--network", &network.name]);
    cluster.inner_docker(&["network", "create", "inner"]).ok();
    for network in ["inner", "bridge"] {
        let mtu = cluster.inner_docker(&["run", "--rm", "--network", network, BUSYBOX, "cat", "/sys/class/net/eth0/mtu"]).ok();
        assert_eq!(mtu, "1400", "{network}");
    }
}

/// A job's scripts may have a proxy, which must not get what is for the cluster's pods.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn in_a_network_with_the_pods_own_addresses_pods_get_others_and_scripts_know_them() {
    let network = Network::create("pods-own", &["--subnet", "10.244.77.0/24"]);
    let cluster = Cluster::create(&["--network", &network.name]);
    cluster.put("/kubernetes-ready.sh", "echo \"$NO_PROXY\" >>/seen\n");
    cluster.container.start();
    cluster.wait_until_ready();
    cluster.reset();
    let seen = cluster.container.exec(&["cat", "/seen"]).ok();
    let lines: Vec<&str> = seen.lines().collect();
    assert!(lines.len() == 2 && lines.iter().all(|line| line.contains(",10.245.0.0/16,") && !line.contains("10.244")), "{seen}");
    let addresses =
        cluster.kubectl(&["get", "pods", "--namespace", "kube-system", "--selector", "k8s-app=kube-dns", "--output", POD_IPS]).ok();
    assert!(!addresses.is_empty() && addresses.split_whitespace().all(|address| address.starts_with("10.245.")), "{addresses}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_network_policy_is_said_not_to_be_enforced() {
    let cluster = shared();
    cluster.apply(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {matchLabels: {app: nobody}}, policyTypes: [Ingress]}
",
    );
    wait_for("the log says so", LIMIT, || cluster.container.logs().contains("NetworkPolicy default/deny: ").then_some(()));
    wait_for("an Event says so", LIMIT, || cluster.kubectl(&["get", "events"]).stdout.contains("NotEnforced").then_some(()));
    cluster.kubectl(&["delete", "networkpolicy", "deny"]).ok();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_users_network_with_dockers_own_resolver_is_enough() {
    let cluster = shared();
    let resolver = cluster.container.exec(&["cat", "/etc/resolv.conf"]).ok();
    assert!(resolver.contains("127.0.0.11"), "the test is void: {resolver}");
    // The cluster is Ready, so CoreDNS has not found itself in a loop. That address is the container's own
    // loopback, where a pod finds nobody: a pod on the node's resolver must have another.
    let resolver = resolver_pod(&cluster);
    let inside = cluster.in_pod(resolver, &["cat", "/etc/resolv.conf"]).ok();
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
    let [of_first, of_second] = [&*first, &second].map(|cluster| {
        let pods = Api::new(cluster).wait_until_baked_pods_run();
        assert!(cluster.serves(crate::cluster::KUBERNETES_READY));
        pods.into_iter().flat_map(|pod| pod.containers).collect::<Vec<String>>()
    });
    // Neither is the cluster of the other: container ids are new in every boot.
    assert!(!of_second.iter().any(|id| of_first.contains(id)));
}
