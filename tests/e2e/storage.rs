//! Volumes that claims get, with the default StorageClass and with one that waits for a pod.

use crate::cluster::{shared, Cluster, LIMIT};
use crate::engine::BUSYBOX;
use crate::process::wait_for;

fn claim(name: &str, class: &str) -> String {
    format!(
        "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  {class}
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: 10Mi}}}}
---"
    )
}

/// A pod that is not root, with a claim on /data and an emptyDir on /scratch.
fn pod(name: &str, claim: &str, script: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  securityContext: {{runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000}}
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, '{script}; exec sleep 3600']
    volumeMounts: [{{name: data, mountPath: /data}}, {{name: scratch, mountPath: /scratch}}]
  volumes:
  - name: data
    persistentVolumeClaim: {{claimName: {claim}}}
  - name: scratch
    emptyDir: {{}}
"
    )
}

fn directory_of(cluster: &Cluster, claim: &str) -> String {
    let volume = cluster.field(&format!("pvc/{claim}"), "{.spec.volumeName}");
    cluster.field(&format!("pv/{volume}"), "{.spec.hostPath.path}")
}

fn exists(cluster: &Cluster, path: &str) -> bool {
    cluster.container.exec(&["test", "-e", path]).succeeded()
}

/// As docs/limits.md says.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_pod_with_an_fs_group_writes_to_its_claim_whose_files_keep_their_users_group() {
    let cluster = shared();
    let script = "echo x >/data/file; echo x >/scratch/file";
    cluster.apply(&(claim("grouped", "") + &pod("grouped", "grouped", script)));
    cluster.wait_for_pod(&["grouped"]);
    let groups = || cluster.in_pod("grouped", &["stat", "-c", "%u:%g", "/data/file", "/scratch/file"]).stdout;
    wait_for("both files", LIMIT, || (groups().lines().count() == 2).then_some(()));
    assert_eq!(groups(), "1000:1000\n1000:2000\n", "fsGroup is applied to an emptyDir alone");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_class_that_waits_for_a_pod_binds_its_claim_when_there_is_one() {
    let cluster = shared();
    cluster.apply(
        "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: waiting}
provisioner: kubernetes.io/host-path
volumeBindingMode: WaitForFirstConsumer
",
    );
    cluster.apply(&claim("later", "storageClassName: waiting"));
    wait_for("the claim waits", LIMIT, || {
        cluster.kubectl(&["describe", "pvc", "later"]).ok().contains("WaitForFirstConsumer").then_some(())
    });
    assert_eq!(cluster.field("pvc/later", "{.status.phase}"), "Pending");
    cluster.apply(&pod("consumer", "later", "echo x >/data/file"));
    cluster.wait_for_pod(&["consumer"]);
    assert_eq!(cluster.field("pvc/later", "{.status.phase}"), "Bound");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_deleted_claim_takes_its_volume_and_files_along_unless_its_class_retains_them() {
    let cluster = shared();
    cluster.apply(
        "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: retaining}
provisioner: kubernetes.io/host-path
reclaimPolicy: Retain
",
    );
    cluster.apply(&(claim("passing", "") + &claim("lasting", "storageClassName: retaining")));
    for name in ["passing", "lasting"] {
        wait_for("a volume", LIMIT, || (cluster.field(&format!("pvc/{name}"), "{.status.phase}") == "Bound").then_some(()));
    }
    let (passing, lasting) = (directory_of(&cluster, "passing"), directory_of(&cluster, "lasting"));
    let retained = cluster.field("pvc/lasting", "{.spec.volumeName}");
    assert!(exists(&cluster, &passing) && exists(&cluster, &lasting), "{passing} {lasting}");
    cluster.kubectl(&["delete", "pvc", "passing", "lasting"]).ok();
    wait_for("the directory is gone", LIMIT, || (!exists(&cluster, &passing)).then_some(()));
    let phase = || cluster.field(&format!("pv/{retained}"), "{.status.phase}");
    wait_for("the other volume is released", LIMIT, || (phase() == "Released").then_some(()));
    assert!(exists(&cluster, &lasting));
    cluster.kubectl(&["delete", "pv", &retained]).ok();
}
