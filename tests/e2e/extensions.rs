//! What users add at the start of the container: manifests, scripts, arguments for the daemons.

use crate::cluster::{fetch, Cluster, BOOT_LIMIT, FAILED, KUBERNETES_READY, LIMIT};
use crate::engine::{session, BUSYBOX};
use crate::process::wait_for;

/// A pod that becomes Ready only some time after its start.
const SLOW_WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: slow}
spec:
  selector: {matchLabels: {app: slow}}
  template:
    metadata: {labels: {app: slow}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: BUSYBOX
        command: [sh, -c, 'sleep 2; echo slow >/tmp/index.html; exec httpd -f -p 8080 -h /tmp']
        readinessProbe: {httpGet: {port: 8080, path: /index.html}, periodSeconds: 1}
";

const STATIC_POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: extra, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: sleep, image: BUSYBOX, command: [sleep, '3600']}]
";

/// A CRD as large as those of Argo and Prometheus: larger than an annotation may be.
fn large_crd() -> String {
    let description = "word ".repeat(60_000);
    format!(
        "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: things.example.com}}
spec:
  group: example.com
  names: {{kind: Thing, plural: things}}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {{openAPIV3Schema: {{type: object, description: '{description}'}}}}
"
    )
}

fn make_directory(cluster: &Cluster, path: &str) {
    let local = session().dir.join(format!("empty-{}", path.replace('/', "_")));
    std::fs::create_dir_all(&local).expect("the session's directory can be written");
    cluster.container.copy_to(&local, path);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn manifests_and_scripts_have_done_their_work_when_kubernetes_is_ready() {
    let arguments =
        ["--env", "KIND_KUBELET_ARGS=--max-pods=50 --system-reserved=memory=64Mi", "--env", "KIND_DOCKERD_ARGS=--label=tier=ci"];
    let cluster = Cluster::create(&arguments);
    make_directory(&cluster, "/kind/manifests");
    cluster.put("/kind/manifests/10-custom.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: added}\n");
    cluster.put("/kind/manifests/20-slow.yaml", &SLOW_WEB.replace("BUSYBOX", BUSYBOX));
    cluster.put("/kind/manifests/05-large.yaml", &large_crd());
    // kubelet names a static pod after its manifest's own name and namespace, not after the file.
    cluster.put("/etc/kubernetes/manifests/of-the-user.yaml", &STATIC_POD.replace("BUSYBOX", BUSYBOX));
    let note = "echo \"$(basename $0) $(kubectl get deployment slow --output=jsonpath={.status.readyReplicas})\" >>/seen\n";
    cluster.put("/kubernetes-ready.sh", &format!("{note}echo 'to the log'\n[ ! -e /var/kind/kubernetes-ready ] || echo early >>/seen\n"));
    make_directory(&cluster, "/kubernetes-ready.d");
    cluster.put("/kubernetes-ready.d/20-last.sh", note);
    // kubernetes-ready does not wait for processes that a script leaves in the background.
    cluster.put("/kubernetes-ready.d/10-first.sh", &format!("{note}sleep 1000 &\n"));
    cluster.put("/kubernetes-ready.d/notes.txt", "exit 1\n");
    cluster.container.start();
    cluster.wait_until_ready();
    let seen = cluster.container.exec(&["cat", "/seen"]).ok();
    assert_eq!(seen, "kubernetes-ready.sh 1\n10-first.sh 1\n20-last.sh 1");
    let log = cluster.container.logs();
    assert!(log.contains("[script]") && log.contains("to the log") && log.contains("deployment.apps/slow serverside-applied"), "{log}");
    cluster.kubectl(&["get", "namespace", "added"]).ok();
    cluster.kubectl(&["get", "crd", "things.example.com"]).ok();
    assert_eq!(cluster.field("pod/extra-kind", "{.status.phase}"), "Running");
    let timeline = cluster.timeline();
    let names: Vec<&str> = timeline.lines().filter_map(|line| Some(line.split_once(' ')?.1)).collect();
    assert!(names.ends_with(&["cluster", "manifests", "scripts", KUBERNETES_READY]), "{timeline}");
    assert_eq!(cluster.field("node/kind", "{.status.capacity.pods}"), "50");
    assert_eq!(cluster.inner_docker(&["info", "--format", "{{.Labels}}"]).ok(), "[tier=ci]");
}

/// Waits until the boot has failed, and returns why.
fn failure(cluster: &Cluster) -> String {
    wait_for("the boot fails", BOOT_LIMIT, || cluster.file(FAILED))
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_script_that_fails_fails_the_boot() {
    let cluster = Cluster::create(&[]);
    cluster.put("/kubernetes-ready.sh", "echo 'the seed data is broken' >&2\nexit 7\n");
    make_directory(&cluster, "/kubernetes-ready.d");
    cluster.put("/kubernetes-ready.d/after.sh", "echo ran >/ran\n");
    cluster.container.start();
    let why = failure(&cluster);
    assert!(why.contains("/kubernetes-ready.sh ended with status 7") && why.contains("the seed data is broken"), "{why}");
    assert!(!cluster.serves(KUBERNETES_READY) && !cluster.container.exec(&["kind", "healthcheck"]).succeeded());
    assert!(!cluster.container.exec(&["test", "-e", "/ran"]).succeeded(), "no script runs after one that failed");
    // wait-for-kind.sh reports it to the job.
    let script = session().dir.join("wait-for-kind.sh");
    let (_, text) = fetch(&cluster.url("127.0.0.1", "wait-for-kind.sh")).expect("it is served");
    std::fs::write(&script, text).expect("the session's directory can be written");
    let mut wait = std::process::Command::new("sh");
    wait.arg(&script).env("KIND_HOST", "127.0.0.1").env("KIND_PORT", cluster.files_port.to_string());
    let waited = crate::process::run(&mut wait, LIMIT);
    assert!(!waited.succeeded() && waited.stderr.contains("the seed data is broken"), "{waited}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_manifest_that_cannot_be_applied_is_named_with_kubectls_error() {
    let cluster = Cluster::create(&[]);
    make_directory(&cluster, "/kind/manifests");
    cluster.put("/kind/manifests/wrong.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Not_A_Name}\n");
    cluster.container.start();
    let why = failure(&cluster);
    assert!(why.contains("/kind/manifests/wrong.yaml cannot be applied") && why.contains("Not_A_Name"), "{why}");
    assert!(!cluster.serves(KUBERNETES_READY));
}
