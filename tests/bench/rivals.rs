//! The alternatives that the image is compared with, in the same run on the same machine.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cluster::BOOT_LIMIT;
use crate::engine::{docker, docker_within, session, Container};
use crate::process::{run, wait_for};
use crate::table::Series;

/// For a bake with gigabytes of images.
const BAKE_LIMIT: Duration = Duration::from_secs(1800);
const COPY_LIMIT: Duration = Duration::from_secs(600);

/// Seconds from `docker run` until every pod is Ready if `kubeadm init` creates the cluster at start, in the same image
/// with the same store.
pub fn kubeadm_init(bundle: &Path) -> f64 {
    let began = Instant::now();
    let container = Container::idle(&["--privileged"], &["sleep", "infinity"]);
    let prepared = Instant::now();
    container.copy_to(&bundle.join("bin/kubeadm"), "/usr/local/bin/kubeadm");
    container.copy_to(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/kubeadm-init.sh")), "/kubeadm-init.sh");
    // Does not count: an image made for this would contain both files.
    let prepared = prepared.elapsed();
    let outcome = docker_within(BOOT_LIMIT * 3, &["exec", &container.id, "bash", "/kubeadm-init.sh"]);
    assert!(outcome.succeeded(), "{outcome}");
    (began.elapsed() - prepared).as_secs_f64()
}

/// Seconds to unpack the image's store from an lz4 tarball, as the predecessor of this project did. `None` if lz4 is
/// not installed.
pub fn unpack(image: &str) -> Option<f64> {
    let directory = session().dir.join("unpacked");
    let archive = session().dir.join(format!("{}.tar.lz4", image.replace(['/', ':'], "-")));
    let shell = |script: &str| run(Command::new("sh").args(["-ec", script, "sh", image]).arg(&archive).arg(&directory), COPY_LIMIT);
    if !shell("command -v lz4").succeeded() {
        eprintln!("NOT MEASURED: unpacking an lz4 tarball, because lz4 is not installed: apt-get install lz4");
        return None;
    }
    if !archive.exists() {
        shell(r#"id=$(docker create "$1"); docker cp "$id:/kind/store" - | lz4 -q - "$2"; docker rm -v "$id""#).ok();
    }
    let unpacked = shell(r#"mkdir "$3"; lz4 -dqc "$2" | tar -x -C "$3""#);
    assert!(unpacked.succeeded(), "{unpacked}");
    shell(r#"rm -rf "$3""#).ok();
    Some(unpacked.took.as_secs_f64())
}

/// The time for the store of an image with that many megabytes of images, linked and unpacked.
pub fn by_size(bundle: &Path, megabytes: u32, runs: usize) -> Vec<Series> {
    let target = format!("kind-e2e-{}:{megabytes}", std::process::id());
    let script = session().dir.join("images.sh");
    // In images of half a gigabyte, of random data, which cannot be compressed.
    let text = format!(
        "mkdir /var/lib/docker/data && cd /var/lib/docker/data\nfor number in $(seq {}); do\n  head -c 500000000 /dev/urandom >data\n  tar -c data | docker import - size:$number\ndone\nrm -r /var/lib/docker/data\n",
        megabytes / 500
    );
    std::fs::write(&script, text).expect("the session's directory can be written");
    eprintln!("baking {megabytes} MB of images");
    let mut build = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/build.sh"));
    let built = run(build.arg("--bundle").arg(bundle).arg(&target).env("KIND_IMAGES", &script), BAKE_LIMIT);
    assert!(built.succeeded(), "{built}");
    let linked = (0..runs).map(|_| store_time(&target)).collect();
    let unpacked = unpack(&target).into_iter().collect();
    docker(&["image", "rm", "--force", &target]).ok();
    vec![
        Series::new(&format!("the store with {megabytes} MB baked"), "s", "≤ 0.3", linked),
        Series::new(&format!("rival: {megabytes} MB unpacked from an lz4 tarball"), "s", "", unpacked),
    ]
}

/// Seconds from the start of the init until the store is ready.
fn store_time(image: &str) -> f64 {
    let container = Container::create(&["--privileged", image]);
    container.start();
    let timeline = || container.exec(&["cat", "/var/kind/timeline"]).stdout;
    let found = |text: String| text.lines().find_map(|line| line.strip_suffix(" store").map(str::to_string));
    wait_for("the store is ready", BOOT_LIMIT, || found(timeline())).parse().expect("the timeline has seconds")
}
