//! Measures how fast an image starts, and its alternatives in the same run. Nothing is asserted.
//!
//! ```text
//! KIND_IMAGE=kind cargo bench
//! KIND_IMAGE=kind KIND_BUNDLE=bundle KIND_BENCH_SIZES=1 cargo bench     # with all alternatives and sizes
//! ```
//!
//! Each start is measured `KIND_BENCH_RUNS` times (default 5), in turns with the alternatives, so that other load on
//! the machine affects all of them. `KIND_BUNDLE` is the bundle whose kubeadm creates a cluster at start, and from
//! which `KIND_BENCH_SIZES` bakes larger images. The boot with the median time is drawn to `target/boot.svg`, or to
//! the file that `KIND_BENCH_SVG` names. `KIND_BENCH_ARGUMENTS` are more arguments of `docker run` for the image's own
//! starts, such as `--env NAME=VALUE`. The last column has half the CPUs (`--cpus`). `KIND_BENCH_COLD` is how many starts are measured with nothing in the page cache, which
//! is emptied before each of them. `KIND_BENCH_PULLS` is how many times an empty engine pulls the image and starts it,
//! in turns with an older image that `KIND_BENCH_BEFORE` names (`pull.sh` says what that needs).
#![allow(clippy::disallowed_methods, reason = "no reaper runs in this process, so std's own wait calls are safe")]

#[allow(dead_code, reason = "only the tests use all of it")]
#[path = "../e2e/cluster.rs"]
mod cluster;
#[allow(dead_code, reason = "only the tests use all of it")]
#[path = "../e2e/engine.rs"]
mod engine;
mod picture;
#[path = "../e2e/process.rs"]
#[allow(dead_code, reason = "only the tests use all of it")]
mod process;
mod pull;
mod rivals;
mod start;
mod table;

use std::path::Path;

use crate::start::Start;
use crate::table::{ratio, Series};

fn main() {
    let runs: usize = setting("KIND_BENCH_RUNS").map_or(5, |text| text.parse().expect("KIND_BENCH_RUNS is a number"));
    let bundle = setting("KIND_BUNDLE").map(|bundle| Path::new(env!("CARGO_MANIFEST_DIR")).join(bundle));
    println!("{} on {} CPUs, Docker {}", engine::image(), cpus(), engine::docker(&["version", "--format", "{{.Server.Version}}"]).ok());
    let more = setting("KIND_BENCH_ARGUMENTS").unwrap_or_default();
    let more: Vec<&str> = more.split_whitespace().collect();
    let plain_arguments = [&more[..], &["--env", "KIND_RESTORE=0"]].concat();
    // The first start reads the image from disk. Measure with a warm page cache.
    let is_restored = Start::measure(&more).timeline.iter().any(|(_, what)| what == "restored");
    println!("the control plane is {}", if is_restored { "restored" } else { "started: nothing is saved, or it cannot be restored here" });
    let half = format!("{:.1}", cpus() as f64 / 2.0);
    let half = [&more[..], &["--cpus", &half]].concat();
    let (mut starts, mut halved, mut plain, mut kubeadm, mut unpacked) = (vec![], vec![], vec![], vec![], vec![]);
    for run in 1..=runs {
        eprintln!("run {run} of {runs}");
        starts.push(Start::measure(&more));
        halved.push(Start::measure(&half));
        if is_restored {
            plain.push(Start::measure(&plain_arguments));
        }
        if let Some(bundle) = &bundle {
            kubeadm.push(rivals::kubeadm_init(bundle));
        }
        unpacked.extend(rivals::unpack(engine::image()));
    }
    let (mut cold, mut cold_plain) = (vec![], vec![]);
    for run in 1..=setting("KIND_BENCH_COLD").map_or(0, |text| text.parse().expect("KIND_BENCH_COLD is a number")) {
        eprintln!("cold run {run}");
        start::drop_caches();
        cold.push(Start::measure(&more).kubernetes_ready);
        start::drop_caches();
        cold_plain.push(Start::measure(&plain_arguments).kubernetes_ready);
    }
    let of_plain = |value: fn(&Start) -> f64| plain.iter().map(value).collect::<Vec<_>>();
    let plain_ready =
        Series::new("rival: KIND_RESTORE=0, docker run → kubernetes-ready", "s", "", of_plain(|start| start.kubernetes_ready));
    let plain_cpu = Series::new("rival: KIND_RESTORE=0, CPU until kubernetes-ready", "s", "", of_plain(|start| start.cpu));
    let of = |name, unit, goal, value: fn(&Start) -> f64| {
        Series::new(name, unit, goal, starts.iter().map(value).collect()).halved(halved.iter().map(value).collect())
    };
    let goal = if is_restored { "≤ 3" } else { "≤ 6" };
    let ready = of("docker run → kubernetes-ready", "s", goal, |start| start.kubernetes_ready);
    let cpu = of("CPU until kubernetes-ready, whole container", "s", "", |start| start.cpu);
    let store = of("the store, from the init's start", "s", "≤ 0.3", |start| start.milestone("store"));
    let kubeadm = Series::new("rival: `kubeadm init` at start, same store", "s", "", kubeadm);
    let unpacked = Series::new("rival: the store unpacked from an lz4 tarball", "s", "", unpacked);
    let idle = start::idle();
    let docker_ready = of("docker run → docker-ready", "s", "≤ 1.2", |start| start.docker_ready);
    let plain_docker_ready = Series::new("rival: KIND_RESTORE=0, docker run → docker-ready", "s", "", of_plain(|start| start.docker_ready));
    let reset = of("reset with ten pods and a hundred objects → kubernetes-ready", "s", "≤ 2.5", |start| start.reset.seconds);
    let restart = of("rival: docker restart of the same → kubernetes-ready", "s", "", |start| start.restart.seconds);
    let mut table = vec![
        ready.clone(),
        docker_ready.clone(),
        of("the init's start → docker-ready", "s", "≤ 0.6", |start| start.milestone("docker-ready")),
        store.clone(),
        of("a built image → its pod Running", "s", "≤ 1.5", |start| start.pod_running),
        reset.clone(),
        of("reset, CPU", "s", "", |start| start.reset.cpu),
        restart.clone(),
        of("rival: docker restart, CPU", "s", "", |start| start.restart.cpu),
        cpu.clone(),
        of("memory when ready, whole container", "MB", "", |start| start.memory),
        Series::new("cold page cache: docker run → kubernetes-ready", "s", "", cold),
        of("docker stop", "s", "≤ 3", |start| start.stop),
        Series::new("the init: resident memory", "MB", "≤ 6", vec![idle.memory]),
        Series::new("the init: binary", "MB", "≤ 4", vec![idle.binary]),
        Series::new("the init: wakeups while idle", "/s", "≤ 0.2", vec![idle.wakeups]),
        plain_ready.clone(),
        plain_docker_ready.clone(),
        plain_cpu.clone(),
        Series::new("rival: KIND_RESTORE=0, memory when ready", "MB", "", of_plain(|start| start.memory)),
        Series::new("rival: KIND_RESTORE=0, cold page cache: docker run → kubernetes-ready", "s", "", cold_plain),
        kubeadm.clone(),
        unpacked.clone(),
    ];
    let pulls = setting("KIND_BENCH_PULLS").map_or(0, |text| text.parse().expect("KIND_BENCH_PULLS is a number"));
    if pulls > 0 {
        table.extend(pull::rows(setting("KIND_BENCH_BEFORE").as_deref(), pulls));
    }
    if setting("KIND_BENCH_SIZES").is_some() {
        let bundle = bundle.as_deref().expect("KIND_BENCH_SIZES needs KIND_BUNDLE, to bake from");
        for megabytes in [500, 5000] {
            table.extend(rivals::by_size(bundle, megabytes, runs));
        }
    }
    println!("\n{}", table::render(&table));
    println!("kubeadm init at start / baked: {}", ratio(&kubeadm, &ready));
    println!("started / restored:            {}", ratio(&plain_ready, &ready));
    println!("docker restart / reset:        {}", ratio(&restart, &reset));
    println!("reset / start:                 {}", ratio(&reset, &ready));
    println!("the CPU for it:                {}", ratio(&plain_cpu, &cpu));
    println!("docker-ready, the same way:    {}", ratio(&plain_docker_ready, &docker_ready));
    println!("unpacked / linked store:       {}", ratio(&unpacked, &store));
    let path = setting("KIND_BENCH_SVG").unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/target/boot.svg").into());
    starts.sort_by(|a, b| a.kubernetes_ready.total_cmp(&b.kubernetes_ready));
    std::fs::write(&path, picture::draw(&starts[starts.len() / 2])).expect("the picture can be written");
    println!("the median boot is drawn in {path}");
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}
