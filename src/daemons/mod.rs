//! The daemons: each one's command line, configuration and check whether it answers, and the images that
//! they share. `supervisor` keeps them running.

pub mod client_variables;
pub mod containerd;
pub mod containerd_config;
mod content;
pub mod cri;
pub mod docker_command;
pub mod docker_socket;
pub mod dockerd;
pub mod earlier_start;
mod grpc;
pub mod image_names;
pub mod image_records;
pub mod kube_proxy;
pub mod kubelet;
pub mod local_registry;
mod made_here;
pub mod port;
mod protobuf;
pub mod settings;
mod stale;
pub mod tls;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::http;
use crate::node::iptables::Iptables;

/// Adds the variables that all daemons share to a daemon's environment.
fn prepare(command: &mut Command, iptables: &Iptables) {
    iptables.put_on_path_of(command);
    // As in docker:dind: Docker and containerd then load no AppArmor profiles, which a container cannot.
    command.env("container", "docker");
}

/// Our own clients connect to this node's addresses; a proxy in the environment is only for pulls.
pub fn without_proxy(command: &mut Command) -> &mut Command {
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name);
    }
    command
}

pub fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Connects to a port on loopback.
fn connect(port: u16, limit: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), limit)?;
    stream.set_read_timeout(Some(limit))?;
    Ok(stream)
}

/// Whether `GET path` on a Unix socket is answered with 200.
fn socket_answers_ok(socket: &Path, path: &str, limit: Duration) -> bool {
    UnixStream::connect(socket).is_ok_and(|stream| stream.set_read_timeout(Some(limit)).is_ok() && answers_ok(stream, path))
}

/// Whether `GET path` on an open connection is answered with 200.
fn answers_ok(stream: impl Read + Write, path: &str) -> bool {
    http::get(stream, path).is_ok_and(|answer| http::status(&answer) == Some("200"))
}
