//! Docker's start comes before the cluster's: CRIU and kubelet leave it the CPU, but not for long.

use crate::cluster::LIMIT;
use crate::engine::docker;
use crate::process::wait_for;
use crate::restore::{comm, milestone, restored_with_programs, PROGRAMS};
use crate::start::{Start, COLD};

/// The normal policy (SCHED_OTHER), and that of what runs on idle CPUs only (SCHED_IDLE).
const NORMAL: &str = "0";
const IDLE: &str = "5";

/// A Docker that has much to load, and leaves no CPU idle for 8 s. Writes down the state of all threads meanwhile.
const BUSY_DOCKER: &str = "#!/bin/sh
timeout 7 sh -c 'while :; do cat /proc/[0-9]*/task/*/stat; echo; sleep 0.1; done' >/run/threads 2>/dev/null &
for i in $(seq $(nproc)); do
    timeout 8 sh -c 'while :; do :; done' &
done
wait
exec /usr/local/bin/dockerd \"$@\"
";

/// A CRIU, which its loader runs, that does nothing but write down whether Docker answers, and its own policy.
const IDLE_CRIU: &str = "#!/bin/sh
while :; do
    answers=no
    [ ! -e /var/kind/docker-ready ] || answers=yes
    read -r stat </proc/self/stat
    set -- $stat
    echo $answers ${41}
    sleep 0.05
done >/run/policies
";

const SLOW_DOCKER: &str = "#!/bin/sh
sleep 1
exec /usr/local/bin/dockerd \"$@\"
";

/// The name and the policy of each thread.
type Policies = Vec<(String, String)>;

fn parse(stats: &str) -> Policies {
    // proc_pid_stat(5): the name is in parentheses, and the policy is the 41st field.
    let thread = |line: &str| {
        let (name, rest) = line.rsplit_once(") ").expect("the name is in parentheses");
        let name = name.split_once('(').expect("the name is in parentheses").1;
        (name.to_string(), rest.split(' ').nth(38).expect("there are 52 fields").to_string())
    };
    stats.lines().map(thread).collect()
}

/// Whether a thread of the program has the policy. The init's own thread for a program has that name, too.
fn any(policies: &Policies, program: &str, policy: &str) -> bool {
    policies.iter().any(|(name, has)| name == comm(program) && has == policy)
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn every_program_has_its_share_of_the_cpu_when_kubernetes_is_ready() {
    let cluster = Start::Restored.ready(&[]);
    let policies = parse(&cluster.container.exec(&["sh", "-c", "cat /proc/[0-9]*/task/*/stat 2>/dev/null"]).stdout);
    for program in PROGRAMS.into_iter().chain(["kubelet", "dockerd", "containerd"]) {
        assert!(any(&policies, program, NORMAL), "{program}: {policies:?}");
    }
    assert!(policies.iter().all(|(_, policy)| policy == NORMAL), "{policies:?}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_docker_that_keeps_every_cpu_busy_keeps_the_others_waiting_for_a_moment_only() {
    let cluster = restored_with_programs(&["/usr/local/sbin/dockerd"], BUSY_DOCKER);
    cluster.wait_until_ready();
    // Whether kubelet answers by then is no measure: that of 1.20 waits 5 s for a Docker that does not.
    let threads = cluster.container.exec(&["cat", "/run/threads"]).ok();
    let moments: Vec<Policies> = threads.split("\n\n").map(parse).collect();
    let last = moments.last().expect("at least one");
    for program in ["ld.so", "kubelet"] {
        let waits = moments.iter().filter(|policies| any(policies, program, IDLE)).count();
        assert!(waits > 0 && !any(last, program, IDLE), "{program} has waited for {waits} of {} moments", moments.len());
    }
    assert!(any(last, "kubelet", NORMAL), "{last:?}");
    Start::Restored.check(&cluster);
    let timeline = cluster.timeline();
    assert!(milestone(&timeline, "restored") < milestone(&timeline, "dockerd") - 1.0, "{timeline}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn criu_has_its_share_of_the_cpu_as_soon_as_docker_answers() {
    let cluster = restored_with_programs(&["/kind/criu/ld.so"], IDLE_CRIU);
    wait_for("the end of the restore", LIMIT, || cluster.container.logs().contains(COLD).then_some(()));
    let said = cluster.container.exec(&["cat", "/run/policies"]).ok();
    let count = |moment: &str| said.lines().filter(|line| *line == moment).count();
    assert!(count("no 5") > 0 && count("yes 0") > 0, "{said}");
    // Of 20 per second; without Docker's answer, it would wait for a second more.
    assert!(count("yes 5") < 10, "{said}");
}

/// With a limit of CPU time, CRIU and kubelet would take it from Docker on any CPU.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn with_a_limit_of_cpu_time_the_cluster_begins_when_docker_answers() {
    let cpus: f64 = docker(&["info", "--format", "{{.NCPU}}"]).ok().parse().expect("it is a number");
    let cluster = Start::Restored.create(&["--cpus", &format!("{:.1}", cpus - 0.1)]);
    cluster.put_program("/usr/local/sbin/dockerd", SLOW_DOCKER);
    cluster.container.start();
    cluster.wait_until_ready();
    let timeline = cluster.timeline();
    // They wait no longer than 4 s.
    let begins = milestone(&timeline, "dockerd").min(4.0);
    for what in ["restored", "kubelet"] {
        assert!(begins < milestone(&timeline, what), "{what}: {timeline}");
    }
}
