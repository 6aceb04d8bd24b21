//! `/logs.tar.gz`, `kind logs` and `wait-for-kind.sh --logs`: what explains a node reaches the job, and passwords do not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::api::Api;
use crate::cluster::{Cluster, FAILED, LIMIT};
use crate::engine::{session, BUSYBOX};
use crate::process::{run, wait_for, Outcome};

/// What shells, patterns and awk take for something else.
const PASSWORD: &str = "sword.fi\\nsh\\c[1]&*";
/// And its beginning: a shorter one must not uncover the rest.
const OTHER_PASSWORD: &str = "sword.fi";
const IN_A_SECRET: &str = "of-a-secret-object";
const IN_A_VARIABLE: &str = "of-a-variable";
/// Bytes of each file, at most.
const MOST: u64 = 1024 * 1024;

fn wait_for_kind(cluster: &Cluster, directory: &Path) -> Outcome {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/wait-for-kind.sh");
    run(Command::new(script).arg("--logs").arg(directory).env("KIND_HOST", cluster.address()), LIMIT)
}

/// The files below a directory, without the ids in the names of pods' directories.
fn files(directory: &Path) -> BTreeSet<String> {
    let list = run(Command::new("find").args([".", "-type", "f"]).current_dir(directory), LIMIT).ok();
    let without_id = |path: &str| match path.strip_prefix("./pods/").and_then(|path| path.split_once('/')) {
        Some((pod, rest)) => format!("./pods/{}/{rest}", pod.rsplit_once('_').map_or(pod, |(name, _)| name)),
        None => path.to_string(),
    };
    list.lines().map(without_id).collect()
}

fn read(directory: &Path, name: &str) -> String {
    let bytes = std::fs::read(directory.join(name)).unwrap_or_else(|cause| panic!("{name}: {cause}"));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn directory(name: &str) -> PathBuf {
    let directory = session().dir.join(name);
    let _ = std::fs::remove_dir_all(&directory);
    directory
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_job_gets_everything_that_explains_its_node_and_no_passwords() {
    let password = format!("--env=KIND_REGISTRY_PASSWORD={PASSWORD}");
    let cluster = Cluster::ready(&["--env=KIND_REGISTRY=registry.test", "--env=KIND_REGISTRY_USER=ci", &password]);
    let other = format!(r#"printf 'other.test:%s' '{OTHER_PASSWORD}' | base64"#);
    let other = cluster.container.exec(&["sh", "-c", &other]).ok();
    let add = format!(r#"sed -i 's|"auths":{{|&"other.test":{{"auth":"{other}"}},|' /root/.docker/config.json"#);
    cluster.container.exec(&["sh", "-c", &add]).ok();
    cluster.kubectl(&["create", "secret", "generic", "secret", &format!("--from-literal=key={IN_A_SECRET}")]).ok();
    let variable = format!("--env=DATABASE_PASSWORD={IN_A_VARIABLE}");
    cluster.kubectl(&["run", "broken", &variable, "--image=registry.test/missing:1"]).ok();
    // It has no condition Ready at all.
    let nowhere = r#"{"spec": {"nodeSelector": {"no": "where"}}}"#;
    cluster.kubectl(&["run", "nowhere", "--image=registry.test/missing:1", &format!("--overrides={nowhere}")]).ok();
    // More than is kept of one log, and then what matters.
    let script = format!("yes abcdefghij | head -c 300000; printf '%s\\n' 'logged in with {PASSWORD}, twice: {PASSWORD}{OTHER_PASSWORD}'; echo the end; sleep 3600");
    cluster.kubectl(&["run", "talker", &format!("--image={BUSYBOX}"), "--command", "--", "sh", "-c", &script]).ok();
    wait_for("the pod's last word", LIMIT, || cluster.kubectl(&["logs", "talker", "--tail=1"]).output().contains("the end").then_some(()));
    let broken = || cluster.kubectl(&["describe", "pod", "broken"]).output();
    wait_for("the pull that fails", LIMIT, || broken().contains("ErrImagePull").then_some(()));
    // Containers of restored programs have logs a moment after kubernetes-ready.
    Api::new(&cluster).wait_until_baked_pods_run();

    let (first, second) = (directory("logs-1"), directory("logs-2"));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| wait_for_kind(&cluster, &second).ok());
        wait_for_kind(&cluster, &first).ok();
        other.join().expect("the second client gets them too");
    });
    let collected = files(&first);
    for name in [
        "kind.log",
        "dockerd.log",
        "containerd.log",
        "kubelet.log",
        "status.json",
        "timeline",
        "kubernetes-ready",
        "cluster/nodes.txt",
        "cluster/objects.txt",
        "cluster/events.txt",
        "cluster/pods-not-ready.txt",
        "docker/images.txt",
        "node/disks.txt",
        "pods/default_talker/talker/0.log",
        "pods/kube-system_etcd-kind/etcd/0.log",
    ] {
        assert!(collected.contains(&format!("./{name}")), "{name} is not among {collected:?}");
    }
    assert_eq!(files(&second), collected);
    // Whatever a job has set for its own clients.
    let kind_logs = "export KUBECONFIG=/nowhere DOCKER_HOST=tcp://nowhere:1 DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH=/nowhere
        kind logs | tar -xz -C /tmp/logs -f - && grep -l 'Server Version' /tmp/logs/docker/info.txt >&2 && cd /tmp/logs && find . -type f";
    cluster.container.exec(&["mkdir", "/tmp/logs"]).ok();
    let listed = cluster.container.exec(&["sh", "-c", kind_logs]).ok();
    assert_eq!(listed.lines().count(), collected.len(), "{listed}\n{collected:?}");

    for (name, text) in [
        ("kind.log", "kubernetes-ready: store"),
        ("status.json", "\"kubernetesReady\": true"),
        ("cluster/nodes.txt", "Name:               kind"),
        ("cluster/pods-not-ready.txt", "DATABASE_PASSWORD: (left out)"),
        ("cluster/pods-not-ready.txt", "ErrImagePull"),
        ("cluster/pods-not-ready.txt", "Name:             nowhere"),
        ("cluster/events.txt", "pod/broken"),
        ("docker/info.txt", "Server Version"),
        ("node/processes.txt", "dockerd"),
    ] {
        assert!(read(&first, name).contains(text), "{text:?} is not in {name}:\n{}", read(&first, name));
    }
    let said = run(Command::new("sh").args(["-c", "cat pods/default_talker_*/talker/0.log"]).current_dir(&first), LIMIT).ok();
    assert!(
        said.ends_with("the end") && said.contains("logged in with (left out), twice: (left out)(left out)"),
        "{} bytes: {}",
        said.len(),
        said.lines().rev().take(5).collect::<Vec<_>>().join("\n")
    );
    assert!(said.len() as u64 <= MOST, "{} bytes", said.len());
    // `echo -n of-a-secret-object | base64`
    for secret in [PASSWORD, OTHER_PASSWORD, IN_A_SECRET, "b2YtYS1zZWNyZXQtb2JqZWN0", IN_A_VARIABLE] {
        let found = run(Command::new("grep").args(["-rlF", secret, "."]).current_dir(&first), LIMIT);
        assert_eq!(found.output().trim(), "", "{secret}");
    }
    // The negative control: it was there to be found.
    assert!(cluster.kubectl(&["logs", "talker", "--tail=2"]).output().contains(PASSWORD));
    let left = cluster.container.exec(&["sh", "-c", "ls -d /dev/shm/kind-logs* /tmp/kind-logs* 2>/dev/null || echo none"]).ok();
    assert_eq!(left.trim(), "none");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_boot_that_failed_before_there_was_an_api_server_explains_itself() {
    let cluster = Cluster::start(&["--env=KIND_RESTORE=0", "--env=KIND_KUBELET_ARGS=--no-such-flag"]);
    wait_for("the failure", LIMIT, || cluster.serves(FAILED).then_some(()));
    let logs = directory("logs-failed");
    wait_for_kind(&cluster, &logs).ok();
    assert!(read(&logs, "failed").contains("kubelet"), "{}", read(&logs, "failed"));
    assert!(read(&logs, "kubelet.log").contains("no-such-flag"));
    assert!(read(&logs, "kind.log").contains("ERROR [boot]"), "{}", read(&logs, "kind.log"));
    assert!(read(&logs, "cluster/no-answer.txt").contains("does not answer"));
}
