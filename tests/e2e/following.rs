//! Readiness while a job uses the cluster: it follows the owners of baked pods, even in a large cluster.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, BOOT_LIMIT, FAILED, KUBERNETES_READY, LIMIT};
use crate::process::wait_for;
use crate::watch::Watch;

const DNS: [&str; 3] = ["--namespace=kube-system", "deployment/coredns", "--output=name"];

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_baked_deployment_whose_next_pod_fails_withdraws_kubernetes_ready() {
    let cluster = Cluster::ready(&[]);
    let [namespace, dns, output] = DNS;
    // Delete the baked pod; its replacement has another name and does not start.
    let watch = Watch::new(&cluster, KUBERNETES_READY);
    let changed = Instant::now();
    cluster.kubectl(&["set", "image", namespace, dns, "coredns=registry.example.com/missing:1", output]).ok();
    cluster.kubectl(&["scale", namespace, dns, "--replicas=0"]).ok();
    cluster.kubectl(&["scale", namespace, dns, "--replicas=1"]).ok();
    watch.lost(changed, LIMIT);
    let waiting = wait_for("the new pod is in /waiting", LIMIT, || cluster.file("waiting").filter(|text| text.contains("coredns-")));
    assert!(waiting.contains("kube-system/coredns-"), "{waiting}");
    std::thread::sleep(Duration::from_secs(2));
    assert!(!cluster.serves(KUBERNETES_READY), "kubernetes-ready is served without a DNS");
    let undone = Instant::now();
    cluster.kubectl(&["rollout", "undo", namespace, dns]).ok();
    watch.back(undone, BOOT_LIMIT);
    assert!(!cluster.serves("waiting"));
}

/// CoreDNS runs and is Ready, and nobody can reach it.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_dns_that_does_not_answer_keeps_kubernetes_from_being_ready() {
    let cluster = Cluster::ready(&[]);
    let select = |name: &str| {
        let patch = format!(r#"{{"spec": {{"selector": {{"k8s-app": "{name}"}}}}}}"#);
        cluster.kubectl(&["--namespace=kube-system", "patch", "service", "kube-dns", "--patch", &patch]).ok();
    };
    let asks = ["nslookup", "kubernetes.default.svc.cluster.local"];
    let client = cluster.client();
    assert!(cluster.in_pod(client, &asks).succeeded());
    select("nobody");
    wait_for("nobody answers", LIMIT, || (!cluster.in_pod(client, &asks).succeeded()).then_some(()));
    // An answer counts until a pod is not Ready.
    let watch = Watch::new(&cluster, KUBERNETES_READY);
    let killed = Instant::now();
    cluster.kill("kube-proxy");
    watch.lost(killed, LIMIT);
    let waiting = "the DNS: no answer yet\n";
    wait_for("the DNS alone is in /waiting", LIMIT, || cluster.file("waiting").filter(|text| text == waiting));
    std::thread::sleep(Duration::from_secs(2));
    // On a busy machine the probe of a pod may fail meanwhile, which is in there, too.
    assert!(cluster.file("waiting").is_some_and(|text| text.contains(waiting.trim_end()) || text.contains("kube-system/")));
    assert!(!cluster.serves(KUBERNETES_READY), "kubernetes-ready is served without a DNS");
    let undone = Instant::now();
    select("kube-dns");
    watch.back(undone, BOOT_LIMIT);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn readiness_works_with_a_pod_list_of_more_than_10_mb() {
    let cluster = Cluster::ready(&[]);
    // Pods that cannot be scheduled, each with almost as many annotations as allowed (256 KiB).
    let filler = "x".repeat(250_000);
    for number in 0..45 {
        cluster.create_object(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: large-{number}, annotations: {{filler: {filler}}}}}\n\
             spec: {{nodeSelector: {{none: such}}, containers: [{{name: c, image: none}}]}}\n"
        ));
    }
    let length = cluster.kubectl(&["get", "--raw", "/api/v1/pods"]).ok().len();
    assert!(length > 10 << 20, "the list has {length} bytes");
    // After its restart, the init lists the pods again.
    let watch = Watch::new(&cluster, KUBERNETES_READY);
    let killed = Instant::now();
    cluster.kill("kube-apiserver");
    let lost = watch.lost(killed, LIMIT);
    watch.back(lost, BOOT_LIMIT);
    assert!(!cluster.serves(FAILED));
    // kubelet reports the pod of the API server in several steps.
    wait_for("the status", LIMIT, || {
        let status = cluster.container.exec(&["kind", "status"]).output();
        (status.contains("kubernetes-ready  yes") && status.contains("default/large-44: not started")).then_some(())
    });
}
