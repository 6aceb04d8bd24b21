//! Measures one start of the image under test, from `docker run` to `docker stop`.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, BOOT_LIMIT, DOCKER_READY, LIMIT, TIMELINE};
use crate::engine::{docker, docker_within, BUSYBOX};
use crate::process::{poll, wait_for};

/// How long to count the wakeups of an idle init.
const IDLE: Duration = Duration::from_secs(30);

/// Times in seconds.
pub struct Start {
    pub docker_ready: f64,
    pub kubernetes_ready: f64,
    pub pod_running: f64,
    pub cpu: f64,
    /// In MB.
    pub memory: f64,
    /// From the request for a reset of a cluster in which a job has created things until it is ready again, and from
    /// `docker restart` of the same one.
    pub reset: Again,
    pub restart: Again,
    pub stop: f64,
    /// Milestones, in seconds since the start of the init.
    pub timeline: Vec<(f64, String)>,
}

/// What it takes to begin again.
pub struct Again {
    pub seconds: f64,
    /// Of the whole container, in seconds.
    pub cpu: f64,
}

impl Again {
    /// `begin` returns the CPU time that does not count.
    fn measure(cluster: &Cluster, begin: impl FnOnce() -> f64) -> Again {
        fill(cluster);
        let began = Instant::now();
        let earlier = begin();
        cluster.wait_until_ready();
        Again { seconds: began.elapsed().as_secs_f64(), cpu: cpu_seconds(cluster) - earlier }
    }
}

impl Start {
    /// `arguments` are more of `docker run`.
    pub fn measure(arguments: &[&str]) -> Start {
        let began = Instant::now();
        let cluster = Cluster::start(arguments);
        wait_for("Docker is ready", BOOT_LIMIT, || cluster.serves(DOCKER_READY).then_some(()));
        let docker_ready = began.elapsed().as_secs_f64();
        cluster.wait_until_ready();
        let kubernetes_ready = began.elapsed().as_secs_f64();
        let cpu = cpu_seconds(&cluster);
        let memory = memory_megabytes(&cluster);
        let timeline = cluster.file(TIMELINE).expect("there is always a timeline");
        let line = |line: &str| line.split_once(' ').and_then(|(at, what)| Some((at.parse().ok()?, what.to_string())));
        let timeline = timeline.lines().filter_map(line).collect();

        cluster.build("bench:1", "bench").ok();
        let began = Instant::now();
        cluster.kubectl(&["run", "bench", "--image=bench:1"]).ok();
        poll(LIMIT, || (cluster.field("pod/bench", "{.status.phase}") == "Running").then_some(())).expect("the pod runs");
        let pod_running = began.elapsed().as_secs_f64();
        // Its grace period must not count.
        cluster.kubectl(&["delete", "pod", "bench", "--now"]).ok();

        let reset = Again::measure(&cluster, || {
            let earlier = cpu_seconds(&cluster);
            cluster.reset();
            earlier
        });
        let restart = Again::measure(&cluster, || {
            docker_within(LIMIT, &["restart", &cluster.container.id]).ok();
            // Its cgroup is a new one.
            0.0
        });

        let began = Instant::now();
        docker_within(LIMIT, &["stop", &cluster.container.id]).ok();
        Start { docker_ready, kubernetes_ready, pod_running, cpu, memory, reset, restart, stop: began.elapsed().as_secs_f64(), timeline }
    }

    /// When a milestone was reached, in seconds since the start of the init.
    pub fn milestone(&self, name: &str) -> f64 {
        self.timeline.iter().find(|(_, what)| what == name).unwrap_or_else(|| panic!("the timeline has no {name}")).0
    }
}

/// Ten pods and a hundred objects.
fn fill(cluster: &Cluster) {
    let object = |number| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: object-{number}}}\n---\n");
    cluster.apply(&(0..100).map(object).collect::<String>());
    cluster.kubectl(&["create", "deployment", "many", &format!("--image={BUSYBOX}"), "--replicas=10", "--", "sleep", "3600"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment", "many", "--timeout=60s"]).ok();
}

/// The CPU time that the container has used, from its cgroup (version 1 or 2).
fn cpu_seconds(cluster: &Cluster) -> f64 {
    let read = "sed -n 's/^usage_usec //p' /sys/fs/cgroup/cpu.stat 2>/dev/null || cat /sys/fs/cgroup/cpuacct/cpuacct.usage";
    let read = format!("{read}; test -e /sys/fs/cgroup/cpu.stat && echo 1000000 || echo 1000000000");
    let text = cluster.container.exec(&["sh", "-c", &read]).ok();
    let numbers: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    numbers[0] / numbers[1]
}

/// The memory that the container uses, as `docker stats` has it: without the inactive part of the page cache.
fn memory_megabytes(cluster: &Cluster) -> f64 {
    let read = "cd /sys/fs/cgroup; if test -e memory.current; then cat memory.current; else cd memory; cat memory.usage_in_bytes; fi";
    let read = format!("{read}; awk '$1 == \"total_inactive_file\" {{ print $2; found = 1 }} $1 == \"inactive_file\" {{ own = $2 }} END {{ if (!found) print own }}' memory.stat");
    let text = cluster.container.exec(&["sh", "-c", &read]).ok();
    let numbers: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    (numbers[0] - numbers[1]) / 1e6
}

/// Empties the page cache of the machine, which takes root.
pub fn drop_caches() {
    nix::unistd::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").expect("KIND_BENCH_COLD is for root on a machine of its own");
}

/// The init of an idle cluster.
pub struct Idle {
    /// Resident memory in MB.
    pub memory: f64,
    /// Size in MB.
    pub binary: f64,
    /// Context switches of all threads per second.
    pub wakeups: f64,
}

pub fn idle() -> Idle {
    let cluster = Cluster::ready(&[]);
    let number = |script: &str| -> f64 { cluster.container.exec(&["sh", "-c", script]).ok().trim().parse().expect("it is a number") };
    let switches = "cat /proc/1/task/*/status | awk '/ctxt_switches/ { sum += $2 } END { print sum }'";
    // Let the last threads of the boot end.
    std::thread::sleep(IDLE / 3);
    let before = number(switches);
    std::thread::sleep(IDLE);
    let wakeups = (number(switches) - before) / IDLE.as_secs_f64();
    let kilobytes = number("sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/1/status");
    let bytes = number("stat -L -c %s /proc/1/exe");
    docker(&["stop", &cluster.container.id]).ok();
    Idle { memory: kilobytes / 1e3, binary: bytes / 1e6, wakeups }
}
