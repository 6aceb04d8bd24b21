//! What of a cluster is kept, and that the log says what is not.

use crate::cluster::Cluster;
use crate::engine::{docker, docker_within, Image};
use std::time::Duration;

/// For an image of more than a gigabyte, whose layers are there.
const COMMIT_LIMIT: Duration = Duration::from_secs(180);
const NOT_KEPT: &str = "was started before: what it had in its cluster and in Docker is not here";
const RESTARTED: &str = "this start begins with the baked cluster";

/// Silent before: whoever committed a cluster found it without what was in it.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_committed_cluster_starts_as_it_was_baked_and_its_log_says_so() {
    let cluster = Cluster::ready(&[]);
    let log = cluster.container.logs();
    assert!(!log.contains(NOT_KEPT) && !log.contains(RESTARTED), "a first start has nothing to say: {log}");
    cluster.kubectl(&["create", "configmap", "mine"]).ok();
    let image = Image(format!("kind-e2e-{}:committed", std::process::id()));
    docker_within(COMMIT_LIMIT, &["commit", &cluster.container.id, &image.0]).ok();

    let committed = Cluster::ready_of(&image.0);
    assert!(!committed.kubectl(&["get", "configmap", "mine"]).succeeded(), "docs/jobs.md says that it is not kept");
    let log = committed.container.logs();
    assert!(log.contains(NOT_KEPT) && log.contains("kind save --stop"), "{log}");
    drop(committed);

    // The same in the log of a restart, where it is as people want it: no warning.
    let before = cluster.container.logs().len();
    docker(&["restart", &cluster.container.id]).ok();
    cluster.wait_until_ready();
    let log = cluster.container.logs()[before..].to_string();
    let line = log.lines().find(|line| line.contains(RESTARTED)).unwrap_or_else(|| panic!("nothing tells of it: {log}"));
    assert!(line.starts_with("INFO"), "{line}");
}
