//! Detects a docker.sock that belongs to another engine: a runner that mounts its own into every container of a job
//! mounts it into the services too. That engine would answer every client in here, us included.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{connect, socket, AddressFamily, SockFlag, SockType, UnixAddr};

use crate::config::{Config, DOCKER_SOCKET};
use crate::daemons::client_variables::socket_of_environment;
use crate::error::{Error, Result};
use crate::node::mounts;

/// Refuses a socket that is mounted or in use before our dockerd runs. A socket left by a start that was killed is
/// neither, and dockerd replaces it.
pub fn refuse(config: &Config) -> Result<()> {
    let sockets = [Some(config.path(DOCKER_SOCKET)), socket_of_environment().map(PathBuf::from)];
    match sockets.into_iter().flatten().find(|path| is_mounted(path) || has_listener(path)) {
        None => Ok(()),
        Some(path) => Err(Error::new(format!(
            "{} belongs to another Docker daemon, mounted from outside: dockerd in here needs the path itself",
            path.display()
        ))
        .advise("Start this container without that volume (GitLab's runner: [runners.docker] volumes are for services too)")),
    }
}

fn is_mounted(path: &Path) -> bool {
    // /var/run is a symbolic link.
    fs::canonicalize(path).is_ok_and(mounts::is_mount_point)
}

/// Whether a process listens on the socket, which can be in a directory mounted from outside. Sends nothing.
fn has_listener(path: &Path) -> bool {
    let Ok(client) = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None) else {
        return false;
    };
    // EAGAIN: its queue of waiting connections is full.
    UnixAddr::new(path).is_ok_and(|address| matches!(connect(client.as_raw_fd(), &address), Ok(()) | Err(Errno::EAGAIN)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_a_socket_on_which_somebody_listens_is_alive() {
        let root = std::env::temp_dir().join(format!("kind-socket-{}", std::process::id()));
        let config = Config::from_env(|name| (name == "KIND_ROOT").then(|| root.display().to_string())).unwrap();
        let path = config.path(DOCKER_SOCKET);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        refuse(&config).unwrap();
        fs::write(&path, "no socket").unwrap();
        refuse(&config).unwrap();
        fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let message = refuse(&config).unwrap_err().to_string();
        assert!(message.contains("docker.sock belongs to another Docker daemon"), "{message}");
        drop(listener);
        assert!(path.exists());
        refuse(&config).unwrap();
        fs::remove_dir_all(root).unwrap();
    }
}
