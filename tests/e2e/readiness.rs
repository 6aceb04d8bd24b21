//! The files on port 10080 appear in order, and only once they are true.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::api::Api;
use crate::cluster::{fetch_within, Cluster, BOOT_LIMIT, CONFIG, CREDENTIALS, DOCKER_READY, FAILED, KUBERNETES_READY, LIMIT, TIMELINE};
use crate::engine::{docker, tools};
use crate::process::wait_for;
use crate::start::{on_both_starts, Start};

const STATES: [&str; 7] = [DOCKER_READY, CONFIG, CREDENTIALS[0], CREDENTIALS[1], CREDENTIALS[2], KUBERNETES_READY, FAILED];

/// The file server answers without delay.
const ANSWER_LIMIT: Duration = Duration::from_millis(100);

/// A boot as observed from before the container's start.
struct Observed {
    /// The HTTP status, at the port's first response, of each state that cannot be true so early.
    first: Vec<u16>,
    /// When each state was first served.
    served: BTreeMap<&'static str, Instant>,
}

/// Starts the cluster and polls until `kubernetes-ready`. Checks each state when it appears.
fn observe(cluster: &Cluster) -> Observed {
    let mut seen = Observed { first: vec![], served: BTreeMap::new() };
    let limit = Instant::now() + BOOT_LIMIT;
    thread::scope(|scope| {
        scope.spawn(|| cluster.container.start());
        let mut build = None;
        let mut api = None;
        while !seen.served.contains_key(KUBERNETES_READY) {
            assert!(Instant::now() < limit, "not ready after {} s", BOOT_LIMIT.as_secs());
            // While the network is being set up, a lost SYN is retransmitted only after a second.
            let limit = if seen.first.is_empty() { ANSWER_LIMIT } else { LIMIT };
            let ask = |name| fetch_within(limit, &cluster.url("127.0.0.1", name));
            let statuses: Vec<u16> = STATES.iter().map_while(|name| Some(ask(name)?.0)).collect();
            if statuses.len() < STATES.len() {
                continue;
            }
            if seen.first.is_empty() {
                // Of the others, one may become true between two of these questions.
                let late = |name: &&str| [DOCKER_READY, KUBERNETES_READY, FAILED].contains(name);
                seen.first = STATES.iter().zip(&statuses).filter(|(name, _)| late(name)).map(|(_, status)| *status).collect();
                let go_on = || cluster.container.exec(&["touch", "/run/go-on"]).succeeded().then_some(());
                wait_for("a container that runs", LIMIT, go_on);
            }
            for (name, _) in STATES.iter().zip(&statuses).filter(|(_, status)| **status == 200) {
                seen.served.entry(name).or_insert_with(Instant::now);
            }
            assert!(!seen.served.contains_key(FAILED), "the boot failed: {:?}", cluster.file(FAILED));
            if seen.served.contains_key(DOCKER_READY) && build.is_none() {
                build = Some(scope.spawn(|| cluster.build("at-once:1", "at once").ok()));
            }
            if seen.served.contains_key(CREDENTIALS[2]) && seen.served.contains_key(CONFIG) && api.is_none() {
                let new = Api::new(cluster);
                assert!(new.is_ready(), "the credentials are served, but the API server does not answer");
                api = Some(new);
            }
        }
        assert_pods_run(&api.expect("the credentials come no later than kubernetes-ready"));
        build.expect("docker-ready comes no later than kubernetes-ready").join().expect("docker build works once docker-ready is served");
    });
    seen
}

/// Asserts that every baked pod runs, with containers of this boot. Those of restored programs follow within seconds.
fn assert_pods_run(api: &Api) {
    let pods = api.baked_pods().expect("the API server answers");
    assert_eq!(pods.len(), tools().baked_pods.len(), "{pods:?} instead of {:?}", tools().baked_pods);
    let not_running: Vec<_> = pods.iter().filter(|pod| !pod.runs_in_this_boot() && !pod.is_of_the_control_plane()).collect();
    assert!(not_running.is_empty(), "kubernetes-ready is served, but these pods do not run: {not_running:?}");
    api.wait_until_baked_pods_run();
}

fn every_state_appears_in_order_and_only_when_it_is_true(start: Start) {
    let cluster = start.create(&[]);
    // Delay dockerd: otherwise Docker may be ready before this machine reaches the container.
    cluster.put_program(
        "/usr/local/sbin/dockerd",
        "#!/bin/sh\nuntil [ -e /run/go-on ]; do sleep 0.02; done\nexec /usr/local/bin/dockerd \"$@\"\n",
    );
    let seen = observe(&cluster);
    assert!(seen.first.iter().all(|status| *status == 404), "at the port's first response: {:?}", seen.first);
    let ready = seen.served[KUBERNETES_READY];
    for name in [DOCKER_READY, CONFIG, CREDENTIALS[0], CREDENTIALS[1], CREDENTIALS[2]] {
        assert!(seen.served[name] <= ready, "{name} came after {KUBERNETES_READY}");
    }
    for (name, begins) in CREDENTIALS.iter().zip(["-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----", "-----BEGIN "]) {
        let text = cluster.file(name).expect("it was served before");
        assert!(text.starts_with(begins), "{name} is not a PEM file: {text}");
    }
    assert!(cluster.container.exec(&["kind", "healthcheck"]).succeeded(), "kubernetes-ready is served, but the health check fails");
    check_timeline(&cluster.timeline());
    start.check(&cluster);
    check_log(&cluster.container.logs());
}

/// Milestones are sorted by time, and each comes after those that it depends on.
fn check_timeline(timeline: &str) {
    let line = |line: &str| line.split_once(' ').and_then(|(seconds, name)| Some((seconds.parse::<f64>().ok()?, name.to_string())));
    let lines: Vec<(f64, String)> = timeline.lines().map(|text| line(text).unwrap_or_else(|| panic!("not a milestone: {text}"))).collect();
    assert!(lines.is_sorted_by(|a, b| a.0 <= b.0), "{timeline}");
    let position = |name: &str| lines.iter().position(|(_, have)| have == name).unwrap_or_else(|| panic!("no {name} in\n{timeline}"));
    // A restored API server runs before kubelet does; any other one is started by kubelet.
    let first = if timeline.contains(" restored\n") { "restored" } else { "kubelet" };
    for (earlier, later) in [
        ("store", "containerd"),
        ("containerd", "dockerd"),
        ("dockerd", DOCKER_READY),
        ("containerd", "kubelet"),
        (first, "api-server"),
        ("kubelet", "pods"),
        ("api-server", "pods"),
        ("pods", "dns"),
        ("dns", KUBERNETES_READY),
        (DOCKER_READY, KUBERNETES_READY),
    ] {
        assert!(position(earlier) < position(later), "{earlier} comes after {later} in\n{timeline}");
    }
}

/// Every line is `LEVEL [component] +seconds message`, without warnings as long as nothing is wrong, and without debug
/// output of Rust types.
pub fn check_log(log: &str) {
    assert!(!log.is_empty(), "the log is empty");
    for line in log.lines() {
        let (level, rest) = line.split_once(' ').unwrap_or((line, ""));
        let component = rest.trim_start().strip_prefix('[').and_then(|rest| rest.split_once("] +"));
        let message = component.and_then(|(_, rest)| rest.split_once("s ")).filter(|(seconds, _)| seconds.parse::<f64>().is_ok());
        assert!(level == "INFO" && message.is_some(), "a line that should not be in the log: {line}\n--- of\n{log}");
        let ugly = ["\u{1b}", "Some(", "Ok(", "Err(", "Os {", "panicked", "\\n", "\t"];
        assert!(line.len() < 300 && !ugly.iter().any(|mark| line.contains(mark)), "not a line for people: {line}");
    }
}

fn pods_that_were_ready_in_the_bake_do_not_count(start: Start) {
    let cluster = start.create(&[]);
    cluster.container.start();
    // With etcd and the API server running and kubelet frozen, the API server reports what the bake has left.
    let freeze =
        "until pgrep -x etcd && pgrep -x kube-apiserver && pgrep -x kubelet; do sleep 0.02; done >/dev/null; pkill -STOP -x kubelet";
    cluster.container.exec(&["sh", "-c", freeze]).ok();
    wait_for("the kubeconfig", LIMIT, || cluster.serves(CONFIG).then_some(()));
    let api = Api::new(&cluster);
    let frozen = Instant::now();
    while frozen.elapsed() < Duration::from_secs(3) {
        let pods = api.baked_pods().expect("the API server answers");
        let stale = pods.iter().filter(|pod| pod.ready && pod.is_from_the_bake()).count();
        // Those with quicker probes are new.
        let replaced = pods.iter().filter(|pod| !pod.ready && pod.containers.is_empty()).count();
        assert!(stale > replaced && stale + replaced >= pods.len() - 1, "the bake should have left every pod Ready: {pods:?}");
        assert_eq!(cluster.status(KUBERNETES_READY), Some(404), "kubernetes-ready is served, but no pod has started");
        let timeline = cluster.file(TIMELINE).expect("the timeline is served");
        // Check the timeline as well: kubernetes-ready could be missing only because the DNS does not answer.
        assert!(
            !timeline.lines().any(|line| line.ends_with(" pods")),
            "the timeline says that the pods run, but none has started:\n{timeline}"
        );
        assert!(!cluster.container.exec(&["kind", "healthcheck"]).succeeded(), "the health check passes, but no pod has started");
    }
    wait_for("docker-ready, for which no pod is needed", LIMIT, || cluster.serves(DOCKER_READY).then_some(()));
    assert_eq!(health(&cluster), [0, 1], "of Docker and Kubernetes");
    cluster.container.exec(&["pkill", "-CONT", "-x", "kubelet"]).ok();
    cluster.wait_until_ready();
    assert_pods_run(&api);
    assert_eq!(health(&cluster), [0, 0]);
}

/// The exit statuses of the health checks of Docker and of Kubernetes.
fn health(cluster: &Cluster) -> [i32; 2] {
    ["docker", "kubernetes"].map(|service| {
        let status = cluster.container.exec(&["kind", "healthcheck", service]).status;
        status.code().expect("docker exec ends with a status of its own")
    })
}

/// The negative control: a cluster that does not come up is noticed, by these tests and by a CI job.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn without_kubelet_nothing_is_ready_and_failed_says_why() {
    let cluster = Cluster::create(&[]);
    cluster.put_program("/usr/local/bin/kubelet", "#!/bin/sh\necho this kubelet does not start\nexit 3\n");
    cluster.container.start();
    let why = cluster.ready_within(LIMIT).expect_err("it must not become ready");
    assert!(why.contains("kubelet") && why.contains("this kubelet does not start"), "{why}");
    wait_for("docker-ready, for which no kubelet is needed", LIMIT, || cluster.serves(DOCKER_READY).then_some(()));
    assert!(!cluster.container.exec(&["kind", "healthcheck"]).succeeded());
    assert_eq!(health(&cluster), [0, 1], "of Docker and Kubernetes");
    docker(&["stop", &cluster.container.id]).ok();
    assert_eq!(cluster.container.inspect("{{.State.ExitCode}}"), "3", "the exit status is not kubelet's");
}

on_both_starts! {
    every_state_appears_in_order_and_only_when_it_is_true
    pods_that_were_ready_in_the_bake_do_not_count
}
