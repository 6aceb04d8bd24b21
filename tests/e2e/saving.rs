//! `kind save`: what the cluster is now is what resets, starts, and images of the container lead to.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::{fetch, Cluster, BOOT_LIMIT, FAILED, KUBERNETES_READY, LIMIT, RESET_GUARD};
use crate::engine::{docker, docker_within, Image, BUSYBOX};
use crate::process::{wait_for, Outcome};
use crate::reset::Echo;
use crate::start::{on_both_starts, Start};

const SAVE_GUARD: (&str, &str) = ("X-Kind", "save");
/// For an image of more than a gigabyte, whose layers are there.
const COMMIT_LIMIT: Duration = Duration::from_secs(180);
const SECRET: &str = "of-the-preparation-4713";
const BEGINS_SAVED: &str = "this start begins with the cluster as it was saved";

/// A claim, and a pod that writes its file once.
const FILES: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: files}
spec:
  containers:
  - name: files
    image: BUSYBOX
    command: [sh, -c, 'trap : TERM; [ -e /claim/file ] || echo of the pod >/claim/file; while :; do sleep 1; done']
    volumeMounts:
    - {name: claim, mountPath: /claim}
  volumes:
  - {name: claim, persistentVolumeClaim: {claimName: claim}}
";

impl Cluster {
    fn save(&self) {
        let (status, text) = self.post(&format!("save?wait={}", BOOT_LIMIT.as_secs()), &[SAVE_GUARD]);
        assert_eq!(status, 200, "{text}");
    }

    /// The names of the ConfigMaps in the namespace `default` but those that every namespace has.
    fn own_maps(&self) -> BTreeSet<String> {
        let list = self.kubectl(&["get", "configmaps", "--output=name"]).ok();
        list.lines().filter_map(|name| name.strip_prefix("configmap/")).filter(|name| !name.ends_with(".crt")).map(str::to_string).collect()
    }

    fn create_map(&self, name: &str) {
        self.kubectl(&["create", "configmap", name]).ok();
    }

    fn start_files(&self) {
        self.apply(&FILES.replace("BUSYBOX", BUSYBOX));
        self.wait_for_pod(&["files"]);
        wait_for("the pod's file", LIMIT, || (self.file_of_claim() == "of the pod").then_some(()));
    }

    fn file_of_claim(&self) -> String {
        self.in_pod("files", &["cat", "/claim/file"]).stdout.trim_end().to_string()
    }

    /// Runs an image that was built here in a pod.
    fn run_built(&self, name: &str) {
        let dockerfile = format!("printf 'FROM {BUSYBOX}\\nRUN echo {name} >/built && rm /bin/vi\\n' | docker build --tag {name}:1 -");
        self.container.exec(&["sh", "-c", &format!("{dockerfile} && docker run --rm {name}:1 cat /built")]).ok();
        self.kubectl(&["run", name, &format!("--image={name}:1"), "--command", "--", "sleep", "3600"]).ok();
        self.wait_for_pod(&[name]);
    }

    /// Runs a command of kind's that takes a stop and a start.
    fn kind(&self, arguments: &[&str]) -> Outcome {
        docker_within(2 * BOOT_LIMIT, &[&["exec", &self.container.id, "kind"], arguments].concat())
    }

    fn save_and_stop(&self) -> String {
        let said = self.kind(&["save", "--stop"]).ok();
        let status = docker_within(LIMIT, &["wait", &self.container.id]).ok();
        assert_eq!(status, "0", "{}", self.container.logs());
        said
    }

    fn commit(&self, tag: &str) -> Image {
        let image = Image(format!("kind-e2e-{}:{tag}", std::process::id()));
        docker_within(COMMIT_LIMIT, &["commit", &self.container.id, &image.0]).ok();
        image
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn resets_and_starts_lead_to_what_was_saved_while_docker_goes_on(start: Start) {
    let cluster = start.ready(&[]);
    cluster.create_map("saved");
    cluster.start_files();
    cluster.run_built("app");
    let mut echo = Echo::start(&cluster);
    echo.check();
    let slow = format!("printf 'FROM {BUSYBOX}\\nRUN sleep 5 && echo built >/built\\n' | docker build --no-cache --tag slow:1 -");
    thread::scope(|scope| {
        let build = scope.spawn(|| cluster.container.exec(&["sh", "-c", &slow]));
        cluster.save();
        build.join().expect("it does not panic").ok();
    });
    echo.check();
    start.check(&cluster);
    assert_eq!((cluster.own_maps(), cluster.file_of_claim()), (set(&["saved"]), "of the pod".into()));

    let change = |cluster: &Cluster| {
        cluster.kubectl(&["delete", "configmap", "saved"]).ok();
        cluster.create_map("later");
        cluster.in_pod("files", &["sh", "-c", "echo changed >/claim/file"]).ok();
        cluster.kubectl(&["delete", "pod", "app", "--now"]).ok();
    };
    let check = |cluster: &Cluster| {
        start.check(cluster);
        cluster.wait_for_pod(&["files"]);
        assert_eq!((cluster.own_maps(), cluster.file_of_claim()), (set(&["saved"]), "of the pod".into()));
        assert_eq!(cluster.in_pod("app", &["cat", "/built"]).ok(), "app");
    };
    change(&cluster);
    let said = cluster.kind(&["reset"]).ok();
    assert!(said.contains("as it was saved"), "{said}");
    check(&cluster);
    echo.check();
    change(&cluster);
    docker(&["restart", &cluster.container.id]).ok();
    cluster.wait_until_ready();
    check(&cluster);
    assert!(cluster.container.logs().contains(BEGINS_SAVED));

    // For this volume alone: an image of the running container has not got its images.
    if start == Start::Restored {
        let image = cluster.commit("running");
        let committed = Cluster::ready_of(&image.0);
        let log = committed.container.logs();
        assert!(log.contains("WARN") && log.contains("kind save --stop"), "{log}");
        assert_eq!(committed.own_maps(), set(&[]));
    }
    let said = cluster.kind(&["reset", "--baked"]).ok();
    assert!(said.contains("as it was baked"), "{said}");
    assert_eq!(cluster.own_maps(), set(&[]));
    docker(&["restart", &cluster.container.id]).ok();
    cluster.wait_until_ready();
    start.check(&cluster);
    assert_eq!(cluster.own_maps(), set(&[]));
}

fn a_save_that_is_killed_leaves_one_state_or_the_other(start: Start) {
    const MOMENTS: u32 = 5;
    let cluster = start.ready(&[]);
    cluster.create_map("map-0");
    let began = Instant::now();
    cluster.save();
    let (took, mut saved) = (began.elapsed(), set(&["map-0"]));
    for moment in 1..=MOMENTS {
        cluster.create_map(&format!("map-{moment}"));
        let now = cluster.own_maps();
        let (status, text) = cluster.post("save", &[SAVE_GUARD]);
        assert_eq!(status, 202, "{text}");
        thread::sleep(took * moment / MOMENTS);
        docker(&["kill", "--signal", "KILL", &cluster.container.id]).ok();
        cluster.container.start();
        let after = (took * moment / MOMENTS).as_secs_f64();
        cluster.ready_within(BOOT_LIMIT).unwrap_or_else(|why| panic!("killed {after:.1} s after the request: {why}"));
        start.check(&cluster);
        let found = cluster.own_maps();
        assert!(found == saved || found == now, "killed {after:.1} s after the request: {found:?} is neither {saved:?} nor {now:?}");
        // Nothing of the other one is left.
        let states = cluster.container.exec(&["sh", "-c", "ls /kind/saved | grep -vc current"]).ok();
        assert_eq!(states, "1");
        saved = found;
    }
}

on_both_starts! {
    resets_and_starts_lead_to_what_was_saved_while_docker_goes_on
    a_save_that_is_killed_leaves_one_state_or_the_other
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn an_image_of_a_stopped_container_starts_with_its_cluster_and_has_no_secret() {
    let cluster = Cluster::ready(&["--env", &format!("MY_TOKEN={SECRET}"), "--env", "DOCKER_TLS_CERTDIR=/certs"]);
    cluster.create_map("saved");
    cluster.start_files();
    cluster.run_built("app");
    let login =
        format!("mkdir -p /root/.docker && echo '{{\"auths\": {{\"r.example\": {{\"auth\": \"{SECRET}\"}}}}}}' >/root/.docker/config.json");
    cluster.container.exec(&["sh", "-c", &login]).ok();
    cluster.container.exec(&["docker", "run", "--detach", "--name", "lives", BUSYBOX, "sleep", "3600"]).ok();
    let key = cluster.container.exec(&["cat", "/certs/ca/key.pem"]).ok();
    let said = cluster.save_and_stop();
    assert!(said.contains("docker commit --change 'ENV MY_TOKEN=' "), "{said}");
    let first = cluster.commit("first");

    let committed = Cluster::ready_of(&first.0);
    Start::Restored.check(&committed);
    let check = |cluster: &Cluster| {
        cluster.wait_for_pod(&["files"]);
        cluster.wait_for_pod(&["app"]);
        assert_eq!((cluster.own_maps(), cluster.file_of_claim()), (set(&["saved"]), "of the pod".into()));
        assert_eq!(cluster.in_pod("app", &["cat", "/built"]).ok(), "app");
    };
    check(&committed);
    let log = committed.container.logs();
    assert!(log.contains(BEGINS_SAVED) && !log.contains("WARN"), "{log}");
    assert!(!committed.container.exec(&["test", "-e", "/root/.docker"]).succeeded());
    let found = committed.container.exec(&["grep", "-rlE", SECRET, "/kind", "/etc", "/root", "/var/log", "/run", "/tmp"]);
    assert_eq!(found.stdout, "");
    wait_for("new certificates of Docker's", LIMIT, || {
        let new = committed.container.exec(&["cat", "/certs/ca/key.pem"]);
        (new.succeeded() && new.stdout.trim_end() != key).then_some(())
    });

    // What is prepared further, on top of it. Its own cluster is what the image has.
    committed.run_built("second");
    committed.create_map("more");
    committed.kind(&["save"]).ok();
    committed.kind(&["reset", "--baked"]).ok();
    check(&committed);
    committed.run_built("third");
    committed.create_map("more");
    committed.save_and_stop();
    let again = Cluster::ready_of(&committed.commit("again").0);
    Start::Restored.check(&again);
    assert_eq!(again.own_maps(), set(&["more", "saved"]));
    for name in ["app", "third"] {
        again.wait_for_pod(&[name]);
        assert_eq!(again.in_pod(name, &["cat", "/built"]).ok(), name);
    }
    drop(again);

    // The stopped container itself starts with the cluster too, and Docker has its images.
    for stopped in [&cluster, &committed] {
        stopped.container.start();
        stopped.wait_until_ready();
        assert_eq!(stopped.container.exec(&["docker", "run", "--rm", "app:1", "cat", "/built"]).ok(), "app");
        stopped.run_built("fourth");
    }
    check(&cluster);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn what_no_start_would_bring_up_is_not_saved_and_the_cluster_goes_on() {
    let cluster = Cluster::ready(&[]);
    for (headers, status, word) in [
        (&[][..], 403, "X-Kind: save"),
        (&[RESET_GUARD], 403, "X-Kind: save"),
        (&[SAVE_GUARD, ("Origin", "http://127.0.0.1:10080")], 403, "web pages"),
    ] {
        let answer = cluster.post("save", headers);
        assert!(answer.0 == status && answer.1.contains(word), "{headers:?}: {answer:?}");
    }
    assert_eq!(fetch(&cluster.url("127.0.0.1", "save")).map(|(status, _)| status), Some(405));
    cluster.kubectl(&["run", "broken", "--image=no-such.example/image:1"]).ok();
    let refused = cluster.kind(&["save", "--stop"]);
    assert!(!refused.succeeded() && refused.stderr.contains("default/broken"), "{refused}");
    assert!(cluster.serves(KUBERNETES_READY) && !cluster.serves(FAILED));
    cluster.kubectl(&["delete", "pod", "broken", "--now"]).ok();
    // What becomes Ready in time is waited for.
    cluster.kubectl(&["create", "deployment", "late", "--image", BUSYBOX, "--", "sleep", "3600"]).ok();
    cluster.kind(&["save"]).ok();
    let ready = cluster.kubectl(&["get", "deployment", "late", "--output=jsonpath={.status.readyReplicas}"]).ok();
    assert_eq!(ready, "1");
    // Two at once are one.
    let saves = || cluster.container.logs().matches("requested: the cluster is saved").count();
    let before = saves();
    for _ in 0..2 {
        assert_eq!(cluster.post("save", &[SAVE_GUARD]).0, 202);
    }
    cluster.wait_until_ready();
    assert_eq!(saves(), before + 1);
}
