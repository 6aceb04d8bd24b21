//! The API server's port while it is being restored. kubelet and others may connect meanwhile: they are kept waiting
//! instead of refused, so that kubelet, whose own start takes as long as the restore, can start beside it.
//!
//! We listen on the port with SO_REUSEPORT, which CRIU sets on the sockets that it restores. When we close our socket,
//! the kernel moves the connections that it holds to the restored one (`tcp_migrate_req`, Linux 5.14,
//! Documentation/networking/ip-sysctl.rst). Nobody's connection may get a local port that a saved connection has,
//! because CRIU could not restore that one: such ports are reserved (`ip_local_reserved_ports`), and stay so, since a reset
//! restores the same state again.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use crate::config::{Config, API_PORT, SYSCTLS};
use crate::error::{Error, Result};
use crate::{files, listen};

const DIRECTORY: &str = "/proc/sys/net/ipv4";
const MIGRATE: &str = "tcp_migrate_req";
const RESERVED: &str = "ip_local_reserved_ports";
const MOST_TIME_WAIT: &str = "tcp_max_tw_buckets";

/// Listens until it is dropped. The fields are dropped in this order: the kernel still moves connections when it is closed.
pub struct HeldPort {
    _listener: TcpListener,
    _migrate: Sysctl,
}

impl HeldPort {
    /// # Errors
    /// This kernel or container cannot, and the error is the reason.
    pub fn listen(config: &Config, saved_ports: &BTreeSet<u16>) -> Result<HeldPort> {
        if !config.sysctls {
            return Err(Error::new(format!("{SYSCTLS}=0")));
        }
        let directory = Path::new(DIRECTORY);
        let reserved_ports = directory.join(RESERVED);
        let earlier = files::read(&reserved_ports)?;
        files::write(reserved_ports, reserved(earlier.trim(), saved_ports))?;
        let migrate = Sysctl::set(directory.join(MIGRATE), "1")?;
        let listener = listen::listen_beside(API_PORT).map_err(|cause| Error::new(format!("cannot listen on port {API_PORT}: {cause}")))?;
        Ok(HeldPort { _listener: listener, _migrate: migrate })
    }
}

/// Until this is dropped, a connection that ends leaves nothing behind (TIME-WAIT, RFC 9293, section 3.6.1), which CRIU
/// would meet when it restores the same connection again. `None` if the kernel's settings must not be changed.
pub fn without_time_wait(config: &Config) -> Option<Sysctl> {
    let set = || Sysctl::set(Path::new(DIRECTORY).join(MOST_TIME_WAIT), "0");
    config.sysctls.then(set)?.inspect_err(|error| log::debug!(target: "restore", "{error}")).ok()
}

/// A kernel setting that has its earlier value again when it is dropped.
pub struct Sysctl {
    path: PathBuf,
    earlier: String,
}

impl Sysctl {
    fn set(path: PathBuf, value: &str) -> Result<Sysctl> {
        let earlier = files::read(&path)?;
        files::write(&path, value)?;
        Ok(Sysctl { path, earlier })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        if let Err(cause) = fs::write(&self.path, &self.earlier) {
            log::warn!(target: "restore", "{} keeps the value that it had during the restore: {cause}", self.path.display());
        }
    }
}

/// The value of `ip_local_reserved_ports`: those that were reserved already, and ours.
fn reserved(earlier: &str, ports: &BTreeSet<u16>) -> String {
    let ports = ports.iter().map(u16::to_string);
    let all: Vec<String> = Some(earlier.to_string()).filter(|earlier| !earlier.is_empty()).into_iter().chain(ports).collect();
    all.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_were_reserved_stay_so() {
        let ports: BTreeSet<u16> = [40000, 2379].into();
        assert_eq!(reserved("", &ports), "2379,40000");
        assert_eq!(reserved("8080,9000-9010", &ports), "8080,9000-9010,2379,40000");
        assert_eq!(reserved("8080", &BTreeSet::new()), "8080");
    }

    #[test]
    fn a_setting_has_its_earlier_value_again() {
        let path = std::env::temp_dir().join(format!("kind-held-port-{}", std::process::id()));
        fs::write(&path, "0\n").unwrap();
        let sysctl = Sysctl::set(path.clone(), "1").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1");
        drop(sysctl);
        assert_eq!(fs::read_to_string(&path).unwrap(), "0\n");
        fs::remove_file(&path).unwrap();
        assert!(Sysctl::set(path, "1").is_err());
    }
}
