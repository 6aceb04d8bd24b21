//! What CI jobs do once the cluster is ready.

use crate::cluster::{fetch, shared, Cluster, LIMIT};
use crate::engine::BUSYBOX;
use crate::process::{poll, wait_for};

const PORT: &str = "8080";

/// Waits until a server in the cluster sends a page to the client pod. Calls `server` for its address each time.
fn wait_for_page(cluster: &Cluster, page: &str, server: impl Fn() -> String) {
    let mut last = None;
    let shown = poll(LIMIT, || {
        let answer = cluster.in_pod(cluster.client(), &["wget", "-q", "-T", "5", "-O", "-", &format!("http://{}/", server())]);
        let shown = answer.stdout == page;
        last = Some(answer);
        shown.then_some(())
    });
    assert!(shown.is_some(), "not {page:?} within {} s, but: {}", LIMIT.as_secs(), last.expect("it was asked"));
}

/// Builds an image with the cluster's engine and deploys it, as in the README.
fn deploy(cluster: &Cluster, name: &str, content: &str) {
    let image = format!("{name}:1");
    cluster.build(&image, content).ok();
    cluster.kubectl(&["create", "deployment", name, &format!("--image={image}")]).ok();
    cluster.kubectl(&["rollout", "status", "deployment", name, "--timeout=60s"]).ok();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn an_image_built_with_docker_runs_as_a_pod_and_a_rebuild_replaces_it() {
    let cluster = shared();
    let newest = || {
        // The newest pod: an old one still exists during its grace period.
        let pods = ["get", "pods", "--selector=app=built", "--sort-by=.metadata.creationTimestamp"];
        let addresses = cluster.kubectl(&[&pods[..], &["--output=jsonpath={.items[*].status.podIP}"]].concat()).ok();
        format!("{}:{PORT}", addresses.split(' ').next_back().unwrap_or_default())
    };
    deploy(&cluster, "built", "one");
    wait_for_page(&cluster, "one\nbuilt\n", newest);
    cluster.build("built:1", "two").ok();
    cluster.kubectl(&["rollout", "restart", "deployment", "built"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment", "built", "--timeout=60s"]).ok();
    wait_for_page(&cluster, "two\nbuilt\n", newest);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_service_answers_inside_the_cluster_and_a_node_port_outside() {
    let cluster = shared();
    deploy(&cluster, "served", "served");
    cluster.kubectl(&["expose", "deployment", "served", "--type=NodePort", "--port=80", "--target-port", PORT]).ok();
    let address = cluster.field("service/served", "{.spec.clusterIP}");
    wait_for_page(&cluster, "served\nbuilt\n", || address.clone());
    let ask = format!("exec 3<>/dev/tcp/{address}/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
    let from_node = cluster.container.exec(&["timeout", "10", "bash", "-c", &ask]).ok();
    assert!(from_node.contains("200 OK") && from_node.contains("served"), "{from_node}");
    // A pod that connects to its own Service reaches itself (hairpin NAT).
    let own = cluster.kubectl(&["exec", "deployment/served", "--", "wget", "-q", "-T", "5", "-O", "-", &format!("http://{address}/")]);
    assert!(own.stdout.starts_with("served"), "{own}");
    let url = format!("http://{}:{}/", cluster.address(), cluster.field("service/served", "{.spec.ports[0].nodePort}"));
    let (status, body) = fetch(&url).unwrap_or_else(|| panic!("{url} does not answer"));
    assert_eq!((status, body.as_str()), (200, "served\nbuilt\n"), "{url}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_pod_resolves_names_with_the_clusters_dns() {
    let cluster = shared();
    let server = cluster.kubectl(&["-n", "kube-system", "get", "service", "kube-dns", "--output=jsonpath={.spec.clusterIP}"]).ok();
    let resolv_conf = cluster.in_pod(cluster.client(), &["cat", "/etc/resolv.conf"]).ok();
    assert!(resolv_conf.contains(&format!("nameserver {server}")), "{resolv_conf}");
    let address = cluster.field("service/kubernetes", "{.spec.clusterIP}");
    let answer = cluster.in_pod(cluster.client(), &["nslookup", "kubernetes.default.svc.cluster.local"]);
    assert!(answer.stdout.contains(&format!("Address: {address}")) || answer.stdout.contains(&format!(": {address}\n")), "{answer}");
    assert!(answer.stdout.contains(&server), "another server answered: {answer}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_pod_that_is_not_root_can_write_to_its_volume() {
    let cluster = shared();
    cluster.apply(&format!(
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
  terminationGracePeriodSeconds: 0
  securityContext: {{runAsUser: 1000, runAsGroup: 1000}}
  containers:
  - name: writer
    image: {BUSYBOX}
    command: [sh, -c, 'id -u >/data/user && exec sleep 3600']
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes:
  - name: data
    persistentVolumeClaim: {{claimName: data}}
"
    ));
    cluster.wait_for_pod(&["writer"]);
    assert_eq!(cluster.field("pvc/data", "{.status.phase}"), "Bound");
    assert_eq!(cluster.field("storageclass/standard", "{.metadata.annotations.storageclass\\.kubernetes\\.io/is-default-class}"), "true");
    wait_for("the pod's file on the volume", LIMIT, || (cluster.in_pod("writer", &["cat", "/data/user"]).stdout == "1000\n").then_some(()));
}

/// What the cluster itself requests is little, as the node is there for the job.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_pod_may_request_nearly_all_of_the_cpu() {
    let cluster = shared();
    let cpu = cluster.field("node/kind", "{.status.allocatable.cpu}");
    let millicores = cpu.strip_suffix('m').map_or_else(|| cpu.parse::<u32>().map(|cores| 1000 * cores), str::parse);
    let millicores = millicores.unwrap_or_else(|_| panic!("{cpu} is no number of CPUs"));
    cluster.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: large}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: large
    image: {BUSYBOX}
    command: [sleep, '3600']
    resources: {{requests: {{cpu: {}m}}}}
",
        millicores - 200
    ));
    cluster.wait_for_pod(&["large"]);
    cluster.kubectl(&["delete", "pod", "large"]).ok();
}
