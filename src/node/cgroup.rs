//! Prepares cgroups(7) for daemons that create cgroups of their own.
//!
//! Version 2: a cgroup with processes in it cannot enable controllers for its children ("no internal processes"),
//! so we move ours into `/init`. Version 1: we create `/kubelet` in every hierarchy.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sched::{unshare, CloneFlags};

use crate::error::{Error, Result};
use crate::files;
use crate::node::mounts::{self, Mount};
use crate::supervisor::reaper;

pub const CGROUP_DIR: &str = "/sys/fs/cgroup";
/// kubelet's `cgroupRoot`.
pub const KUBELET_CGROUP: &str = "kubelet";
/// dockerd's default `cgroup-parent` with the driver cgroupfs.
const DOCKER_CGROUP: &str = "docker";
/// How long to retry, since `docker exec` and health checks may put processes into the root at any moment.
const ENABLE_LIMIT: Duration = Duration::from_secs(5);

/// How the kernel's cgroups are mounted.
#[derive(Debug, PartialEq)]
enum Layout {
    /// One hierarchy at `/sys/fs/cgroup`.
    V2,
    /// Mounts by controller: the mount point, and the options that name the controllers.
    V1(Vec<(PathBuf, String)>),
}

/// Enters a cgroup namespace whose root is our own cgroup, unless we are in one.
///
/// In a Kubernetes pod and under cgroup v1 a container shares the host's cgroup namespace, and moving every process
/// of the root would move the host's own. Must run before any thread starts: unshare(2) changes only the calling
/// thread.
pub fn enter_own_namespace() -> Result<()> {
    if is_root(&files::read("/proc/self/cgroup")?) {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(|cause| Error::new(format!("cannot unshare the cgroup namespace: {cause}")))?;
    match layout()? {
        Layout::V2 => remount(Path::new(CGROUP_DIR), "cgroup2", None),
        Layout::V1(mounts) => mounts.iter().try_for_each(|(target, options)| remount(target, "cgroup", Some(options))),
    }
}

/// Whether every line of `/proc/self/cgroup` names the root.
fn is_root(own: &str) -> bool {
    own.lines().all(|line| line.splitn(3, ':').nth(2) == Some("/"))
}

/// Mounts cgroups again: a mount shows the namespace in which it was made.
fn remount(target: &Path, kind: &str, options: Option<&str>) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // If the old mount is busy, the new one covers it.
    let _ = umount2(target, MntFlags::MNT_DETACH);
    mount(Some(kind), target, Some(kind), flags, options).map_err(|cause| Error::io(&format!("mount {kind} on"), target, cause))
}

/// Creates `/kubelet` with every controller enabled.
pub fn prepare() -> Result<()> {
    match layout()? {
        Layout::V2 => {
            enable_controllers()?;
            make_dir(&Path::new(CGROUP_DIR).join(KUBELET_CGROUP))
        }
        Layout::V1(mounts) => mounts.iter().try_for_each(|(hierarchy, _)| {
            let kubelet = hierarchy.join(KUBELET_CGROUP);
            make_dir(&kubelet)?;
            // A new cpuset is empty, and adding a process to an empty one fails with ENOSPC.
            ["cpuset.cpus", "cpuset.mems"].iter().try_for_each(|file| copy_setting(hierarchy, &kubelet, file))
        }),
    }
}

/// Every process of every pod.
pub fn processes_of_pods() -> Vec<i32> {
    processes_below(KUBELET_CGROUP)
}

/// Whether a process belongs to a container of a pod or of Docker's.
pub fn is_in_container(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| is_below_containers(&text))
}

/// Whether a line of `/proc/PID/cgroup` names a cgroup below one of those that hold containers.
fn is_below_containers(text: &str) -> bool {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2)?.strip_prefix('/')?.split_once('/'));
    paths.into_iter().any(|(first, _)| [KUBELET_CGROUP, DOCKER_CGROUP].contains(&first))
}

/// The containers of pods in which something runs, by their ids, and the cgroup of each.
pub fn containers_of_pods() -> BTreeMap<String, PathBuf> {
    roots().iter().flat_map(|root| containers_below(&root.join(KUBELET_CGROUP))).collect()
}

/// Every cgroup that has processes in it or below it, under its last name.
fn containers_below(cgroup: &Path) -> BTreeMap<String, PathBuf> {
    let busy = walk(cgroup).into_iter().filter(|(_, pids)| !pids.is_empty());
    let with_parents =
        busy.flat_map(|(path, _)| path.ancestors().take_while(|path| path.starts_with(cgroup)).map(PathBuf::from).collect::<Vec<_>>());
    with_parents.map(|path| (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), path)).collect()
}

/// Every process of Docker's containers.
pub fn processes_of_docker() -> Vec<i32> {
    processes_below(DOCKER_CGROUP)
}

/// Where to look for processes.
fn roots() -> Vec<PathBuf> {
    match layout() {
        Ok(Layout::V2) => vec![PathBuf::from(CGROUP_DIR)],
        // Every hierarchy has all processes, so one is enough.
        Ok(Layout::V1(mounts)) => mounts.into_iter().map(|(path, _)| path).filter(|path| path.ends_with("pids")).collect(),
        Err(_) => vec![],
    }
}

fn processes_below(cgroup: &str) -> Vec<i32> {
    roots().iter().flat_map(|root| processes_in(&root.join(cgroup))).collect()
}

/// Every process in a cgroup, and below it.
pub fn processes_in(cgroup: &Path) -> Vec<i32> {
    walk(cgroup).into_iter().flat_map(|(_, pids)| pids).collect()
}

/// A cgroup and all below it, each with the processes in it.
fn walk(cgroup: &Path) -> Vec<(PathBuf, Vec<i32>)> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut found = vec![(cgroup.to_path_buf(), text.lines().filter_map(|line| line.parse().ok()).collect())];
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    found.extend(below.flat_map(|entry| walk(&entry.path())));
    found
}

/// Moves every process out of the root, and enables all controllers there.
fn enable_controllers() -> Result<()> {
    let root = Path::new(CGROUP_DIR);
    let init = root.join("init");
    make_dir(&init)?;
    let controllers = files::read(root.join("cgroup.controllers"))?;
    let enable = controllers.split_whitespace().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
    let mut last = None;
    reaper::poll(Duration::from_millis(5), ENABLE_LIMIT, || {
        for pid in fs::read_to_string(root.join("cgroup.procs")).unwrap_or_default().lines() {
            // Fails if the process has ended meanwhile.
            let _ = fs::write(init.join("cgroup.procs"), pid);
        }
        match fs::write(root.join("cgroup.subtree_control"), &enable) {
            Ok(()) => Some(()),
            Err(cause) => {
                last = Some(cause);
                None
            }
        }
    })
    .ok_or_else(|| {
        Error::new(format!("cannot enable {enable} in {CGROUP_DIR}: {}", last.map(|cause| cause.to_string()).unwrap_or_default()))
    })
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|cause| {
        Error::io("create the cgroup", path, cause).advise("Start the container with `--privileged`, which makes cgroups writable")
    })
}

fn copy_setting(from: &Path, to: &Path, file: &str) -> Result<()> {
    let Ok(value) = fs::read_to_string(from.join(file)) else { return Ok(()) };
    files::write(to.join(file), value.trim())
}

fn layout() -> Result<Layout> {
    layout_of(&mounts::mounts()).ok_or_else(|| {
        Error::new(format!("no cgroups are mounted on {CGROUP_DIR}")).advise("Start the container with `docker run --privileged`")
    })
}

fn layout_of(mounts: &[Mount]) -> Option<Layout> {
    let mut v1 = Vec::new();
    for Mount { point, kind, options, .. } in mounts {
        match kind.as_str() {
            "cgroup2" if point == Path::new(CGROUP_DIR) => return Some(Layout::V2),
            "cgroup" if point.starts_with(CGROUP_DIR) => {
                let controllers: Vec<&str> =
                    options.split(',').filter(|option| !["rw", "ro", "xattr", "clone_children"].contains(option)).collect();
                v1.push((point.clone(), controllers.join(",")));
            }
            _ => {}
        }
    }
    (!v1.is_empty()).then_some(Layout::V1(v1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_recognised_in_proc_self_cgroup() {
        for (text, root) in [
            ("0::/\n", true),
            ("9:name=systemd:/\n8:pids:/\n0::/\n", true),
            ("0::/kubepods/burstable/pod1/c\n", false),
            ("8:pids:/docker/4f\n0::/\n", false),
            ("0::/a:b\n", false),
        ] {
            assert_eq!(is_root(text), root, "{text}");
        }
    }

    #[test]
    fn a_process_of_a_container_is_known_by_its_cgroup() {
        for (text, expected) in [
            ("0::/kubelet/kubepods/burstable/pod1/c\n", true),
            ("9:name=systemd:/\n8:pids:/docker/4f\n0::/\n", true),
            ("0::/init\n", false),
            ("0::/\n", false),
            ("0::/kubelet\n", false),
            ("0::/dockers/4f\n", false),
        ] {
            assert_eq!(is_below_containers(text), expected, "{text}");
        }
    }

    #[test]
    fn a_container_is_found_while_something_runs_in_it() {
        let root = std::env::temp_dir().join(format!("kind-cgroup-{}", std::process::id()));
        for (cgroup, processes) in
            [("kubepods", ""), ("kubepods/burstable/pod1/a", "7\n"), ("kubepods/pod2/b", ""), ("kubepods/pod3/c/init", "8\n")]
        {
            fs::create_dir_all(root.join(cgroup)).unwrap();
            fs::write(root.join(cgroup).join("cgroup.procs"), processes).unwrap();
        }
        let containers = containers_below(&root);
        assert_eq!(containers.get("a"), Some(&root.join("kubepods/burstable/pod1/a")));
        assert!(containers.contains_key("c") && !containers.contains_key("b") && !containers.contains_key("pod2"));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_layout_is_read_from_mountinfo() {
        let parse_layout = |text: &str| layout_of(&mounts::parse_mounts(text.as_bytes()));
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n";
        assert_eq!(parse_layout(v2), Some(Layout::V2));
        let hybrid = "31 30 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:28 /docker/4f /sys/fs/cgroup/cpu,cpuacct rw master:1 - cgroup cgroup rw,cpu,cpuacct
33 31 0:29 /docker/4f /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 31 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup rw
";
        let expected = [("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"), ("/sys/fs/cgroup/systemd", "name=systemd")];
        assert_eq!(parse_layout(hybrid), Some(Layout::V1(expected.map(|(path, options)| (path.into(), options.into())).to_vec())));
        assert_eq!(parse_layout("22 1 0:21 / /proc rw - proc proc rw\n"), None);
    }
}
