//! `KIND_ENFORCE_CAPACITY`: makes the node as large as its container's limits (`docker run --cpus --memory
//! --cpuset-cpus`) instead of the machine.
//!
//! kubelet reads a node's capacity from /proc/meminfo and /sys/devices/system/node (cAdvisor's `machine` and
//! `sysinfo`, the same from Kubernetes 1.20 on), and has no setting for it. So we show it smaller ones, in a mount
//! namespace of its own. Those have only whole cores; the part that exceeds the limit is reserved
//! (`--system-reserved`). `kubelet_view` puts them in place.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::config::{ENFORCE_CAPACITY, RUN_DIR};
use crate::error::{Error, Result};
use crate::node::mounts::make_dir;

pub const MEMINFO: &str = "/proc/meminfo";
const CPUS: &str = "/sys/devices/system/cpu";
pub const NODES: &str = "/sys/devices/system/node";
const HUGEPAGES: &str = "/sys/kernel/mm/hugepages";
const CGROUP_DIR: &str = "/sys/fs/cgroup";
/// With less than a whole core, the control plane's own requests (750m) no longer fit.
const LEAST_MILLIS: u64 = 1000;

/// What the container may use; `None` where there is no limit.
#[derive(Clone, Debug, Default, PartialEq)]
struct Limits {
    memory_bytes: Option<u64>,
    cpu_millis: Option<u64>,
    /// Numbers of the CPUs.
    cpus: Option<Vec<u32>>,
}

/// Reads the limits, and prepares what kubelet will see. Returns flags for kubelet.
pub fn prepare() -> Result<Vec<String>> {
    let limits = Limits::read(Path::new(CGROUP_DIR));
    if let Some(millis) = limits.cpu_millis.filter(|millis| *millis < LEAST_MILLIS) {
        log::warn!(target: "limits", "{millis}m of CPU do not hold the control plane: the node has {LEAST_MILLIS}m");
    }
    let meminfo = read(MEMINFO)?;
    let online = parse_list(&read(&format!("{CPUS}/online"))?);
    let memory = limits.memory_bytes.filter(|bytes| bytes / 1024 < total_kilobytes(&meminfo));
    let visible = visible_cpus(&online, &limits);
    let directory = directory();
    make_dir(&directory)?;
    let meminfo = memory.map_or(meminfo.clone(), |bytes| with_total(&meminfo, bytes / 1024));
    write(&directory.join("meminfo"), &meminfo)?;
    // Without NUMA nodes, kubelet counts all CPUs, and we reserve the surplus.
    let seen = if Path::new(NODES).exists() { write_node(&directory, &visible, &meminfo)? } else { online.len() };
    let reserved = reserved_millis(seen, visible.len(), &limits);
    log::info!(
        target: "limits", "{ENFORCE_CAPACITY}: kubelet sees {} MiB of memory and {}m of CPU",
        total_kilobytes(&meminfo) / 1024, seen as u64 * 1000 - reserved
    );
    Ok(if reserved > 0 { vec![format!("--system-reserved=cpu={reserved}m")] } else { vec![] })
}

/// Whether the container may use less CPU time than its CPUs have (`docker run --cpus`). Then even a process that has a
/// CPU for itself takes time from the others.
pub fn has_less_time_than_cpus() -> bool {
    let online = fs::read_to_string(format!("{CPUS}/online")).unwrap_or_default();
    Limits::read(Path::new(CGROUP_DIR)).have_less_time_than_cpus(&parse_list(&online))
}

/// What kubelet is shown instead of the machine's.
pub fn directory() -> PathBuf {
    Path::new(RUN_DIR).join("capacity")
}

impl Limits {
    /// Reads the limits of the root cgroup that we see, in either version.
    fn read(root: &Path) -> Limits {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        if root.join("cgroup.controllers").exists() {
            return Limits {
                memory_bytes: text("memory.max").and_then(|text| parse_bytes(&text)),
                cpu_millis: text("cpu.max").and_then(|text| parse_quota(&text)),
                cpus: text("cpuset.cpus.effective").map(|text| parse_list(&text)),
            };
        }
        let quota = text("cpu/cpu.cfs_quota_us").zip(text("cpu/cpu.cfs_period_us"));
        Limits {
            memory_bytes: text("memory/memory.limit_in_bytes").and_then(|text| parse_bytes(&text)),
            cpu_millis: quota.and_then(|(quota, period)| parse_quota(&format!("{} {}", quota.trim(), period.trim()))),
            cpus: text("cpuset/cpuset.cpus").map(|text| parse_list(&text)),
        }
    }

    /// The CPUs that the container may use.
    fn allowed<'a>(&'a self, online: &'a [u32]) -> &'a [u32] {
        self.cpus.as_ref().filter(|cpus| !cpus.is_empty()).map_or(online, Vec::as_slice)
    }

    fn have_less_time_than_cpus(&self, online: &[u32]) -> bool {
        self.cpu_millis.is_some_and(|millis| millis < 1000 * self.allowed(online).len() as u64)
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Parses `cpu.max`: quota and period in microseconds; `max` and -1 mean no limit.
fn parse_quota(text: &str) -> Option<u64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    quota.checked_mul(1000)?.checked_div(period)
}

/// Parses cpuset(7)'s list format, such as `0-2,8`.
fn parse_list(text: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// The CPUs that the node has: as many whole ones as the limit needs, from the allowed ones.
fn visible_cpus(online: &[u32], limits: &Limits) -> Vec<u32> {
    let allowed = limits.allowed(online);
    let count = limits.cpu_millis.map_or(allowed.len(), |millis| millis.div_ceil(1000).max(1) as usize);
    allowed.iter().take(count).copied().collect()
}

/// How much of the CPUs that kubelet sees must not be given to pods.
fn reserved_millis(seen: usize, visible: usize, limits: &Limits) -> u64 {
    let may = (visible as u64 * 1000).min(limits.cpu_millis.unwrap_or(u64::MAX)).max(LEAST_MILLIS);
    (seen as u64 * 1000).saturating_sub(may)
}

fn total_kilobytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Changes the total in proc_meminfo(5), and limits the other values to it.
fn with_total(meminfo: &str, kilobytes: u64) -> String {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let value: u64 = rest.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        let value = if name == "MemTotal" { kilobytes } else { value.min(kilobytes) };
        (name.starts_with("Mem")).then(|| format!("{:<16}{value:>8} kB", format!("{name}:")))
    };
    meminfo.lines().map(|text| line(text).unwrap_or_else(|| text.to_string()) + "\n").collect()
}

/// Writes one NUMA node with these CPUs, which are links to the real ones. Returns how many there are.
fn write_node(directory: &Path, cpus: &[u32], meminfo: &str) -> Result<usize> {
    let node = directory.join("node/node0");
    match fs::remove_dir_all(directory.join("node")) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("clear", directory, cause)),
        _ => make_dir(&node)?,
    }
    let link = |from: String, name: String| symlink(from, node.join(&name)).map_err(|cause| Error::io("link", node.join(name), cause));
    cpus.iter().try_for_each(|cpu| link(format!("{CPUS}/cpu{cpu}"), format!("cpu{cpu}")))?;
    link(HUGEPAGES.into(), "hugepages".into())?;
    let total: String = meminfo.lines().filter(|line| line.starts_with("Mem")).map(|line| format!("Node 0 {line}\n")).collect();
    write(&node.join("meminfo"), &total)?;
    write(&node.join("distance"), "10\n")?;
    Ok(cpus.len())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|cause| Error::io("read", path, cause))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|cause| Error::io("write", path, cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_from_both_versions() {
        let root = std::env::temp_dir().join(format!("kind-capacity-{}", std::process::id()));
        let write = |files: &[(&str, &str)]| {
            for (name, text) in files {
                make_dir(root.join(name).parent().unwrap()).unwrap();
                fs::write(root.join(name), text).unwrap();
            }
        };
        assert_eq!(Limits::read(&root), Limits::default());
        let limits = Limits { memory_bytes: Some(2 << 30), cpu_millis: Some(1500), cpus: Some(vec![0, 1, 2, 8]) };
        write(&[("memory/memory.limit_in_bytes", "2147483648\n"), ("cpuset/cpuset.cpus", "0-2,8\n")]);
        write(&[("cpu/cpu.cfs_quota_us", "150000\n"), ("cpu/cpu.cfs_period_us", "100000\n")]);
        assert_eq!(Limits::read(&root), limits);
        write(&[("cpu/cpu.cfs_quota_us", "-1\n")]);
        assert_eq!(Limits::read(&root), Limits { cpu_millis: None, ..limits.clone() });
        write(&[("cgroup.controllers", "cpu memory\n"), ("memory.max", "2147483648\n")]);
        write(&[("cpu.max", "150000 100000\n"), ("cpuset.cpus.effective", "0-2,8\n")]);
        assert_eq!(Limits::read(&root), limits);
        write(&[("memory.max", "max\n"), ("cpu.max", "max 100000\n")]);
        assert_eq!(Limits::read(&root), Limits { cpus: limits.cpus, ..Limits::default() });
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn what_is_seen_less_what_is_reserved_is_the_limit() {
        let online: Vec<u32> = (0..4).collect();
        for (cpu_millis, cpus, visible, reserved) in [
            (None, None, vec![0, 1, 2, 3], 0),
            (Some(2000), None, vec![0, 1], 0),
            (Some(1500), None, vec![0, 1], 500),
            (Some(1500), Some(vec![2, 3]), vec![2, 3], 500),
            (Some(8000), Some(vec![3]), vec![3], 0),
            (None, Some(vec![1, 3]), vec![1, 3], 0),
            // The control plane must fit.
            (Some(300), None, vec![0], 0),
            (None, Some(vec![]), vec![0, 1, 2, 3], 0),
        ] {
            let limits = Limits { memory_bytes: None, cpu_millis, cpus };
            assert_eq!(visible_cpus(&online, &limits), visible, "{limits:?}");
            assert_eq!(reserved_millis(visible.len(), visible.len(), &limits), reserved, "{limits:?}");
        }
        for (cpu_millis, cpus, less) in [
            (None, None, false),
            (Some(4000), None, false),
            (Some(3900), None, true),
            (Some(1500), Some(vec![2, 3]), true),
            (Some(1500), Some(vec![2]), false),
        ] {
            let limits = Limits { memory_bytes: None, cpu_millis, cpus };
            assert_eq!(limits.have_less_time_than_cpus(&online), less, "{limits:?}");
        }
        // If we cannot show kubelet fewer CPUs, the others are reserved.
        assert_eq!(reserved_millis(4, 2, &Limits { cpu_millis: Some(1500), ..Limits::default() }), 2500);
    }

    #[test]
    fn memory_is_no_more_than_the_limit() {
        let meminfo = "MemTotal:       24680000 kB\nMemFree:        20000000 kB\nMemAvailable:     900000 kB\nSwapTotal:       2000000 kB\nHugePages_Total:       0\n";
        let expected = "MemTotal:        1048576 kB\nMemFree:         1048576 kB\nMemAvailable:     900000 kB\nSwapTotal:       2000000 kB\nHugePages_Total:       0\n";
        assert_eq!(with_total(meminfo, 1 << 20), expected);
        assert_eq!(total_kilobytes(expected), 1 << 20);
    }
}
