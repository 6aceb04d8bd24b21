//! Shows why a cluster did not come up: the ends of the logs of its control plane, kubelet and containerd, in the
//! container's log, which outlives the container's files in most CI systems.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::files;
use crate::supervisor::reaper;

/// Lines of each log.
const LINES: usize = 6;
/// Prefix of the directories that kubelet creates: `NAMESPACE_NAME_UID/CONTAINER/N.log`.
const NAMESPACE: &str = "kube-system_";

/// Logs the end of every system pod's newest log, of kubelet's errors, and of containerd's log.
pub fn log_tails(pod_logs: &Path, daemon_logs: &Path) {
    for (name, path) in newest_logs(pod_logs) {
        let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).lines().map(without_prefix).collect::<Vec<_>>().join("\n");
        show(&name, &text);
    }
    let read = |name: &str| String::from_utf8_lossy(&fs::read(daemon_logs.join(name)).unwrap_or_default()).into_owned();
    show("kubelet", &last_errors(&read("kubelet.log")));
    // It logs only warnings and errors.
    show("containerd", &read("containerd.log"));
}

/// How often a system pod's container was started again: the number of its newest log.
pub fn restarts(pod_logs: &Path, container: &str) -> u32 {
    let newest = newest_logs(pod_logs).into_iter().find(|(name, _)| name == container);
    newest.and_then(|(_, path)| path.file_stem()?.to_str()?.parse().ok()).unwrap_or(0)
}

/// The last error lines, each message only once, because kubelet repeats itself.
fn last_errors(log: &str) -> String {
    // klog starts a line with its severity; time, thread and source location, which differ, end with `]`.
    let message = |line: &str| line.split_once("] ").map_or(line, |(_, message)| message).to_string();
    let mut seen = BTreeSet::new();
    let mut errors: Vec<&str> = log.lines().rev().filter(|line| line.starts_with('E') && seen.insert(message(line))).take(LINES).collect();
    errors.reverse();
    errors.join("\n")
}

fn show(name: &str, text: &str) {
    let tail = reaper::tail(text, LINES);
    if !tail.trim().is_empty() {
        log::error!(target: "cluster", "the end of the log of {name}:\n{tail}");
    }
}

/// Each system pod's containers, with the log of their last start.
fn newest_logs(pod_logs: &Path) -> Vec<(String, PathBuf)> {
    let list = |path: &Path| files::list(path).unwrap_or_default();
    let number = |path: &PathBuf| path.file_stem().and_then(|stem| stem.to_str()?.parse::<u32>().ok());
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut newest = vec![];
    for pod in list(pod_logs).iter().filter(|pod| name(pod).starts_with(NAMESPACE)) {
        for container in list(pod) {
            if let Some(log) = list(&container).into_iter().filter(|path| number(path).is_some()).max_by_key(number) {
                newest.push((name(&container), log));
            }
        }
    }
    newest.sort();
    newest
}

/// A line in CRI's log format without its `TIME STREAM TAG ` prefix.
fn without_prefix(line: &str) -> &str {
    line.splitn(4, ' ').nth(3).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_log_of_each_system_container_is_found() {
        let root = std::env::temp_dir().join(format!("kind-postmortem-{}", std::process::id()));
        for file in [
            "kube-system_etcd-kind_1/etcd/0.log",
            "kube-system_etcd-kind_1/etcd/10.log",
            "kube-system_etcd-kind_1/etcd/9.log",
            "default_app_2/app/0.log",
        ] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        assert_eq!(newest_logs(&root), [("etcd".to_string(), root.join("kube-system_etcd-kind_1/etcd/10.log"))]);
        assert!(newest_logs(&root.join("missing")).is_empty());
        assert_eq!((restarts(&root, "etcd"), restarts(&root, "kube-apiserver")), (10, 0));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn an_error_that_kubelet_repeats_is_shown_once() {
        let log = "E1 08:00:01 7 pod.go:1] no sandbox\nI1 08:00:02 7 x.go:1] started\nE1 08:00:03 7 pod.go:1] no image\nE1 08:00:04 7 pod.go:1] no sandbox\n";
        assert_eq!(last_errors(log), "E1 08:00:03 7 pod.go:1] no image\nE1 08:00:04 7 pod.go:1] no sandbox");
    }

    #[test]
    fn a_line_is_shown_without_what_the_runtime_put_before_it() {
        assert_eq!(without_prefix("2026-11-25T08:00:00.1Z stderr F panic: no disk left"), "panic: no disk left");
        assert_eq!(without_prefix("plain"), "plain");
    }
}
