//! A reset: the cluster begins again in the middle of a job, and Docker goes on.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::api::{Api, Pod};
use crate::cluster::{
    fetch, kubectl_with, Cluster, BOOT_LIMIT, CONFIG, CREDENTIALS, DOCKER_READY, FAILED, KUBERNETES_READY, LIMIT, RESET_GUARD, TIMELINE,
};
use crate::engine::{docker, session, tools, BUSYBOX};
use crate::process::wait_for;
use crate::start::{on_both_starts, Start};

/// A user's things of every kind: claims and their files, files of the job in a pod, a namespace that cannot be deleted.
const THINGS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec:
  group: example.com
  names: {kind: Thing, plural: things}
  scope: Namespaced
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]
---
apiVersion: v1
kind: Namespace
metadata: {name: stuck}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: stuck, namespace: stuck, finalizers: [example.com/never]}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Service
metadata: {name: app}
spec: {type: LoadBalancer, selector: {app: app}, ports: [{port: 18080, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: files}
spec:
  containers:
  - name: files
    image: BUSYBOX
    command: [sh, -c, 'trap : TERM; echo of the pod >/claim/file; while :; do sleep 1; done']
    volumeMounts:
    - {name: claim, mountPath: /claim}
    - {name: job, mountPath: /whole, mountPropagation: Bidirectional}
    - {name: job, mountPath: /part, subPath: below}
    - {name: empty, mountPath: /empty}
    securityContext: {privileged: true}
  volumes:
  - {name: claim, persistentVolumeClaim: {claimName: claim}}
  - {name: job, hostPath: {path: /job, type: Directory}}
  - {name: empty, emptyDir: {medium: Memory}}
";

/// The names of all objects that a reset is about but pods, whose names change with every start.
fn objects(cluster: &Cluster) -> BTreeSet<String> {
    let kinds = "namespaces,deployments,services,configmaps,secrets,persistentvolumeclaims,persistentvolumes,customresourcedefinitions";
    cluster.kubectl(&["get", kinds, "--all-namespaces", "--output=name"]).ok().lines().map(str::to_string).collect()
}

fn containers(pods: &[Pod]) -> Vec<&String> {
    pods.iter().flat_map(|pod| &pod.containers).collect()
}

/// A process in a container of Docker's that sends back what it gets, over one connection.
pub struct Echo(Child);

impl Echo {
    pub fn start(cluster: &Cluster) -> Echo {
        cluster.inner_docker(&["run", "--detach", "--name", "lives", BUSYBOX, "sleep", "3600"]).ok();
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", format!("tcp://127.0.0.1:{}", cluster.docker_port)).env_remove("DOCKER_CONTEXT");
        command.args(["exec", "--interactive", "lives", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Echo(command.spawn().expect("docker is there"))
    }

    pub fn check(&mut self) {
        writeln!(self.0.stdin.as_mut().expect("it is piped"), "are you there?").expect("the connection is open");
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().expect("it is piped")).read_line(&mut line).expect("the connection is open");
        assert_eq!(line, "are you there?\n");
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks every 10 ms whether the cluster is ready, until `ended`. Returns each answer with the time of its question.
fn poll_readiness(cluster: &Cluster, ended: &AtomicBool) -> Vec<(Instant, Option<u16>)> {
    let mut seen = vec![];
    while !ended.load(Ordering::Relaxed) {
        seen.push((Instant::now(), cluster.status(KUBERNETES_READY)));
        thread::sleep(Duration::from_millis(10));
    }
    seen
}

fn the_cluster_is_as_it_was_baked_while_docker_goes_on(start: Start) {
    let job = session().dir.join(format!("job-{start:?}"));
    std::fs::create_dir_all(job.join("below")).expect("the session's directory can be written");
    std::fs::write(job.join("below/mine"), "of the job\n").expect("the session's directory can be written");
    let cluster = start.ready(&[&format!("--volume={}:/job", job.display())]);
    let (baked, volumes) = (objects(&cluster), cluster.container.exec(&["ls", "/tmp/hostpath_pv"]).ok());
    let of_boot = Api::new(&cluster).wait_until_baked_pods_run();
    let kubeconfig = cluster.kubeconfig("127.0.0.1");
    // Names that the API server's certificate gets only after a start.
    let address = cluster.address();
    let is_certified = || fetch(&format!("http://{address}:10080/config")).is_some_and(|(_, config)| !config.contains("tls-server-name"));
    wait_for("the certificate holds the container's address", LIMIT, || is_certified().then_some(()));
    let sysctl = |name: &str| cluster.container.exec(&["cat", &format!("/proc/sys/net/ipv4/{name}")]).ok();
    if start == Start::Restored {
        let reserved = sysctl("ip_local_reserved_ports");
        assert!(reserved.split([',', '-']).any(|port| port == "2379"), "the ports of saved connections are not reserved: {reserved}");
    }
    let settings = ["tcp_max_tw_buckets", "tcp_migrate_req"].map(sysctl);

    cluster.build("app:1", "of the job").ok();
    cluster.apply(&THINGS.replace("BUSYBOX", BUSYBOX));
    cluster.kubectl(&["create", "deployment", "app", "--image=app:1", "--replicas=2"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment", "app", "--timeout=60s"]).ok();
    cluster.wait_for_pod(&["files"]);
    assert_eq!(cluster.in_pod("files", &["cat", "/part/mine"]).stdout, "of the job\n");
    cluster.in_pod("files", &["mount", "-t", "tmpfs", "none", "/whole/below"]).ok();
    cluster.kubectl(&["delete", "namespace", "stuck", "--wait=false"]).ok();
    let mut echo = Echo::start(&cluster);
    echo.check();
    let since = |cluster: &Cluster| cluster.inner_docker(&["inspect", "--format", "{{.State.StartedAt}} {{.State.Pid}}", "lives"]).ok();
    let before = since(&cluster);
    let rules = || cluster.container.exec(&["iptables-save"]).ok();
    wait_for("kube-proxy's rules", LIMIT, || rules().contains("default/app").then_some(()));

    let mut watch = Command::new(&tools().kubectl)
        .env("KUBECONFIG", &kubeconfig)
        .args(["get", "pods", "--watch", "--output=name"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("kubectl is there");
    // One that has not begun would be one of the new cluster.
    let mut listed = String::new();
    BufReader::new(watch.stdout.as_mut().expect("it is piped")).read_line(&mut listed).expect("kubectl writes");
    assert!(listed.starts_with("pod/"), "{listed}");
    let ended = AtomicBool::new(false);
    let slow = "FROM BUSYBOX\nRUN sleep 5 && echo built >/built\n".replace("BUSYBOX", BUSYBOX);
    let context = session().dir.join(format!("slow-{start:?}"));
    std::fs::create_dir_all(&context).and_then(|()| std::fs::write(context.join("Dockerfile"), slow)).expect("it can be written");
    thread::scope(|scope| {
        let build = scope.spawn(|| cluster.inner_docker(&["build", "--tag", "slow:1", &context.to_string_lossy()]));
        thread::sleep(Duration::from_secs(1));
        let poller = scope.spawn(|| poll_readiness(&cluster, &ended));
        let (status, text) = cluster.post("reset", &[RESET_GUARD]);
        let answered = Instant::now();
        assert_eq!(status, 202, "{text}");
        for file in [KUBERNETES_READY, CONFIG].iter().chain(&CREDENTIALS) {
            // Those of the new one come as soon as its API server answers.
            let is_new = || cluster.file(TIMELINE).is_some_and(|timeline| timeline.contains(" api-server\n"));
            assert!(cluster.status(file) == Some(404) || is_new(), "{file} of the earlier cluster is still there");
        }
        assert!(cluster.serves(DOCKER_READY));
        cluster.wait_until_ready();
        ended.store(true, Ordering::Relaxed);
        let seen = poller.join().expect("it does not panic");
        let mut answers: Vec<_> = seen.into_iter().filter(|(asked, _)| *asked >= answered).map(|(_, status)| status).collect();
        answers.dedup();
        assert!([&[Some(404), Some(200)][..], &[Some(404)]].contains(&answers.as_slice()), "{answers:?}");
        assert!(cluster.serves(DOCKER_READY));
        build.join().expect("it does not panic").ok();
    });
    start.check(&cluster);
    wait_for("the end of a watch of the earlier cluster", LIMIT, || watch.try_wait().expect("nobody else waits for it"));
    wait_for("the certificate holds the container's address again", LIMIT, || is_certified().then_some(()));
    assert_eq!(["tcp_max_tw_buckets", "tcp_migrate_req"].map(sysctl), settings);
    assert_eq!(objects(&cluster), baked);
    let pods = Api::new(&cluster).wait_until_baked_pods_run();
    assert!(!containers(&pods).iter().any(|id| containers(&of_boot).contains(id)), "{pods:?} and before {of_boot:?}");
    let timeline = cluster.timeline();
    let names: Vec<&str> = timeline.lines().filter_map(|line| line.split_once(' ')).map(|(_, name)| name).collect();
    assert!(names.contains(&"reset") && names.contains(&DOCKER_READY) && names.last() == Some(&KUBERNETES_READY), "{timeline}");
    assert_eq!(names.iter().filter(|name| **name == "api-server").count(), 1, "{timeline}");

    // What pods have left is gone, but not what is the job's.
    assert_eq!(cluster.container.exec(&["ls", "/tmp/hostpath_pv"]).ok(), volumes);
    assert_eq!(std::fs::read_to_string(job.join("below/mine")).expect("the job's files are there"), "of the job\n");
    let uids = cluster.kubectl(&["get", "pods", "--all-namespaces", "--output=jsonpath={.items[*].metadata.uid}"]).ok();
    let mounts = cluster.container.exec(&["sh", "-c", "grep -o '/var/lib/kubelet/pods/[^/]*' /proc/self/mountinfo | sort -u"]).ok();
    let foreign: Vec<&str> = mounts.lines().filter(|path| !uids.split(' ').any(|uid| path.ends_with(uid))).collect();
    assert!(foreign.is_empty(), "{foreign:?} belong to none of {uids}");
    wait_for("kube-proxy's rules of the earlier cluster to be gone", LIMIT, || (!rules().contains("default/app")).then_some(()));

    // Docker has gone on, and pods run what it has built.
    assert_eq!(since(&cluster), before);
    echo.check();
    for (name, image) in [("again", "app:1"), ("slow", "slow:1")] {
        cluster.kubectl(&["run", name, &format!("--image={image}"), "--command", "--", "sleep", "3600"]).ok();
        cluster.wait_for_pod(&[name]);
    }
    kubectl_with(&kubeconfig, &["get", "pod", "again"]).ok();
    // A reset from inside, and the next start.
    let said = cluster.container.exec(&["kind", "reset"]).ok();
    assert!(said.contains("as it was baked, and ready after"), "{said}");
    start.check(&cluster);
    assert_eq!(objects(&cluster), baked);
    echo.check();
    docker(&["restart", &cluster.container.id]).ok();
    cluster.wait_until_ready();
    start.check(&cluster);
    assert_eq!(objects(&cluster), baked);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_reset_is_refused_with_the_reason_and_two_at_once_are_one() {
    let cluster = Cluster::create(&[]);
    cluster.hold();
    cluster.container.start();
    wait_for("the file server answers", LIMIT, || cluster.status(TIMELINE));
    let (status, text) = cluster.post("reset?wait=60", &[RESET_GUARD]);
    assert!(status == 409 && text.contains("still being started"), "{status} {text}");
    cluster.let_go();
    cluster.wait_until_ready();
    for (headers, status, word) in [
        (&[][..], 403, "X-Kind: reset"),
        (&[("X-Kind", "yes")], 403, "X-Kind: reset"),
        (&[RESET_GUARD, ("Origin", "http://127.0.0.1:10080")], 403, "web pages"),
    ] {
        let answer = cluster.post("reset", headers);
        assert!(answer.0 == status && answer.1.contains(word), "{headers:?}: {answer:?}");
    }
    assert_eq!(cluster.post("reset?wait=soon", &[RESET_GUARD]).0, 400);
    assert_eq!(fetch(&cluster.url("127.0.0.1", "reset")).map(|(status, _)| status), Some(405));
    assert!(cluster.serves(KUBERNETES_READY), "a refused reset changes nothing");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| cluster.reset());
        }
    });
    // It does not end when nobody waits any longer.
    assert_eq!(cluster.post("reset?wait=0", &[RESET_GUARD]).0, 504);
    cluster.wait_until_ready();
    assert_eq!(cluster.container.logs().matches("requested: the cluster begins again").count(), 2);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn scripts_run_again_and_one_that_fails_fails_that_reset_alone() {
    let cluster = Cluster::create(&[]);
    cluster.put("/kubernetes-ready.sh", "echo \"${KIND_RESET:-first}\" >>/seen; [ ! -e /broken ] || { echo 'it is broken'; exit 3; }\n");
    cluster.container.start();
    cluster.wait_until_ready();
    cluster.container.exec(&["touch", "/broken"]).ok();
    let failed = cluster.container.exec(&["kind", "reset"]);
    assert!(!failed.succeeded() && failed.stderr.contains("/kubernetes-ready.sh") && failed.stderr.contains("it is broken"), "{failed}");
    assert!(cluster.serves(FAILED) && !cluster.serves(KUBERNETES_READY) && cluster.serves(DOCKER_READY));
    cluster.container.exec(&["rm", "/broken"]).ok();
    cluster.container.exec(&["kind", "reset"]).ok();
    assert!(!cluster.serves(FAILED) && cluster.serves(KUBERNETES_READY));
    assert_eq!(cluster.container.exec(&["cat", "/seen"]).ok(), "first\n1\n1");
    docker(&["stop", &cluster.container.id]).ok();
    assert_eq!(cluster.container.inspect("{{.State.ExitCode}}"), "0");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_task_of_which_the_cri_plugin_knows_nothing_does_not_fail_a_reset() {
    let cluster = Cluster::ready(&[]);
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: half}, spec: {restartPolicy: Never, containers: [
      {name: ended, image: BUSYBOX, command: ['true']}, {name: runs, image: BUSYBOX, command: [sleep, '3600']}]}}";
    cluster.create_object(&pod.replace("BUSYBOX", BUSYBOX));
    let ended = "jsonpath={.status.containerStatuses[0].state.terminated.reason}=Completed";
    cluster.kubectl(&["wait", &format!("--for={ended}"), "pod/half", "--timeout=60s"]).ok();
    // What containerd keeps when kubelet is killed while it starts a container: https://github.com/containerd/containerd/issues/11037.
    let container = cluster.field("pod/half", "{.status.containerStatuses[0].containerID}").replace("containerd://", "");
    let ctr = |arguments: &[&str]| {
        let fixed = ["ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io", "tasks"];
        cluster.container.exec(&[&fixed[..], arguments].concat()).ok()
    };
    ctr(&["start", "--detach", "--null-io", &container]);
    cluster.reset();
    wait_for("the task to be gone", LIMIT, || (!ctr(&["ls", "--quiet"]).contains(&container)).then_some(()));
    assert!(cluster.container.logs().contains("deleted the task of a killed container"), "the reset did not meet what this is about");
}

/// What a reset could leave behind, counted.
const COUNTED: &str = include_str!("../stress/leftovers.sh");

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn nothing_grows_with_the_number_of_resets() {
    let cluster = Cluster::ready(&[]);
    let count = || {
        Api::new(&cluster).wait_until_baked_pods_run();
        cluster.container.exec(&["sh", "-c", COUNTED]).ok()
    };
    cluster.reset();
    // What belongs to the start alone ends within seconds of it.
    let mut settled = count();
    wait_for("the first count to settle", LIMIT, || {
        thread::sleep(Duration::from_secs(5));
        let earlier = std::mem::replace(&mut settled, count());
        (earlier == settled).then_some(())
    });
    for _ in 0..4 {
        cluster.kubectl(&["create", "deployment", "app", &format!("--image={BUSYBOX}"), "--replicas=3", "--", "sleep", "3600"]).ok();
        cluster.kubectl(&["rollout", "status", "deployment", "app", "--timeout=60s"]).ok();
        cluster.reset();
    }
    let numbers = |counts: &str| -> Vec<u32> {
        let number = |line: &str| line.rsplit_once(' ').and_then(|(_, number)| number.trim().parse().ok());
        counts.lines().map(|line| number(line).unwrap_or_else(|| panic!("no number in {line}"))).collect()
    };
    let mut last = String::new();
    // An idle connection of the init's to the API server is there or not.
    let spare = |line: &str| u32::from(line.starts_with("descriptors "));
    let same = crate::process::poll(LIMIT, || {
        last = count();
        let most: Vec<_> = numbers(&settled).iter().zip(settled.lines()).map(|(before, line)| before + spare(line)).collect();
        numbers(&last).iter().zip(most).all(|(now, most)| *now <= most).then_some(())
    });
    assert!(same.is_some(), "after one reset:\n{settled}\nafter five:\n{last}");
}

fn a_container_that_is_killed_in_the_middle_of_a_reset_is_ready_at_the_next_start(start: Start) {
    const MOMENTS: u32 = 4;
    let cluster = start.ready(&[]);
    let began = Instant::now();
    cluster.reset();
    let took = began.elapsed();
    for moment in 0..MOMENTS {
        assert_eq!(cluster.post("reset", &[RESET_GUARD]).0, 202);
        thread::sleep(took * moment / MOMENTS);
        docker(&["kill", "--signal", "KILL", &cluster.container.id]).ok();
        cluster.container.start();
        let after = took.as_secs_f64() * f64::from(moment) / f64::from(MOMENTS);
        cluster.ready_within(BOOT_LIMIT).unwrap_or_else(|why| panic!("killed {after:.1} s after the request: {why}"));
        cluster.kubectl(&["get", "nodes"]).ok();
    }
}

fn a_stop_in_the_middle_of_a_reset_is_orderly(start: Start) {
    let cluster = start.ready(&[]);
    for wait in [0, 200, 600, 1500] {
        assert_eq!(cluster.post("reset", &[RESET_GUARD]).0, 202);
        thread::sleep(Duration::from_millis(wait));
        let before = cluster.container.logs().len();
        // Docker kills it after 10 s, with another status.
        docker(&["stop", &cluster.container.id]).ok();
        assert_eq!(cluster.container.inspect("{{.State.ExitCode}}"), "0", "{wait} ms after the request");
        let log = cluster.container.logs()[before..].to_string();
        assert!(!log.contains("ERROR") && log.lines().last().is_some_and(|line| line.contains("stopped")), "{wait} ms: {log}");
        cluster.container.start();
        cluster.wait_until_ready();
    }
}

on_both_starts! {
    a_stop_in_the_middle_of_a_reset_is_orderly
    the_cluster_is_as_it_was_baked_while_docker_goes_on
    a_container_that_is_killed_in_the_middle_of_a_reset_is_ready_at_the_next_start
}
