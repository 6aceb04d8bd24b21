//! A network namespace for a test's thread, and its interfaces and addresses.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;

use nix::ifaddrs::getifaddrs;
use nix::sched::{setns, unshare, CloneFlags};

/// A new network namespace with loopback up. The calling thread is in it until this is dropped, as are the processes
/// that it starts.
pub struct Network {
    before: File,
    own: File,
}

impl Network {
    pub fn enter_new() -> Network {
        let before = File::open("/proc/thread-self/ns/net").unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let own = File::open("/proc/thread-self/ns/net").unwrap();
        ip("link set lo up");
        Network { before, own }
    }

    /// Runs `body` in this namespace, and then returns to the one the thread was in.
    pub fn within<T>(&self, body: impl FnOnce() -> T) -> T {
        let here = File::open("/proc/thread-self/ns/net").unwrap();
        setns(&self.own, CloneFlags::CLONE_NEWNET).unwrap();
        let result = body();
        setns(here, CloneFlags::CLONE_NEWNET).unwrap();
        result
    }

    /// A name for `ip link set DEVICE netns NAME`.
    pub fn name(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.own.as_raw_fd())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = setns(&self.before, CloneFlags::CLONE_NEWNET);
    }
}

/// Runs `ip`. Panics if it fails.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Every IPv4 address in the thread's namespace, as `eth0 10.0.0.2/24`.
pub fn addresses() -> Vec<String> {
    let entry = |entry: nix::ifaddrs::InterfaceAddress| {
        let ip = entry.address?.as_sockaddr_in()?.ip();
        let mask: Ipv4Addr = entry.netmask?.as_sockaddr_in()?.ip();
        // An address with a label has the label instead of the interface's name: eth0:kind.
        let interface = entry.interface_name.split(':').next()?.to_string();
        Some(format!("{interface} {ip}/{}", u32::from(mask).count_ones()))
    };
    getifaddrs().unwrap().filter_map(entry).collect()
}
