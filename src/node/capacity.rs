//! `KIND_ENFORCE_CAPACITY`: gives pods no more than the container's limits (`docker run --cpus --memory --cpuset-cpus`).
//!
//! kubelet has no setting for a node's capacity, which is the machine's. So what the container may not use is reserved
//! (`--system-reserved`): it is missing from what the scheduler gives to pods (`allocatable`), and from the memory limit
//! and the share of the CPU of the cgroup that holds them.

use std::fs;
use std::path::Path;

use crate::config::ENFORCE_CAPACITY;
use crate::error::Result;
use crate::files;
use crate::node::cgroup::CGROUP_DIR;

const MEMINFO: &str = "/proc/meminfo";
const ONLINE_CPUS: &str = "/sys/devices/system/cpu/online";

/// What the container may use; `None` where there is no limit.
#[derive(Clone, Debug, Default, PartialEq)]
struct Limits {
    memory_bytes: Option<u64>,
    cpu_millis: Option<u64>,
    /// Numbers of the CPUs.
    cpus: Option<Vec<u32>>,
}

/// Flags for kubelet.
pub fn kubelet_flags() -> Result<Vec<String>> {
    let (online, kilobytes) = (parse_list(&files::read(ONLINE_CPUS)?), total_kilobytes(&files::read(MEMINFO)?));
    let limits = Limits::read(Path::new(CGROUP_DIR));
    let (memory, millis) = (limits.kilobytes(kilobytes), limits.millis(&online));
    log::info!(target: "limits", "{ENFORCE_CAPACITY}: pods may request {} MiB of memory and {millis}m of CPU", memory / 1024);
    let (memory, millis) = (kilobytes - memory, (1000 * online.len() as u64).saturating_sub(millis));
    Ok(vec![format!("--system-reserved=cpu={millis}m,memory={memory}Ki")])
}

/// Whether the container may use less CPU time than its CPUs have (`docker run --cpus`). Then even a process that has a
/// CPU for itself takes time from the others.
pub fn has_less_time_than_cpus() -> bool {
    let online = fs::read_to_string(ONLINE_CPUS).unwrap_or_default();
    Limits::read(Path::new(CGROUP_DIR)).have_less_time_than_cpus(&parse_list(&online))
}

impl Limits {
    /// Reads the limits of the root cgroup that we see, in either version.
    fn read(root: &Path) -> Limits {
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        let quota = || Some(format!("{} {}", text("cpu/cpu.cfs_quota_us")?.trim(), text("cpu/cpu.cfs_period_us")?.trim()));
        Limits {
            memory_bytes: text("memory.max").or_else(|| text("memory/memory.limit_in_bytes")).and_then(|text| parse_bytes(&text)),
            cpu_millis: text("cpu.max").or_else(quota).and_then(|text| parse_quota(&text)),
            cpus: text("cpuset.cpus.effective").or_else(|| text("cpuset/cpuset.cpus")).map(|text| parse_list(&text)),
        }
    }

    /// The CPUs that the container may use.
    fn allowed<'a>(&'a self, online: &'a [u32]) -> &'a [u32] {
        self.cpus.as_ref().filter(|cpus| !cpus.is_empty()).map_or(online, Vec::as_slice)
    }

    /// The memory that the container may use, of the machine's.
    fn kilobytes(&self, total: u64) -> u64 {
        self.memory_bytes.map_or(total, |bytes| total.min(bytes / 1024))
    }

    /// The CPU time that the node has.
    fn millis(&self, online: &[u32]) -> u64 {
        let of_cpus = 1000 * self.allowed(online).len() as u64;
        self.cpu_millis.map_or(of_cpus, |millis| millis.min(of_cpus))
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

fn total_kilobytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_from_both_versions() {
        let root = std::env::temp_dir().join(format!("kind-capacity-{}", std::process::id()));
        let write = |files: &[(&str, &str)]| {
            for (name, text) in files {
                fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
                fs::write(root.join(name), text).unwrap();
            }
        };
        assert_eq!(Limits::read(&root), Limits::default());
        let limits = Limits { memory_bytes: Some(2 << 30), cpu_millis: Some(1500), cpus: Some(vec![0, 1, 2, 8]) };
        write(&[("memory/memory.limit_in_bytes", "2147483648\n"), ("cpuset/cpuset.cpus", "0-2,8\n")]);
        write(&[("cpu/cpu.cfs_quota_us", "150000\n"), ("cpu/cpu.cfs_period_us", "100000\n")]);
        assert_eq!(Limits::read(&root), limits);
        write(&[("cpu/cpu.cfs_quota_us", "-1\n")]);
        assert_eq!(Limits::read(&root), Limits { cpu_millis: None, ..limits });
        let limits = Limits { memory_bytes: Some(1 << 30), cpu_millis: Some(500), cpus: Some(vec![0, 1]) };
        write(&[("memory.max", "1073741824\n"), ("cpu.max", "50000 100000\n"), ("cpuset.cpus.effective", "0-1\n")]);
        assert_eq!(Limits::read(&root), limits);
        write(&[("memory.max", "max\n"), ("cpu.max", "max 100000\n")]);
        assert_eq!(Limits::read(&root), Limits { cpus: limits.cpus, ..Limits::default() });
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_node_has_what_its_container_may_use() {
        let online: Vec<u32> = (0..4).collect();
        for (cpu_millis, cpus, millis, less) in [
            (None, None, 4000, false),
            (Some(2000), None, 2000, true),
            (Some(3900), None, 3900, true),
            (Some(4000), None, 4000, false),
            (Some(8000), Some(vec![3]), 1000, false),
            (Some(1500), Some(vec![2, 3]), 1500, true),
            (Some(1500), Some(vec![2]), 1000, false),
            (None, Some(vec![1, 3]), 2000, false),
            (None, Some(vec![]), 4000, false),
            (Some(300), None, 300, true),
        ] {
            let limits = Limits { memory_bytes: None, cpu_millis, cpus };
            assert_eq!((limits.millis(&online), limits.have_less_time_than_cpus(&online)), (millis, less), "{limits:?}");
        }
        for (memory_bytes, kilobytes) in [(None, 4096), (Some(2048 * 1024), 2048), (Some(1 << 40), 4096)] {
            assert_eq!(Limits { memory_bytes, ..Limits::default() }.kilobytes(4096), kilobytes, "{memory_bytes:?}");
        }
        assert_eq!(total_kilobytes("MemTotal:       24680000 kB\nMemFree:        20000000 kB\n"), 24_680_000);
    }
}
