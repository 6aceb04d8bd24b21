//! Docker's TCP port, which we open and pass to dockerd (sd_listen_fds(3)): with `-H tcp://`, dockerd would sleep
//! 1 s, and 15 s more unless `--tls=false` is explicit. Clients that connect before dockerd is up simply wait.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::Command;

use crate::config::{DOCKER_PORT, DOCKER_TLS_PORT, EXEC_WITH_SOCKET};
use crate::daemons::is_on_path;
use crate::daemons::settings::CommandLine;
use crate::daemons::tls::{self, Making};
use crate::error::{Error, Result};
use crate::{listen, sys};

pub enum Port {
    /// The user's own flags say where dockerd listens.
    None,
    Plain(TcpListener),
    Tls(TcpListener, tls::Files),
}

impl Port {
    /// Listens as docker:dind does: on 2376 if `DOCKER_TLS_CERTDIR` names a directory, on 2375 if it is empty,
    /// and not at all for an explicit `dockerd`.
    pub fn open(command_line: &CommandLine) -> Result<Port> {
        let directory = std::env::var(tls::DIRECTORY).unwrap_or_default();
        if command_line.explicit {
            return Ok(Port::None);
        }
        if directory.is_empty() {
            return Port::plain();
        }
        if !is_on_path("openssl") {
            // Never fall back to the plain port: a user who asks for TLS does not want it open.
            log::warn!(
                target: "dockerd",
                "{}={directory} asks for certificates, but this image has no openssl to create them: Docker listens only \
                 on its socket. Install openssl, or set {0}= for port {DOCKER_PORT} without TLS", tls::DIRECTORY
            );
            return Ok(Port::None);
        }
        Ok(Port::Tls(listen(DOCKER_TLS_PORT)?, tls::Files::new(directory)))
    }

    /// 2375, whatever the environment says.
    pub fn plain() -> Result<Port> {
        listen(DOCKER_PORT).map(Port::Plain)
    }

    /// Starts creating the certificates, if the port needs any.
    pub fn make_certificates(&self) -> Result<Option<Making>> {
        match self {
            Port::Tls(_, files) => files.make().map(Some),
            _ => Ok(None),
        }
    }

    /// The files of dockerd's TLS, if it uses TLS.
    pub fn tls(&self) -> Option<&tls::Files> {
        match self {
            Port::Tls(_, files) => Some(files),
            _ => None,
        }
    }

    fn listener(&self) -> Option<&TcpListener> {
        match self {
            Port::None => None,
            Port::Plain(listener) | Port::Tls(listener, _) => Some(listener),
        }
    }

    /// The dockerd command with these hosts, and with the port if we opened one.
    pub fn command(&self, hosts: &[String]) -> Command {
        let listener = self.listener();
        let mut command = Command::new(if listener.is_some() { "/proc/self/exe" } else { "dockerd" });
        if let Some(listener) = listener {
            command.args([EXEC_WITH_SOCKET, "dockerd"]);
            sys::pass_listening_socket(&mut command, listener.as_fd());
        }
        command.args(hosts.iter().flat_map(|host| ["-H", host]));
        command.args(listener.iter().flat_map(|_| ["-H", "fd://"]));
        command
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    listen::listen(listen::everywhere(port)).map_err(|cause| {
        Error::new(format!("cannot listen on port {port} for Docker: {cause}"))
            .advise("With --network=host, stop the other Docker or kind that uses it; otherwise use a network of the container's own")
    })
}
