//! Pods run what was built or loaded here under any pull policy, by tag and by digest, and what was pulled comes from its
//! registry, or from the node if no registry answers.

use std::collections::BTreeSet;
use std::net::TcpStream;

use crate::cluster::{Cluster, BOOT_LIMIT, LIMIT};
use crate::engine::{docker, Container, Network, BUSYBOX};
use crate::private_registry::{ca_of, pod, registry};
use crate::process::{poll, wait_for, Outcome};
use crate::start::{on_both_starts, Start};

/// An image that the bake has built.
const BAKED: &str = "deletes:1";
/// What may stay of an image of 30 MB that nothing names any more (MB).
const LEFT_OVER: u64 = 5;
const REGISTRY: &str = "registry.test";
/// The first port of the node's own registry.
const PORT: u16 = 10082;

on_both_starts! {
    what_was_built_runs_whatever_the_pull_policy
    an_image_by_digest_runs_at_once_and_leaves_nothing_behind
}

/// Builds an image whose containers write `page` to their log.
fn build(cluster: &Cluster, image: &str, page: &str) {
    let text = format!(
        "printf 'FROM {BUSYBOX}\\nCMD [\"sh\", \"-c\", \"echo {page}; exec sleep 3600\"]\\n' | docker build --quiet --tag {image} -"
    );
    inside(cluster, &text).ok();
}

/// Runs a script beside Docker.
fn inside(cluster: &Cluster, script: &str) -> Outcome {
    cluster.container.exec(&["bash", "-euc", script])
}

/// A pod that pulls at each start runs, with its image's own command.
fn check_always(cluster: &Cluster, pod: &str, image: &str, page: &str) {
    cluster.kubectl(&["run", pod, &format!("--image={image}"), "--image-pull-policy=Always", "--restart=Never"]).ok();
    cluster.wait_for_pod(&[pod]);
    cluster.wait_for_log(pod, page);
}

/// Docker's list of images, each with its digest, without the names of CRI's that are just being deleted (`image_names`).
fn images(cluster: &Cluster) -> BTreeSet<String> {
    let list = cluster.container.exec(&["docker", "images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]).ok();
    let lines: Vec<&str> = list.lines().filter(|line| !line.starts_with("sha256:")).collect();
    let set: BTreeSet<String> = lines.iter().map(|line| line.to_string()).collect();
    assert_eq!(lines.len(), set.len(), "{list}");
    set
}

fn records(cluster: &Cluster) -> String {
    cluster.container.exec(&["ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io", "images", "ls", "-q"]).ok()
}

/// The records that only a pull has left are gone.
fn check_nothing_is_left(cluster: &Cluster) {
    let gone = || !records(cluster).lines().any(|name| name.contains("/") && name.contains("@sha256:"));
    assert!(poll(LIMIT, || gone().then_some(())).is_some(), "{}", records(cluster));
}

fn what_was_built_runs_whatever_the_pull_policy(start: Start) {
    let cluster = start.ready(&[]);
    build(&cluster, "app", "one");
    // As the README has it.
    cluster.kubectl(&["create", "deployment", "app", "--image=app"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment", "app", "--timeout=60s"]).ok();
    assert_eq!(cluster.field("deployment/app", "{.spec.template.spec.containers[0].imagePullPolicy}"), "Always");
    cluster.wait_for_log("deployment/app", "one");
    build(&cluster, "app", "two");
    check_always(&cluster, "again", "app", "two");
    check_always(&cluster, "once-more", "app:latest", "two");
    // A chart that sets the policy, and names of registries that have no such image, or are not there.
    for (number, image) in ["app:1", "registry.example.com/team/app:1", "localhost:5000/app:1"].iter().enumerate() {
        build(&cluster, image, image);
        // An image whose name was built anew is listed under the name of its pull for three seconds more.
        check_nothing_is_left(&cluster);
        let listed = images(&cluster);
        check_always(&cluster, &format!("named-{number}"), image, image);
        assert_eq!(images(&cluster), listed, "{image}");
    }
    pod(&cluster, "baked", BAKED);
    cluster.wait_for_pod(&["baked"]);
    inside(&cluster, "docker save app:1 | gzip >/tmp/app.tar.gz; docker rmi --force app:1; docker load --input /tmp/app.tar.gz").ok();
    check_always(&cluster, "loaded", "app:1", "app:1");
    check_nothing_is_left(&cluster);
    // Docker itself knows nothing of it.
    assert!(!inside(&cluster, "docker pull app:1").succeeded());
    crate::readiness::check_log(&cluster.container.logs());
}

fn an_image_by_digest_runs_at_once_and_leaves_nothing_behind(start: Start) {
    let cluster = start.ready(&[]);
    let used = || {
        // What goes away meanwhile is no error.
        let said = inside(&cluster, "sync; du -sxm /var/lib/docker 2>/dev/null || :").ok();
        said.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or_else(|| panic!("{said}"))
    };
    let digest = |image: &str| cluster.container.exec(&["docker", "image", "inspect", "--format", "{{.Id}}", image]).ok();
    let before = used();
    let context = "mkdir -p /tmp/job; cd /tmp/job; head -c 30000000 /dev/urandom >random";
    let dockerfile = format!("printf 'FROM {BUSYBOX}\\nCOPY random /\\nCMD [\"sleep\", \"3600\"]\\n' >Dockerfile");
    let run = "d=$(docker image inspect --format '{{.Id}}' app:1); export KUBECONFIG=/etc/kubernetes/admin.conf
        kubectl run by-digest --image=app@$d; kubectl run by-both --image=app:1@$d";
    inside(&cluster, &format!("{context}; {dockerfile}; docker build --quiet --tag app:1 .; {run}")).ok();
    let listed = images(&cluster);
    cluster
        .kubectl(&["run", "baked", &format!("--image={}@{}", BAKED.split(':').next().unwrap(), digest(BAKED)), "--", "sleep", "3600"])
        .ok();
    ["by-digest", "by-both", "baked"].iter().for_each(|name| cluster.wait_for_pod(&[name]));
    let events = cluster.kubectl(&["get", "events", "--field-selector=reason=Failed"]).ok();
    assert!(!events.contains("by-"), "each starts at the first attempt: {events}");
    assert_eq!(images(&cluster), listed);
    assert!(used() > before + 30, "the test is void: {before} MB, with an image of 30 MB {} MB", used());

    cluster.kubectl(&["delete", "pod", "by-digest", "by-both", "--force", "--grace-period=0"]).ok();
    inside(&cluster, "docker rmi app:1; docker builder prune --all --force").ok();
    poll(2 * BOOT_LIMIT, || (used() <= before + LEFT_OVER).then_some(()))
        .unwrap_or_else(|| panic!("{before} MB, without the image again {} MB: {}", used(), records(&cluster)));
    check_nothing_is_left(&cluster);
    assert!(!images(&cluster).iter().any(|line| line.contains("<none>") || line.starts_with("app:")), "{:?}", images(&cluster));
}

/// Replaces a repository of the registry with a copy of another one.
fn replace_repository(registry: &Container, from: &str, to: &str) {
    let script = format!("cd /var/lib/registry/docker/registry/v2/repositories; rm -r {to}; cp -r {from} {to}");
    registry.exec(&["bash", "-euc", &script]).ok();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn what_was_pulled_comes_from_its_registry_and_from_the_node_if_that_does_not_answer() {
    let network = Network::create("pull-policy", &[]);
    let registry = registry(&network, REGISTRY, &[]);
    let ca = format!("KIND_REGISTRY_CA={}", ca_of(&registry));
    let cluster = Cluster::ready(&["--network", &network.name, "--env", &format!("KIND_REGISTRY={REGISTRY}"), "--env", &ca]);
    for (repository, page) in [("team/app", "one"), ("team/other", "two")] {
        let image = format!("{REGISTRY}/{repository}:1");
        build(&cluster, &image, page);
        inside(&cluster, &format!("docker push --quiet {image}; docker rmi {image}")).ok();
    }
    let image = format!("{REGISTRY}/team/app:1");
    inside(&cluster, &format!("docker pull --quiet {image}")).ok();
    check_always(&cluster, "one", &image, "one");
    // Somebody pushes another image under that name.
    replace_repository(&registry, "team/other", "team/app");
    check_always(&cluster, "two", &image, "two");
    // One that was built here, and that the registry does not have. What a later build begins with has containerd's label
    // of a pulled image.
    let base = format!("{REGISTRY}/team/base:1");
    build(&cluster, &base, "base");
    inside(&cluster, &format!("printf 'FROM {base}\\nRUN true\\n' | docker build --quiet --tag from-base -")).ok();
    check_always(&cluster, "base", &base, "base");

    docker(&["stop", "--time=1", &registry.id]).ok();
    check_always(&cluster, "offline", &image, "two");
    pod(&cluster, "missing", &format!("{REGISTRY}/team/app:2"));
    let message = "{.status.containerStatuses[0].state.waiting.message}";
    let said = || cluster.field("pod/missing", message);
    let said = wait_for("the reason", LIMIT, || Some(said()).filter(|said| said.contains("HEAD")));
    assert!(said.contains(&format!("this node has no such image, and no way to its registry: cannot resolve {REGISTRY}")), "{said}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn certificates_that_a_job_adds_count_for_the_next_pull() {
    let network = Network::create("added-ca", &[]);
    let registry = registry(&network, REGISTRY, &[]);
    let cluster = Cluster::ready(&["--network", &network.name]);
    let image = format!("{REGISTRY}/team/app:1");
    build(&cluster, "app:1", "pulled");
    let push =
        |script: &str| inside(&cluster, &format!("docker tag app:1 {image}; {script} docker push --quiet {image}; docker rmi {image}"));
    assert!(!push("").succeeded(), "the test is void: the registry's certificate is trusted");
    let directory = format!("/etc/docker/certs.d/{REGISTRY}");
    let ca = ca_of(&registry);
    push(&format!("mkdir -p {directory}; echo '{ca}' >{directory}/ca.crt;")).ok();
    check_always(&cluster, "pulled", &image, "pulled");
    // Of a registry that no image is named after.
    inside(&cluster, &format!("cp -r {directory} {directory}:443")).ok();
    check_always(&cluster, "with-port", &format!("{REGISTRY}:443/team/app:1"), "pulled");
}

/// Nobody from outside may ask.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn the_nodes_registry_is_there_for_the_node_alone_whatever_its_clients_do() {
    let cluster = crate::cluster::shared();
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{PORT}; printf 'GET /v2/library/deletes/manifests/1?ns=docker.io HTTP/1.1\\r\\n\\r\\n' >&3; cat <&3"
    );
    let said = inside(&cluster, &script).ok();
    assert!(said.starts_with("HTTP/1.1 200 ") && said.contains("Docker-Content-Digest: sha256:"), "{said}");
    assert!(TcpStream::connect((cluster.address(), PORT)).is_err());
    // Somebody who says nothing, or too much, keeps nobody else from it.
    let many = format!("for i in $(seq 100); do exec {{fd}}<>/dev/tcp/127.0.0.1/{PORT}; done; sleep 6; head -c 20000 /dev/zero >/dev/tcp/127.0.0.1/{PORT} || :; {script}");
    let said = inside(&cluster, &many).output();
    assert!(said.contains("HTTP/1.1 200 "), "{said}");
}
