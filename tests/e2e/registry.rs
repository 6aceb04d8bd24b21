//! Registries on this machine, from Debian's package docker-registry: a plain one on loopback, which any engine may
//! use, and one with the same images, a password and a self-signed certificate.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::engine::{docker, free_port, session, Container};
use crate::process::{run, run_with_input, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

pub struct Registry {
    process: Child,
    /// `address:port`, the prefix of its images' names.
    pub host: String,
}

impl Registry {
    /// A registry without TLS or a password.
    pub fn plain(storage: &Path) -> Registry {
        start(storage, Ipv4Addr::LOCALHOST.into(), "")
    }

    /// A registry with TLS and a password, on the engine's bridge, where containers reach it.
    pub fn private(storage: &Path, user: &str, password: &str) -> Registry {
        let neighbour = Container::idle(&[], &["sleep", "60"]);
        let gateway: IpAddr = neighbour.inspect("{{.NetworkSettings.Gateway}}").parse().expect("it is an address");
        let names = format!("subjectAltName=IP:{gateway}");
        let make = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=registry", "-addext", &names];
        let (key, certificate) = (session().dir.join("registry.key"), ca_certificate());
        run(Command::new("openssl").args(make).arg("-keyout").arg(&key).arg("-out").arg(&certificate), LIMIT).ok();
        // The registry supports only bcrypt (-B).
        let users = session().dir.join("registry.htpasswd");
        let line = run_with_input(Command::new("htpasswd").args(["-niB", user]), password, LIMIT).ok();
        std::fs::write(&users, line).expect("the session's directory can be written");
        let more = format!(
            "  tls: {{certificate: {}, key: {}}}\nauth: {{htpasswd: {{realm: kind, path: {}}}}}\n",
            certificate.display(),
            key.display(),
            users.display()
        );
        start(storage, gateway, &more)
    }

    /// Pushes an image of the engine under another name.
    pub fn push(&self, image: &str, name: &str) {
        let there = format!("{}/{name}", self.host);
        docker(&["tag", image, &there]).ok();
        docker(&["push", "--quiet", &there]).ok();
        docker(&["image", "rm", &there]).ok();
    }
}

/// The private registry's certificate, which is self-signed, so it is the CA's certificate too.
pub fn ca_certificate() -> PathBuf {
    session().dir.join("registry.crt")
}

fn start(storage: &Path, address: IpAddr, more: &str) -> Registry {
    let address = SocketAddr::from((address, free_port()));
    let configuration = session().dir.join(format!("registry-{}.yaml", address.port()));
    let text = format!("version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: {address}\n{more}", storage.display());
    std::fs::write(&configuration, text).expect("the session's directory can be written");
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&configuration).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let process = command.spawn().expect("docker-registry is installed: apt-get install docker-registry");
    wait_for("the registry listens", LIMIT, || TcpStream::connect(address).ok());
    Registry { process, host: address.to_string() }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
