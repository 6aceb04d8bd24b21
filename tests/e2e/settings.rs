//! What a bake can be told about its cluster: the control plane's settings, labels and taints, another network.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::bake::{build_sh, bundle, bundled_version, minor_of, with_lab_images};
use crate::cluster::{Cluster, LIMIT};
use crate::engine::{docker, session, tools, BUSYBOX};
use crate::process::{run, wait_for, Outcome};

/// For a bake and a commit on a busy machine.
const BAKE_LIMIT: Duration = Duration::from_secs(900);

/// An image that is removed when this is dropped.
struct Baked(String);

impl Drop for Baked {
    fn drop(&mut self) {
        docker(&["image", "rm", "--force", &self.0]);
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("it is in a directory")).expect("the session's directory can be written");
    std::fs::write(path, text).expect("the session's directory can be written");
}

/// Bakes from the bundle, with the init under test and hooks of `(name, text)`.
fn build(name: &str, hooks: &[(&str, &str)], settings: &[(&str, &str)]) -> (Baked, Outcome) {
    let directory = session().dir.join(format!("hooks-{name}"));
    std::fs::create_dir_all(&directory).expect("the session's directory can be written");
    hooks.iter().for_each(|(file, text)| write(&directory.join(file), text));
    let image = Baked(format!("kind-e2e-{}:{name}", std::process::id()));
    let mut build = Command::new(build_sh());
    build.arg("--bundle").arg(bundle()).arg(&image.0).env("KIND_HOOKS", &directory).env("KIND_INIT", &tools().kind);
    let outcome = run(with_lab_images(&mut build).envs(settings.iter().copied()), BAKE_LIMIT);
    (image, outcome)
}

/// The file's documents are in the API version of the bundle's kubeadm, whose flags are a list since v1beta4.
fn kubeadm_file(name: &str, fields: &str, flags: &[(&str, &str)]) -> PathBuf {
    let (api, flags) = match minor_of(&bundled_version()) == "1.20" {
        true => ("v1beta2", flags.iter().map(|(name, value)| format!("    {name}: \"{value}\"\n")).collect::<String>()),
        false => ("v1beta4", flags.iter().map(|(name, value)| format!("  - {{name: {name}, value: \"{value}\"}}\n")).collect()),
    };
    let path = session().dir.join(format!("kubeadm-{name}.yaml"));
    write(&path, &format!("apiVersion: kubeadm.k8s.io/{api}\nkind: ClusterConfiguration\n{fields}apiServer:\n  extraArgs:\n{flags}"));
    path
}

const AUDIT_POLICY: &str = "set -eu
cat >/etc/kubernetes/audit-policy.yaml <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
rules: [{level: Metadata}]
YAML
";
const AUDITED: &str = "networking:
  podSubnet: 10.200.0.0/16
  serviceSubnet: 10.43.0.0/16
";
const MORE_DOCUMENTS: &str = "  extraVolumes:
  - {name: policy, hostPath: /etc/kubernetes/audit-policy.yaml, mountPath: /etc/kubernetes/audit-policy.yaml, readOnly: true, pathType: File}
  - {name: audit, hostPath: /var/log/audit, mountPath: /var/log/audit, pathType: DirectoryOrCreate}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
maxPods: 42
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
metricsBindAddress: 0.0.0.0:10249
";

/// Neither was possible before: the control plane was as kubeadm's defaults make it, on a node with its own labels alone.
#[test]
#[ignore = "needs a Docker engine and a bundle: KIND_BUNDLE=bundle KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn the_control_plane_and_the_node_are_as_the_settings_of_the_bake_say() {
    let flags = [
        ("audit-policy-file", "/etc/kubernetes/audit-policy.yaml"),
        ("audit-log-path", "/var/log/audit/audit.log"),
        // Stays ours.
        ("secure-port", "6443"),
    ];
    let file = kubeadm_file("audited", AUDITED, &flags);
    let text = std::fs::read_to_string(&file).expect("it was just written") + MORE_DOCUMENTS;
    write(&file, &text);
    let settings = [
        ("KIND_KUBEADM", file.to_str().expect("the path is text")),
        ("KIND_NODE_LABELS", "tier=ci,example.com/disk=ssd"),
        ("KIND_NODE_TAINTS", "dedicated=ci:NoExecute,spare:NoSchedule"),
    ];
    let (image, outcome) = build("settings", &[("before-cluster.sh", AUDIT_POLICY)], &settings);
    let ignored = "KIND_KUBEADM: ignored, because a start of the image depends on it: ClusterConfiguration.apiServer.extraArgs.secure-port";
    assert!(outcome.output().contains(ignored), "{outcome}");
    outcome.ok();
    let cluster = Cluster::ready_of(&image.0);
    assert_eq!(cluster.field("node/kind", "{.metadata.labels.tier} {.metadata.labels.example\\.com/disk}"), "ci ssd");
    let taints = cluster.field("node/kind", "{range .spec.taints[*]}{.key}={.value}:{.effect} {end}");
    assert!(taints.contains("dedicated=ci:NoExecute") && taints.contains("spare=:NoSchedule"), "{taints}");
    assert_eq!(cluster.field("node/kind", "{.status.capacity.pods}"), "42");
    assert_eq!(cluster.field("service/kubernetes", "{.spec.clusterIP}"), "10.43.0.1");
    wait_for("the audit log", LIMIT, || {
        cluster.container.exec(&["grep", "-qm1", "requestURI", "/var/log/audit/audit.log"]).succeeded().then_some(())
    });

    // Pods need a toleration, and get addresses and names of the other subnets.
    cluster.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: tolerant}}
spec:
  terminationGracePeriodSeconds: 0
  tolerations: [{{operator: Exists}}]
  nodeSelector: {{tier: ci}}
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '3600']}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: choosy}}
spec:
  containers: [{{name: main, image: {BUSYBOX}, command: [sleep, '3600']}}]
"
    ));
    cluster.wait_for_pod(&["tolerant"]);
    let address = cluster.field("pod/tolerant", "{.status.podIP}");
    assert!(address.starts_with("10.200."), "{address}");
    let name = cluster.in_pod("tolerant", &["nslookup", "kubernetes.default.svc.cluster.local"]);
    assert!(name.stdout.contains("10.43.0.1"), "{name}");
    assert_eq!(cluster.field("pod/choosy", "{.status.phase}"), "Pending");
}

const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all}
spec: {podSelector: {}}
";

/// Fails unless there is no network yet, and installs one, as the manifests of Flannel and others do.
const NETWORK: &str = r#"set -eu
[ -z "$(ls /etc/cni/net.d 2>/dev/null)" ] || { echo "there is a network already"; exit 1; }
ready='jsonpath={.status.conditions[?(@.type=="Ready")].status}'
[ "$(kubectl get node kind -o "$ready")" = False ] || { echo "the node is Ready without a network"; exit 1; }
timeout 60 bash -c 'until kubectl get node kind -o jsonpath={.spec.podCIDR} | grep .; do sleep 0.2; done'
cat >/etc/cni/net.d/10-mine.conflist <<JSON
{"cniVersion": "0.4.0", "name": "mine", "plugins": [
  {"type": "bridge", "bridge": "mine0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(kubectl get node kind -o jsonpath={.spec.podCIDR})"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
kubectl wait --for=condition=Ready node kind --timeout=60s
"#;

/// With our bridge there would be two networks, and the first in the directory would win.
#[test]
#[ignore = "needs a Docker engine and a bundle: KIND_BUNDLE=bundle KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_network_that_a_hook_installs_is_the_only_one() {
    let (image, outcome) = build("network", &[("after-cluster.sh", NETWORK)], &[("KIND_CNI", "none")]);
    outcome.ok();
    let cluster = Cluster::ready_of(&image.0);
    assert_eq!(cluster.container.exec(&["ls", "/etc/cni/net.d"]).ok(), "10-mine.conflist");
    let bridges = cluster.container.exec(&["ls", "/sys/class/net"]).ok();
    assert!(bridges.contains("mine0") && !bridges.contains("cni0"), "{bridges}");
    let name = cluster.in_pod(cluster.client(), &["nslookup", "kubernetes.default.svc.cluster.local"]);
    assert!(name.stdout.contains("10.96.0.1"), "{name}");
    // The bake's pods have given their addresses back: CoreDNS and the client have one each.
    let allocated = || cluster.container.exec(&["sh", "-c", "ls /var/lib/cni/networks/mine | grep -c '^[0-9]'"]).stdout;
    wait_for("two addresses in use", LIMIT, || (allocated().trim() == "2").then_some(()));
    // Whoever installs a network knows whether it enforces policies: we do not.
    cluster.apply(POLICY);
    cluster.kubectl(&["run", "later", &format!("--image={BUSYBOX}"), "--command", "--", "sleep", "3600"]).ok();
    cluster.wait_for_pod(&["later"]);
    assert!(!cluster.container.logs().contains("does not enforce NetworkPolicies"));
}

/// Stands in for kube-router, which is not at hand where there is no network: it only says that it is healthy.
const STAND_IN: &str = r#"docker build --quiet --tag stand-in/kube-router:1 - <<'DOCKERFILE'
FROM kind-lab/busybox:1
RUN mkdir /www && echo ok >/www/healthz
ENTRYPOINT ["sh", "-c", "exec httpd -f -p 20244 -h /www"]
DOCKERFILE
"#;

/// docs/cluster.md says with which kube-router policies were seen to be enforced.
#[test]
#[ignore = "needs a Docker engine and a bundle: KIND_BUNDLE=bundle KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn the_firewall_that_was_asked_for_is_baked_and_policies_are_not_said_to_be_ignored() {
    let (image, outcome) = build("policies", &[("before-cluster.sh", STAND_IN)], &[("KIND_NETWORK_POLICY", "stand-in/kube-router:1")]);
    outcome.ok();
    let cluster = Cluster::ready_of(&image.0);
    let field = |path: &str| {
        cluster.kubectl(&["-n", "kube-system", "get", "daemonset", "kube-router", "--output", &format!("jsonpath={path}")]).ok()
    };
    assert_eq!(field("{.spec.template.spec.containers[0].image}"), "stand-in/kube-router:1");
    wait_for("the DaemonSet's status, which follows its pod's", LIMIT, || (field("{.status.numberReady}") == "1").then_some(()));
    let arguments = field("{.spec.template.spec.containers[0].args}");
    assert!(arguments.contains("--run-firewall=true") && arguments.contains("--run-service-proxy=false"), "{arguments}");
    cluster.apply(POLICY);
    // What comes after it in the log or in the list of Events would come after its own.
    cluster.kubectl(&["run", "later", &format!("--image={BUSYBOX}"), "--command", "--", "sleep", "3600"]).ok();
    cluster.wait_for_pod(&["later"]);
    assert!(!cluster.container.logs().contains("does not enforce NetworkPolicies"));
    assert!(!cluster.kubectl(&["get", "events"]).ok().contains("NotEnforced"));
}

#[test]
#[ignore = "needs a Docker engine and a bundle: KIND_BUNDLE=bundle KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_setting_that_cannot_be_is_refused_by_name() {
    let lost = kubeadm_file("lost", "scheduler:\n  extraVolumes:\n  - {name: a, hostPath: /root/a, mountPath: /a}\n", &[("v", "2")]);
    let overlapping = kubeadm_file("overlapping", "networking: {podSubnet: 10.100.0.0/16}\n", &[("v", "2")]);
    let none = session().dir.join("no-such-file");
    for (name, value, words) in [
        ("KIND_KUBEADM", none.to_str(), "is not a file"),
        ("KIND_KUBEADM", lost.to_str(), "KIND_KUBEADM: /root/a in /scheduler/extraVolumes will not be in the image"),
        ("KIND_KUBEADM", overlapping.to_str(), "networking.podSubnet 10.100.0.0/16 and networking.serviceSubnet 10.96.0.0/12 overlap"),
        ("KIND_NODE_LABELS", Some("tier"), "KIND_NODE_LABELS: tier has no value"),
        ("KIND_NODE_TAINTS", Some("dedicated:Never"), "invalid taint effect: Never"),
        ("KIND_NETWORK_POLICY", Some("calico"), "invalid KIND_NETWORK_POLICY=calico: use 1"),
        ("KIND_CNI", Some("calico"), "KIND_CNI=calico is neither bridge nor none"),
    ] {
        let (image, outcome) = build("refused", &[], &[(name, value.expect("the path is text"))]);
        assert!(!outcome.succeeded() && outcome.output().contains(words), "{words} is not in: {outcome}");
        assert!(!docker(&["image", "inspect", &image.0]).succeeded(), "there is an image all the same");
    }
}
