//! What a machine must have in common with the one that saved, or must be able to do, so that restoring is safe. CRIU
//! itself refuses much of the rest.

use std::collections::BTreeSet;
use std::fs;

use serde::{Deserialize, Serialize};

use crate::node::{self, CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE};

/// The features of an x86 CPU that saved programs may use, as /proc/cpuinfo and as Go name them: x86-64-v2, and AES as
/// every server has had it since 2010. A program looks at its CPU once, when it starts, and relies on it from then on,
/// so whatever else the bake's CPU can do is hidden from it (`Machine::go_debug`, `GLIBC_TUNABLES`), and an image can be
/// restored on others.
const FEATURES: [(&str, &str); 7] = [
    ("aes", "aes"),
    ("pclmulqdq", "pclmulqdq"),
    ("pni", "sse3"),
    ("popcnt", "popcnt"),
    ("sse4_1", "sse41"),
    ("sse4_2", "sse42"),
    ("ssse3", "ssse3"),
];

/// What hides other features from the GNU C library, which chooses its memory and string functions by them (its manual,
/// "Hardware Capability Tunables").
pub const GLIBC_TUNABLES: &str =
    "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX_Fast_Unaligned_Load,-BMI1,-BMI2,-ERMS,-FMA,-FMA4,-FSRM,-LZCNT,-MOVBE";

/// What CRIU cannot restore without. The programs themselves are saved with a container's few.
const NEEDED: [(u32, &str); 3] = [(CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_SYS_PTRACE, "CAP_SYS_PTRACE"), (CAP_SYS_ADMIN, "CAP_SYS_ADMIN")];

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Machine {
    pub architecture: String,
    /// For the log only: CRIU decides whether it can restore on another kernel.
    pub kernel: String,
    /// Those that programs that are saved here may use.
    pub features: BTreeSet<String>,
    /// The label of the security module (AppArmor, SELinux), empty if none confines the container.
    pub label: String,
    pub ipv6: bool,
    /// Whether the kernel has time namespaces. Without them CRIU restores with a clock that jumps, and says nothing.
    pub time_namespaces: bool,
    /// Whether this container's clocks differ from the kernel's, which CRIU does not take into account.
    #[serde(skip)]
    pub other_clocks: bool,
    #[serde(skip)]
    pub capabilities: u64,
}

impl Machine {
    /// Looks at the machine that we run on.
    pub fn here() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Machine {
            architecture: std::env::consts::ARCH.into(),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            features: features(&read("/proc/cpuinfo")),
            label: label(&read("/proc/self/attr/current")),
            ipv6: fs::exists("/proc/net/if_inet6").unwrap_or_default(),
            time_namespaces: fs::exists("/proc/self/ns/time").unwrap_or_default(),
            other_clocks: have_offsets(&read("/proc/self/timens_offsets")),
            capabilities: node::effective_capabilities(&read("/proc/self/status")),
        }
    }

    /// What hides this x86 CPU's other features from Go's runtime and from golang.org/x/sys/cpu, in `GODEBUG`.
    pub fn go_debug(&self) -> String {
        if self.architecture != "x86_64" {
            return String::new();
        }
        let kept = FEATURES.iter().filter(|(flag, _)| self.features.contains(*flag));
        kept.fold(",cpu.all=off".into(), |list, (_, name)| format!("{list},cpu.{name}=on"))
    }

    /// Why this machine cannot save or restore at all, if so.
    pub fn lacks(&self) -> Option<String> {
        if !self.time_namespaces {
            return Some("this kernel has no time namespaces (Linux 5.6, CONFIG_TIME_NS)".into());
        }
        if self.other_clocks {
            return Some("this container runs in a time namespace with clocks of its own".into());
        }
        let missing = NEEDED.iter().find(|(bit, _)| self.capabilities & (1 << bit) == 0);
        missing.map(|(_, name)| format!("this container lacks {name}"))
    }

    /// Why what was saved on `before` must not be restored here, if so.
    pub fn differs_from(&self, before: &Machine) -> Option<String> {
        if self.architecture != before.architecture {
            return Some(format!("this machine is {}, and the image was baked on {}", self.architecture, before.architecture));
        }
        let missing: Vec<&str> = before.features.difference(&self.features).map(String::as_str).collect();
        if !missing.is_empty() {
            return Some(format!("this CPU lacks {}, which the saved programs use", missing.join(", ")));
        }
        if self.label != before.label {
            return Some(format!("the security label is \"{}\" here and was \"{}\" in the bake", self.label, before.label));
        }
        if before.ipv6 && !self.ipv6 {
            return Some("this kernel has no IPv6, and that of the bake had it".into());
        }
        None
    }
}

/// The features in /proc/cpuinfo that count: some of the `flags` on x86, and all `Features` on ARM.
fn features(cpuinfo: &str) -> BTreeSet<String> {
    let list = |name: &str| cpuinfo.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    match (list("flags"), list("Features")) {
        (Some(flags), _) => {
            flags.split_whitespace().filter(|flag| FEATURES.iter().any(|(name, _)| name == flag)).map(str::to_string).collect()
        }
        (None, Some(features)) => features.split_whitespace().map(str::to_string).collect(),
        (None, None) => BTreeSet::new(),
    }
}

/// The label in /proc/PID/attr/current. AppArmor's name for no profile, which privileged containers have, is the same as
/// none to CRIU.
fn label(current: &str) -> String {
    let label = current.trim_matches(['\0', '\n']);
    if label == "unconfined" {
        String::new()
    } else {
        label.into()
    }
}

/// Whether a clock has an offset: `timens_offsets` has a name, seconds and nanoseconds for each (time_namespaces(7)).
fn have_offsets(clocks: &str) -> bool {
    clocks.lines().any(|line| line.split_whitespace().skip(1).any(|offset| offset != "0"))
}

/// A TCP socket of this network namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Socket {
    /// The local port.
    pub port: u16,
    pub inode: u64,
}

/// Every TCP socket of this thread's network namespace.
pub fn sockets() -> impl Iterator<Item = Socket> {
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    tables.map(|table| sockets_in(&table)).into_iter().flatten()
}

/// The sockets in /proc/net/tcp or tcp6 (proc_net_tcp(5)). One that only waits for late packets has the inode 0, and
/// keeps nobody from using its port.
fn sockets_in(table: &str) -> Vec<Socket> {
    let socket = |line: &str| {
        let mut fields = line.split_whitespace();
        let port = u16::from_str_radix(fields.nth(1)?.rsplit_once(':')?.1, 16).ok()?;
        Some(Socket { port, inode: fields.nth(7)?.parse().ok()? })
    };
    table.lines().skip(1).filter_map(socket).filter(|socket| socket.inode != 0).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn machine() -> Machine {
        Machine {
            architecture: "x86_64".into(),
            kernel: "6.18.0".into(),
            features: features("processor\t: 0\nflags\t\t: fpu sse4_2 avx2 popcnt\n"),
            label: label("unconfined\n"),
            ipv6: true,
            time_namespaces: true,
            other_clocks: have_offsets("monotonic           0         0\nboottime            0         0\n"),
            capabilities: u64::MAX,
        }
    }

    #[test]
    fn a_machine_that_cannot_restore_says_why() {
        assert_eq!(machine().lacks(), None);
        for (machine, why) in [
            (Machine { time_namespaces: false, ..machine() }, "time namespaces"),
            (
                Machine { other_clocks: have_offsets("monotonic           0         0\nboottime          -5         0\n"), ..machine() },
                "clocks",
            ),
            (Machine { capabilities: !(1 << 19), ..machine() }, "lacks CAP_SYS_PTRACE"),
        ] {
            assert!(machine.lacks().unwrap().contains(why), "{why}");
        }
    }

    #[test]
    fn a_lesser_machine_is_refused_and_a_greater_one_is_not() {
        let more = |flags: &str| Machine { features: features(&format!("flags : {flags}")), ..machine() };
        assert_eq!(machine().differs_from(&machine()), None);
        assert_eq!(more("sse4_2 popcnt avx512f").differs_from(&machine()), None);
        assert_eq!(Machine { kernel: "5.10.0".into(), ..machine() }.differs_from(&machine()), None);
        assert_eq!(machine().differs_from(&Machine { ipv6: false, ..machine() }), None);
        assert_eq!(Machine { label: label(""), ..machine() }.differs_from(&machine()), None);
        for (here, why) in [
            (more("sse4_2 avx2"), "this CPU lacks popcnt, which"),
            (more(""), "this CPU lacks popcnt, sse4_2, which"),
            (Machine { architecture: "aarch64".into(), ..machine() }, "this machine is aarch64"),
            (Machine { label: "docker-default (enforce)".into(), ..machine() }, "docker-default"),
            (Machine { ipv6: false, ..machine() }, "no IPv6"),
        ] {
            assert!(here.differs_from(&machine()).unwrap().contains(why), "{why}");
        }
    }

    #[test]
    fn only_what_programs_may_use_counts() {
        assert_eq!(machine().features, ["popcnt", "sse4_2"].map(String::from).into());
        assert_eq!(features("processor : 0\nFeatures\t: fp asimd aes\n"), ["fp", "asimd", "aes"].map(String::from).into());
    }

    #[test]
    fn what_programs_may_not_use_is_hidden_from_them() {
        assert_eq!(machine().go_debug(), ",cpu.all=off,cpu.popcnt=on,cpu.sse42=on");
        assert_eq!(Machine { architecture: "aarch64".into(), ..machine() }.go_debug(), "");
    }

    #[test]
    fn sockets_are_read_from_the_kernels_tables() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0947 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0100007F:B2F8 0100007F:094B 06 00000000:00000000 03:00001234 00000000     0        0 0 3 0\n";
        let tcp6 = "  sl  local_address remote_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode
   0: 00000000000000000000000000000000:20FB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n";
        let found = [sockets_in(tcp), sockets_in(tcp6)].concat();
        assert_eq!(found, [Socket { port: 2375, inode: 4711 }, Socket { port: 8443, inode: 4712 }]);
    }
}
