//! dockerd, with the port 2375 opened by us and handed over: given `-H tcp://`, it sleeps 1 s, and
//! 15 s more unless `--tls=false` is explicit. Clients that come before it is up simply wait.

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{json, Map, Value};

use crate::config::{CONTAINERD_SOCKET, DOCKER_PORT, DOCKER_SOCKET, NAMESPACE, RUN_DIR};
use crate::daemons::{answers_ok, Spec};
use crate::error::{Error, Result};
use crate::node::{mounts, network::Network};
use crate::{reaper, sys, EXEC_WITH_SOCKET};

const USER_CONFIGURATION: &str = "/etc/docker/daemon.json";
/// docker:dind's own entrypoint: makes TLS certificates, chooses iptables, and execs dockerd.
const DIND_ENTRYPOINT: &str = "dockerd-entrypoint.sh";
/// Beside the socket.
const PID_FILE: &str = "docker.pid";
/// The first in which the image store of containerd is not called experimental.
const OLDEST_DOCKER: u32 = 25;
const PING_LIMIT: Duration = Duration::from_secs(2);

/// Refuses a Docker that cannot keep its images in a containerd of ours: from 24 it can at all, and from
/// 25 a container of it can be deleted without errors.
pub fn require_version() -> Result<()> {
    let advice = "DOCKER_IMAGE names where Docker comes from: take a tag of docker such as 29-dind";
    let said = reaper::run(Command::new("dockerd").arg("--version")).map_err(|error| error.advise(advice))?;
    match major_version(&said) {
        Some(major) if major >= OLDEST_DOCKER => Ok(()),
        _ => Err(Error::new(format!("this is {}; it takes Docker {OLDEST_DOCKER} or newer, whose images pods can run", said.trim()))
            .advise(advice)),
    }
}

/// Of a line such as `Docker version 28.5.1, build e180ab8`.
fn major_version(said: &str) -> Option<u32> {
    said.split_whitespace().nth(2)?.split('.').next()?.parse().ok()
}

/// dockerd beside a baked cluster: on our containerd, in the namespace of the pods.
pub fn spec_for_cluster(flags: Vec<String>, socket: PathBuf, network: Network) -> Result<Spec> {
    let listener = listen()?;
    let command = move || {
        let (configuration, hosts) = merge(&read_user_configuration()?, network)?;
        mounts::make_dir(RUN_DIR)?;
        let path = Path::new(RUN_DIR).join("daemon.json");
        fs::write(&path, configuration.to_string()).map_err(|cause| Error::io("write", &path, cause))?;
        let mut command = Command::new("/proc/self/exe");
        command.args([EXEC_WITH_SOCKET, "dockerd", "--config-file"]).arg(path);
        command.args(["--containerd", CONTAINERD_SOCKET, "--containerd-namespace", NAMESPACE]);
        command.args(["-H", &format!("unix://{DOCKER_SOCKET}"), "-H", "fd://"]);
        command.args(hosts.iter().flat_map(|host| ["-H", host])).args(&flags);
        // It would select the old image store, in which no baked image is.
        command.env_remove("DOCKER_DRIVER");
        sys::pass_listening_socket(&mut command, listener.as_fd());
        Ok(command)
    };
    Ok(Spec {
        name: "dockerd",
        command: Box::new(command),
        answers: Box::new(move || ping(&socket)),
        condition: |conditions| &mut conditions.docker,
    })
}

/// Docker alone, as the image that we were put into starts it.
pub fn spec_alone(flags: Vec<String>, socket: PathBuf) -> Result<Spec> {
    let answers = Box::new({
        let socket = socket.clone();
        move || ping(&socket)
    });
    let command: Box<dyn Fn() -> Result<Command> + Send> = if is_on_path(DIND_ENTRYPOINT) {
        Box::new(move || {
            let mut command = Command::new(DIND_ENTRYPOINT);
            command.arg("dockerd").args(&flags);
            if flags.first().is_none_or(|flag| flag.starts_with('-')) {
                // The entrypoint adds hosts and TLS only where the first word is no command.
                command = Command::new(DIND_ENTRYPOINT);
                command.args(&flags);
            }
            Ok(command)
        })
    } else {
        let listener = listen()?;
        Box::new(move || {
            // Left by a container that was killed; its pid may be another process by now.
            let _ = fs::remove_file(socket.with_file_name(PID_FILE));
            let mut command = Command::new("/proc/self/exe");
            command.args([EXEC_WITH_SOCKET, "dockerd", "-H", &format!("unix://{}", socket.display()), "-H", "fd://"]).args(&flags);
            sys::pass_listening_socket(&mut command, listener.as_fd());
            Ok(command)
        })
    };
    Ok(Spec { name: "dockerd", command, answers, condition: |conditions| &mut conditions.docker })
}

fn listen() -> Result<TcpListener> {
    TcpListener::bind(("0.0.0.0", DOCKER_PORT)).map_err(|cause| {
        Error::new(format!("cannot listen on port {DOCKER_PORT} for Docker: {cause}"))
            .advise("With --network=host, stop the other Docker or kind that uses it; otherwise use a network of the container's own")
    })
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn read_user_configuration() -> Result<String> {
    match fs::read_to_string(USER_CONFIGURATION) {
        Ok(text) => Ok(text),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok("{}".into()),
        Err(cause) => Err(Error::io("read", USER_CONFIGURATION, cause)),
    }
}

/// The user's daemon.json with what the cluster rests on, and its hosts: dockerd refuses a file and
/// flags that both name hosts.
fn merge(user: &str, network: Network) -> Result<(Value, Vec<String>)> {
    let mut settings: Map<String, Value> = serde_json::from_str(user)
        .map_err(|cause| Error::new(format!("{USER_CONFIGURATION} is not a JSON object: {cause}")).advise("Mend it or leave it out"))?;
    let hosts = settings.remove("hosts");
    let hosts = hosts.iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str).map(str::to_string).collect();
    if let Some(driver) = settings.remove("storage-driver") {
        log::warn!(target: "dockerd", "{USER_CONFIGURATION}: storage-driver {driver} is not used: baked images lie in containerd's store");
    }
    let features = settings.entry("features").or_insert_with(|| json!({}));
    if !features.is_object() {
        *features = json!({});
    }
    features["containerd-snapshotter"] = json!(true);
    settings.entry("mtu").or_insert(json!(network.mtu));
    if let Some(server) = network.dns {
        settings.entry("dns").or_insert(json!([server.to_string()]));
    }
    Ok((Value::Object(settings), hosts))
}

fn ping(socket: &Path) -> bool {
    let connect = || {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PING_LIMIT))?;
        std::io::Result::Ok(stream)
    };
    connect().is_ok_and(|stream| answers_ok(stream, "/_ping"))
}

/// The step between fork and dockerd: only here is the pid known that LISTEN_PID must name
/// (sd_listen_fds(3)). Returns only when exec fails.
pub fn exec_with_socket(argv: &[String]) -> Error {
    let Some((program, arguments)) = argv.split_first() else { return Error::new("nothing to exec") };
    let mut command = Command::new(program);
    let cause = command.args(arguments).env("LISTEN_PID", std::process::id().to_string()).env("LISTEN_FDS", "1").exec();
    Error::new(format!("cannot run {program}: {cause}")).with_status(reaper::code_of_failed_exec(&cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: Network = Network { mtu: 1400, dns: Some(std::net::Ipv4Addr::new(172, 99, 99, 1)) };

    #[test]
    fn the_users_settings_are_merged_and_not_overwritten() {
        let user = json!({"registry-mirrors": ["https://m"], "features": {"buildkit": true}, "mtu": 1300, "dns": ["10.0.0.2"]});
        let mut expected = user.clone();
        expected["features"]["containerd-snapshotter"] = json!(true);
        let mut file = user;
        file["hosts"] = json!(["tcp://1.2.3.4:1"]);
        assert_eq!(merge(&file.to_string(), NETWORK).unwrap(), (expected, vec!["tcp://1.2.3.4:1".to_string()]));
    }

    #[test]
    fn the_image_store_is_pinned_and_packets_fit() {
        let (merged, _) = merge(r#"{"storage-driver": "overlay2", "features": {"containerd-snapshotter": false}}"#, NETWORK).unwrap();
        let expected = json!({"features": {"containerd-snapshotter": true}, "mtu": 1400, "dns": ["172.99.99.1"]});
        assert_eq!(merged, expected);
    }

    #[test]
    fn a_broken_file_is_named() {
        for text in ["", "[]", "{"] {
            let message = merge(text, NETWORK).unwrap_err().to_string();
            assert!(message.contains("/etc/docker/daemon.json is not a JSON object"), "{message}");
        }
    }
}
