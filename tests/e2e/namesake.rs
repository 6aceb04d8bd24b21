//! What makefiles call that were written for kubernetes-sigs/kind, in a job whose image is ours.

use crate::cluster::{shared, LIMIT};
use crate::engine::Container;
use crate::process::wait_for;

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_makefile_for_the_other_kind_works_in_a_job() {
    let cluster = shared();
    let environment = ["--env=DOCKER_HOST=tcp://docker:2375", "--env=KUBECONFIG=/job/kubeconfig"];
    let job = Container::idle(&[&["--network", cluster.network], &environment[..]].concat(), &["sleep", "infinity"]);
    let make = |line: &str| job.exec(&["sh", "-c", line]);
    assert_eq!(make("kind get clusters 2>/dev/null").ok(), "kind");
    assert_eq!(make("kind get nodes --name e2e").ok(), "kind");
    // Beside what the job has in its file.
    make("mkdir /job && kubectl config set-cluster other --server=https://other:1").ok();
    make("kind create cluster --name e2e --image kindest/node:v1.36.0 --config=kind.yaml").ok();
    assert_eq!(make("kubectl config current-context").ok(), "kind-e2e");
    assert!(make("kubectl get nodes").ok().contains(" Ready "));
    assert!(make("kubectl config get-clusters").ok().contains("other"));
    assert!(make("kind get kubeconfig --name=x 2>/dev/null").ok().contains("current-context: \"kind-x\""));

    let missing = make("kind load docker-image namesake:1 --name e2e");
    assert!(!missing.succeeded() && missing.stderr.contains("namesake:1 is not on the Docker"), "{missing}");
    make("printf 'FROM kind-lab/busybox:1\\nCMD [\"sleep\", \"60\"]\\n' | docker build --quiet --tag namesake:1 -").ok();
    make("kind load docker-image namesake:1 kind-lab/busybox:1 --name e2e").ok();
    make("kubectl run namesake --image=namesake:1").ok();
    wait_for("the pod runs", LIMIT, || make("kubectl get pod namesake").output().contains("Running").then_some(()));
    make("docker save namesake:1 >/job/a.tar && kind load image-archive /job/a.tar").ok();
    assert!(make("kind export logs /job/logs --name e2e && cat /job/logs/kind.log").ok().contains("kubernetes-ready"));

    let kept = make("kind delete cluster --name e2e && kubectl get nodes");
    assert!(kept.succeeded() && kept.stderr.contains("nothing is deleted"), "{kept}");
    let unknown = make("kind get frobs");
    assert!(!unknown.succeeded() && unknown.stderr.contains("not kubernetes-sigs/kind"), "{unknown}");
    make("kubectl delete pod namesake --now && docker image rm namesake:1").ok();
}
