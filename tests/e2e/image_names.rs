//! Which images there are, for Docker and for pods, whatever a job deletes, builds anew or names anew.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::cluster::{Cluster, BOOT_LIMIT, LIMIT};
use crate::engine::{docker_within, image, session, Container, BUSYBOX};
use crate::process::{poll, wait_for, Outcome};
use crate::watch::kill_and_wait;

/// For scripts that build and wait several times.
const SCRIPT_LIMIT: Duration = Duration::from_secs(300);
/// What may stay of two images of 30 MB that nothing names any more (MB).
const LEFT_OVER: u64 = 5;
/// BuildKit, which is what users have, and the builder before it.
const BUILDERS: [&str; 2] = ["DOCKER_BUILDKIT=1", "DOCKER_BUILDKIT=0"];

/// Runs a script as a job would type it, beside Docker.
fn script(container: &Container, builder: &str, text: &str) -> Outcome {
    docker_within(SCRIPT_LIMIT, &["exec", "--env", builder, &container.id, "bash", "-euc", text])
}

fn names(container: &Container) -> Vec<String> {
    let list = container.exec(&["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
    let mut names: Vec<String> = list.lines().map(str::to_string).collect();
    names.sort();
    names
}

/// Whether each is there once, and none is one of those that CRI gives to every image that it hears of.
fn is_settled(names: &[String]) -> bool {
    let different: BTreeSet<&String> = names.iter().collect();
    different.len() == names.len() && !names.iter().any(|name| name.starts_with("sha256:") || name.starts_with("<none>"))
}

/// The sorted names of Docker's list, once CRI's are gone: each is deleted as soon as it appears, not before.
pub fn settled_names(container: &Container) -> Vec<String> {
    let mut last = vec![];
    let settled = poll(LIMIT, || {
        last = names(container);
        is_settled(&last).then_some(())
    });
    assert!(settled.is_some(), "{last:?}");
    last
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_prune_as_soon_as_docker_answers_leaves_the_cluster_what_it_starts_from() {
    // Without a network, nothing that is lost can come from anywhere else.
    let container = Container::create(&["--privileged", "--network", "none", image()]);
    // No pod is started before the prune, however long that takes.
    let kubelet = session().dir.join("waiting-kubelet");
    std::fs::write(&kubelet, "#!/bin/sh\nuntil [ -e /run/pruned ]; do sleep 0.02; done\nexec /usr/local/bin/kubelet \"$@\"\n")
        .and_then(|()| std::fs::set_permissions(&kubelet, PermissionsExt::from_mode(0o755)))
        .expect("the session's directory can be written");
    container.copy_to(&kubelet, "/usr/local/sbin/kubelet");
    container.start();
    let prune = "until [ -e /var/kind/docker-ready ]; do sleep 0.02; done; docker system prune --all --force; touch /run/pruned";
    script(&container, BUILDERS[0], prune).ok();
    let ready = poll(BOOT_LIMIT, || container.exec(&["kind", "healthcheck"]).succeeded().then_some(()));
    let status = || container.exec(&["kind", "status"]).output();
    assert!(ready.is_some(), "not ready after {} s: {}\n{}", BOOT_LIMIT.as_secs(), status(), container.logs());
    let there = names(&container);
    for name in ["kube-apiserver", "kube-scheduler", "etcd", "pause", BUSYBOX] {
        assert!(there.iter().any(|there| there.contains(name)), "{name} is not in {there:?}");
    }
    crate::readiness::check_log(&container.logs());
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn each_image_is_listed_once_and_what_nothing_names_any_more_gives_its_space_back() {
    let cluster = Cluster::ready(&[]);
    let container = &cluster.container;
    let used = || {
        // What goes away meanwhile is no error.
        let said = container.exec(&["sh", "-c", "sync; du -sxm /var/lib/docker 2>/dev/null || :"]).ok();
        said.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or_else(|| panic!("{said}"))
    };
    settled_names(container);
    for builder in BUILDERS {
        let build = format!(
            "mkdir -p /tmp/job; cd /tmp/job; head -c 30000000 /dev/urandom >random
            printf 'FROM {BUSYBOX}\\nCOPY random /random\\n' >Dockerfile; docker build --quiet --tag app:1 ."
        );
        // As docker:dind has it: what BuildKit keeps for the next build goes with the second.
        let prune = "docker image prune --force; docker builder prune --all --force";
        let before = used();
        script(container, builder, &format!("{build}; {prune}")).ok();
        let one = used();
        assert!(one > before + 30, "the test is void: {before} MB, with an image of 30 MB {one} MB");
        script(container, builder, &format!("{build}; {build}; {prune}")).ok();
        // What counts is what stays: containerd deletes in the background, and the longer its last round took the later.
        poll(SCRIPT_LIMIT, || (used() <= one + LEFT_OVER).then_some(()))
            .unwrap_or_else(|| panic!("{builder}: {before} MB, with an image {one} MB, after building it twice more {} MB", used()));
        settled_names(container);
        script(container, builder, &format!("docker rmi app:1; {prune}")).ok();
        poll(SCRIPT_LIMIT, || (used() <= before + LEFT_OVER).then_some(()))
            .unwrap_or_else(|| panic!("{builder}: {before} MB, without the image again {} MB", used()));
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_name_that_was_given_to_another_image_is_never_given_back_to_the_baked_one() {
    let cluster = Cluster::ready(&[]);
    let build = format!("printf 'FROM {BUSYBOX}\\nLABEL round=%s\\n' $round | docker build --quiet");
    // One that is its image's only name, and one of two: whoever puts names back sees those differently.
    for (name, builder) in [("deletes:1", BUILDERS[0]), ("from-images:1", BUILDERS[1])] {
        let text = format!(
            "round=other; {build} --tag other:1 -; other=$(docker image inspect --format '{{{{.Id}}}}' other:1)
            is() {{ [ \"$(docker image inspect --format \"$1\" {name})\" = \"$2\" ] || {{ echo \"round $round, $3\"; exit 1; }}; }}
            for round in $(seq 0 25 500); do
              docker rmi {name}
              sleep $(printf '0.%03d' $round)
              docker tag other:1 {name}
              is '{{{{.Id}}}}' $other 'after docker tag'
              sleep 0.5
              is '{{{{.Id}}}}' $other 'a moment after docker tag'
            done
            for round in 1 2 3 4 5; do
              docker rmi {name}
              {build} --tag {name} -
              is '{{{{.Config.Labels.round}}}}' $round 'after docker build'
            done
            sleep 3
            is '{{{{.Config.Labels.round}}}}' $round 'a while after docker build'
            docker rmi {name} other:1"
        );
        let id = || cluster.inner_docker(&["image", "inspect", "--format", "{{.Id}}", name]).stdout;
        let baked = id();
        let outcome = script(&cluster.container, builder, &text);
        assert!(outcome.succeeded(), "{name}: {outcome}");
        wait_for("the baked image has its name again", LIMIT, || (id() == baked).then_some(()));
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn pods_outlive_the_last_name_of_their_image_and_what_runs_them() {
    let cluster = Cluster::ready(&[]);
    let build = |page: &str| cluster.build("app:1", page).ok();
    let page = || cluster.in_pod("deploy/app", &["cat", "/www/index.html"]);
    let restarts = || {
        cluster
            .kubectl(&["get", "pods", "--selector=app=app", "--output=jsonpath={.items[*].status.containerStatuses[*].restartCount}"])
            .ok()
    };
    build("one");
    cluster.kubectl(&["create", "deployment", "app", "--image=app:1"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment", "app", "--timeout=60s"]).ok();
    cluster.inner_docker(&["image", "rm", "app:1"]).ok();
    cluster.inner_docker(&["image", "prune", "--force"]).ok();
    assert!(page().ok().starts_with("one"));

    for process in ["kubelet", "containerd"] {
        kill_and_wait(&cluster, process);
        let page = wait_for("the pod can be reached", LIMIT, || Some(page()).filter(Outcome::succeeded)).ok();
        assert!(page.starts_with("one"), "without {process}: {page}");
        assert_eq!(restarts(), "0", "without {process}");
    }
    // One that ends is started from what has the name then, as on every node.
    build("two");
    cluster.container.exec(&["pkill", "-KILL", "-f", "^httpd -f -p 8080 -h /www"]).ok();
    wait_for("the pod runs the new image", LIMIT, || page().stdout.starts_with("two").then_some(()));
    wait_for("it was started again once", LIMIT, || (restarts() == "1").then_some(()));
}
