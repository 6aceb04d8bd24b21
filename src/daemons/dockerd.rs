//! dockerd, with a baked cluster and alone. `port` opens its TCP port, `settings` reads its command line.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{json, Map, Value};

use crate::config::{Config, CONTAINERD_SOCKET, DOCKER_DIR, DOCKER_SOCKET, LOG_DIR, NAMESPACE, REGISTRY_MIRROR, RUN_DIR};
use crate::daemons::port::Port;
use crate::daemons::settings::{self, CommandLine, IMAGE_STORE, NETWORK_OPTIONS};
use crate::daemons::{client_variables, is_on_path, prepare, socket_answers_ok, stale, tls};
use crate::error::{Error, Result};
use crate::files;
use crate::node::network::{Network, ETHERNET_MTU};
use crate::node::{iptables, pull_hosts};
use crate::supervisor::daemon::Spec;
use crate::supervisor::reaper;

const USER_CONFIGURATION: &str = "/etc/docker/daemon.json";
/// The socket that we ping when the user's flags say where dockerd listens.
const PING_SOCKET: &str = "/run/kind/docker.sock";
pub const DOCKERD: &str = "dockerd";
/// The first version in which the containerd image store is not experimental.
const OLDEST_DOCKER: u32 = 25;
/// The oldest API version that dockerd accepts: a variable, from Docker 25 on, and its default up to 28.
const MIN_API_VERSION: &str = "DOCKER_MIN_API_VERSION";
const OLDEST_API: &str = "1.24";
const PING_LIMIT: Duration = Duration::from_secs(2);

/// Refuses a Docker that cannot keep its images in our containerd: 24 can, and from 25 its containers can be
/// deleted without errors.
pub fn require_version() -> Result<()> {
    let advice = "DOCKER_IMAGE names where Docker comes from: take a tag of docker such as 29-dind";
    let said = reaper::run(Command::new("dockerd").arg("--version")).map_err(|error| error.advise(advice))?;
    match major_version(&said) {
        Some(major) if major >= OLDEST_DOCKER => Ok(()),
        _ => Err(Error::new(format!("this is {}; Docker {OLDEST_DOCKER} or newer is required", said.trim())).advise(advice)),
    }
}

/// Parses a line such as `Docker version 28.5.1, build e180ab8`.
fn major_version(said: &str) -> Option<u32> {
    said.split_whitespace().nth(2)?.split('.').next()?.parse().ok()
}

/// dockerd with a baked cluster: on our containerd, in the pods' namespace.
pub fn spec_for_cluster(line: CommandLine, config: &Config, network: Network, port: Port) -> Result<Spec> {
    let (hosts, ping_socket) = sockets(&line, config)?;
    let (pid_file, files) = (stale::pid_file(config), port.tls().cloned());
    let (log, data_root) = (log_file(config), data_root(&line, config));
    let iptables = network.iptables.clone();
    let write_settings = Arc::new(move || write_settings(&line, &network, files.as_ref()));
    let again = write_settings.clone();
    let command = move || {
        let (path, flags, users_hosts) = write_settings()?;
        stale::remove(&pid_file);
        stale::set_networks_aside(&log, &data_root);
        let mut command = port.command(&[hosts.as_slice(), &users_hosts].concat());
        command.arg("--config-file").arg(path);
        command.args(["--containerd", CONTAINERD_SOCKET, "--containerd-namespace", NAMESPACE]).args(&flags);
        client_variables::remove_driver(&mut command);
        accept_old_clients(&mut command, &log);
        prepare(&mut command, &iptables);
        Ok(command)
    };
    // The user has changed the file that they are read from.
    let before_reload = move || again().map(drop);
    Ok(Spec { before_reload: Some(Box::new(before_reload)), ..spec(Box::new(command), ping_socket) })
}

/// Writes a daemon.json for dockerd. Returns its path, and the flags and the user's hosts that go with it.
fn write_settings(line: &CommandLine, network: &Network, files: Option<&tls::Files>) -> Result<(PathBuf, Vec<String>, Vec<String>)> {
    let (mut flags, file) = line.for_cluster();
    let file = file.as_deref().unwrap_or(USER_CONFIGURATION);
    let (mut configuration, users_hosts) = merge(file, &read_user_configuration(file)?, network)?;
    add_tls(&mut configuration, files);
    pull_hosts::trust(&settings::insecure_registries(&configuration, &flags))?;
    settings::without_duplicates(&mut configuration, &mut flags);
    files::make_dir(RUN_DIR)?;
    let path = Path::new(RUN_DIR).join("daemon.json");
    files::write(&path, Value::Object(configuration).to_string())?;
    Ok((path, flags, users_hosts))
}

/// Docker alone, as docker:dind's entrypoint starts it, but without the 16 s that dockerd then sleeps if there is no
/// TLS, and without the seconds that its keys take if there is.
pub fn spec_alone(line: CommandLine, config: &Config) -> Result<Spec> {
    stale::remove_all(config);
    if !is_on_path(DOCKERD) {
        return Err(Error::new("this image has neither a cluster nor dockerd: there is nothing to start")
            .advise("Bake an image with build.sh, or make `kind run` the entrypoint of an image of docker's, such as docker:29-dind")
            .with_status(reaper::NOT_FOUND));
    }
    let iptables = iptables::choose(config)?;
    let port = Port::open(&line)?;
    if let Some(certificates) = port.make_certificates()? {
        certificates.finish()?;
    }
    let (hosts, ping_socket) = sockets(&line, config)?;
    // Rely on dockerd's default instead of a flag, which dockerd refuses if daemon.json names hosts too.
    let hosts = if line.explicit && !line.names_hosts() { vec![] } else { hosts };
    let (pid_file, log, data_root) = (stale::pid_file(config), log_file(config), data_root(&line, config));
    let command = move || {
        stale::remove(&pid_file);
        stale::set_networks_aside(&log, &data_root);
        let mut command = port.command(&hosts);
        if let Some(files) = port.tls() {
            command.arg("--tlsverify");
            command.args(files.settings().iter().flat_map(|(name, path)| [format!("--{name}"), path.display().to_string()]));
        }
        command.args(&line.flags);
        accept_old_clients(&mut command, &log);
        prepare(&mut command, &iptables);
        Ok(command)
    };
    Ok(spec(Box::new(command), ping_socket))
}

/// Docker 29 refuses clients that older versions accepted, such as docker-java with its default. The user's value wins.
fn accept_old_clients(command: &mut Command, log: &Path) {
    // dockerd does not start if the version is older than it supports; its log then names the variable.
    let is_refused = fs::read_to_string(log).is_ok_and(|text| text.contains(MIN_API_VERSION));
    if std::env::var_os(MIN_API_VERSION).is_none() && !is_refused {
        command.env(MIN_API_VERSION, OLDEST_API);
    }
}

fn log_file(config: &Config) -> PathBuf {
    config.path(LOG_DIR).join(format!("{DOCKERD}.log"))
}

fn spec(command: Box<dyn Fn() -> Result<Command> + Send + Sync>, socket: PathBuf) -> Spec {
    Spec {
        name: DOCKERD,
        command,
        answers: Box::new(move || socket_answers_ok(&socket, "/_ping", PING_LIMIT)),
        before_reload: None,
        condition: |state| &mut state.docker,
        first_start: Mutex::default(),
    }
}

/// The sockets for dockerd to listen on, and the one that we ping. If the user's flags name the sockets, the usual
/// one may be missing, so we add one of our own.
fn sockets(line: &CommandLine, config: &Config) -> Result<(Vec<String>, PathBuf)> {
    let host = |path: &Path| format!("unix://{}", path.display());
    if line.explicit && line.names_hosts() {
        let own = config.path(PING_SOCKET);
        files::make_dir(own.parent().unwrap_or(Path::new("/")))?;
        return Ok((vec![host(&own)], own));
    }
    let usual = config.path(DOCKER_SOCKET);
    let mut hosts = vec![host(&usual)];
    if !line.explicit {
        let other = client_variables::socket_of_environment().map(|path| host(Path::new(&path)));
        hosts.extend(other.filter(|other| !hosts.contains(other)));
    }
    Ok((hosts, usual))
}

/// Where dockerd keeps its data when it runs alone: where its flags or its file say, or on the volume.
pub fn data_root(line: &CommandLine, config: &Config) -> PathBuf {
    let of_file = || user_setting(line, "data-root")?.as_str().map(str::to_string);
    line.values_of("--data-root").pop().or_else(of_file).map_or_else(|| config.path(DOCKER_DIR), PathBuf::from)
}

/// Adds the flag for a mirror of Docker Hub, unless the user's file names mirrors: dockerd refuses to start if both do.
pub fn with_mirror(line: CommandLine, mirror: Option<&str>) -> CommandLine {
    let Some(mirror) = mirror else { return line };
    if user_setting(&line, "registry-mirrors").is_some() {
        log::warn!(target: "registry", "daemon.json names registry-mirrors: Docker uses those, and {REGISTRY_MIRROR} is for pods alone");
        return line;
    }
    line.after(vec![format!("--registry-mirror={mirror}")])
}

/// A setting of the user's daemon.json. If the file is invalid, dockerd itself says why.
fn user_setting(line: &CommandLine, key: &str) -> Option<Value> {
    let file = line.values_of("--config-file").pop().unwrap_or_else(|| USER_CONFIGURATION.into());
    let settings: Value = serde_json::from_str(&read_user_configuration(&file).ok()?).ok()?;
    settings.get(key).cloned()
}

fn read_user_configuration(file: &str) -> Result<String> {
    if file == USER_CONFIGURATION {
        return Ok(files::read_if_there(file)?.unwrap_or_else(|| "{}".into()));
    }
    files::read(file)
}

/// Merges the user's daemon.json with what the cluster needs. Returns its hosts separately, because dockerd refuses to
/// start if both a file and flags name hosts.
fn merge(file: &str, user: &str, network: &Network) -> Result<(Map<String, Value>, Vec<String>)> {
    let mut settings: Map<String, Value> = serde_json::from_str(user)
        .map_err(|cause| Error::new(format!("{file} is not a JSON object: {cause}")).advise("Fix it or remove it"))?;
    let hosts = settings.remove("hosts");
    let hosts = hosts.iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str).map(str::to_string).collect();
    for key in ["storage-driver", "containerd", "containerd-namespace"] {
        if let Some(value) = settings.remove(key) {
            log::warn!(target: "dockerd", "{file}: {key} {value} is not used: baked images lie in the cluster's containerd");
        }
    }
    let features = settings.entry("features").or_insert_with(|| json!({}));
    if !features.is_object() {
        *features = json!({});
    }
    features[IMAGE_STORE] = json!(true);
    settings.entry("mtu").or_insert(json!(network.mtu));
    add_mtu_of_networks(&mut settings, network.mtu);
    if let Some(server) = network.dns {
        settings.entry("dns").or_insert(json!([server.to_string()]));
    }
    Ok((settings, hosts))
}

/// `mtu` applies only to Docker's default bridge; the bridges of `docker network create` get this option. With the
/// usual packet size neither is needed.
fn add_mtu_of_networks(settings: &mut Map<String, Value>, mtu: u32) {
    const OPTION: &str = "com.docker.network.driver.mtu";
    if mtu == ETHERNET_MTU {
        return;
    }
    let options = settings.entry(NETWORK_OPTIONS).or_insert_with(|| json!({}));
    // If it is not an object, dockerd refuses it.
    if let Some(bridge) = options.as_object_mut().and_then(|options| options.entry("bridge").or_insert_with(|| json!({})).as_object_mut()) {
        bridge.entry(OPTION).or_insert(json!(mtu.to_string()));
    }
}

/// Adds the certificates for our port, unless the user's file has TLS settings of its own.
fn add_tls(settings: &mut Map<String, Value>, files: Option<&tls::Files>) {
    let Some(files) = files else { return };
    if ["tls", "tlsverify", "tlscacert", "tlscert", "tlskey"].iter().any(|key| settings.contains_key(*key)) {
        return log::info!(target: "dockerd", "using the TLS settings of daemon.json");
    }
    settings.insert("tlsverify".into(), json!(true));
    settings.extend(files.settings().map(|(key, path)| (key.to_string(), json!(path))));
}

/// Runs between fork and dockerd, because only here do we know the pid that LISTEN_PID must name
/// (sd_listen_fds(3)). Returns only if exec fails.
pub fn exec_with_socket(argv: &[String]) -> Error {
    let Some((program, arguments)) = argv.split_first() else { return Error::new("nothing to exec") };
    let mut command = Command::new(program);
    let cause = command.args(arguments).env("LISTEN_PID", std::process::id().to_string()).env("LISTEN_FDS", "1").exec();
    Error::new(format!("cannot run {program}: {cause}")).with_status(reaper::code_of_failed_exec(&cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network { mtu: 1400, dns: Some(std::net::Ipv4Addr::new(172, 99, 99, 1)), iptables: Default::default() }
    }

    #[test]
    fn the_users_settings_are_merged_and_not_overwritten() {
        let user = json!({"registry-mirrors": ["https://m"], "features": {"buildkit": true}, "mtu": 1300, "dns": ["10.0.0.2"]});
        let mut expected = user.clone();
        expected["features"]["containerd-snapshotter"] = json!(true);
        expected["default-network-opts"] = json!({"bridge": {"com.docker.network.driver.mtu": "1400"}});
        let mut file = user;
        file["hosts"] = json!(["tcp://1.2.3.4:1"]);
        assert_eq!(
            merge("f", &file.to_string(), &network()).unwrap(),
            (expected.as_object().unwrap().clone(), vec!["tcp://1.2.3.4:1".to_string()])
        );
    }

    #[test]
    fn the_image_store_is_pinned_and_packets_fit() {
        let user = r#"{"storage-driver": "overlay2", "containerd": "/x", "features": {"containerd-snapshotter": false}}"#;
        let (merged, _) = merge("f", user, &network()).unwrap();
        let options = json!({"bridge": {"com.docker.network.driver.mtu": "1400"}});
        let expected =
            json!({"features": {"containerd-snapshotter": true}, "mtu": 1400, "dns": ["172.99.99.1"], "default-network-opts": options});
        assert_eq!(Value::Object(merged), expected);
    }

    #[test]
    fn networks_are_given_the_containers_mtu_beside_the_users_options() {
        let merged = |user: &str, mtu| {
            let mut settings = serde_json::from_str(user).unwrap();
            add_mtu_of_networks(&mut settings, mtu);
            Value::Object(settings)
        };
        let options = |user: &str| merged(user, 1400)["default-network-opts"].clone();
        let users = r#"{"default-network-opts": {"bridge": {"com.docker.network.bridge.name": "b"}, "overlay": {"a": "b"}}}"#;
        assert_eq!(
            options(users),
            json!({"bridge": {"com.docker.network.bridge.name": "b", "com.docker.network.driver.mtu": "1400"}, "overlay": {"a": "b"}})
        );
        let users = r#"{"default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1300"}}}"#;
        assert_eq!(options(users), json!({"bridge": {"com.docker.network.driver.mtu": "1300"}}));
        assert_eq!(options(r#"{"default-network-opts": 1}"#), json!(1));
        assert_eq!(merged("{}", 1500), json!({}));
    }

    #[test]
    fn our_certificates_are_used_unless_the_users_file_has_its_own() {
        let files = tls::Files::new("/certs");
        let mut settings = Map::new();
        add_tls(&mut settings, None);
        assert!(settings.is_empty());
        add_tls(&mut settings, Some(&files));
        let expected = json!({"tlsverify": true, "tlscacert": "/certs/server/ca.pem", "tlscert": "/certs/server/cert.pem", "tlskey": "/certs/server/key.pem"});
        assert_eq!(Value::Object(settings), expected);
        let users = json!({"tls": false}).as_object().unwrap().clone();
        let mut settings = users.clone();
        add_tls(&mut settings, Some(&files));
        assert_eq!(settings, users);
    }

    #[test]
    fn the_data_lies_on_the_volume_unless_a_flag_or_the_file_says_otherwise() {
        let config = Config::from_env(|name| (name == "KIND_ROOT").then(|| "/r".to_string())).unwrap();
        let file = std::env::temp_dir().join(format!("kind-dockerd-{}.json", std::process::id()));
        fs::write(&file, r#"{"data-root": "/of-file"}"#).unwrap();
        let of_file = format!("--config-file={}", file.display());
        for (flags, root) in [
            (vec!["--debug"], "/r/var/lib/docker"),
            (vec!["--config-file", "/missing"], "/r/var/lib/docker"),
            (vec![of_file.as_str()], "/of-file"),
            (vec!["--data-root", "/a", &of_file, "--data-root=/b"], "/b"),
        ] {
            let line = CommandLine { flags: flags.iter().map(|flag| flag.to_string()).collect(), explicit: false };
            assert_eq!(data_root(&line, &config), Path::new(root), "{flags:?}");
        }
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_mirror_is_added_unless_the_users_file_names_some() {
        let file = std::env::temp_dir().join(format!("kind-mirrors-{}.json", std::process::id()));
        fs::write(&file, r#"{"registry-mirrors": []}"#).unwrap();
        let of_file = format!("--config-file={}", file.display());
        for (flags, mirror, expected) in [
            (vec!["--debug"], None, vec!["--debug"]),
            // The user's own flags come last, and win.
            (vec!["--config-file", "/missing"], Some("https://m"), vec!["--registry-mirror=https://m", "--config-file", "/missing"]),
            (vec![of_file.as_str()], Some("https://m"), vec![of_file.as_str()]),
        ] {
            let line = CommandLine { flags: flags.iter().map(|flag| flag.to_string()).collect(), explicit: false };
            assert_eq!(with_mirror(line, mirror).flags, expected, "{flags:?}");
        }
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_broken_file_is_named() {
        for text in ["", "[]", "{"] {
            let message = merge(USER_CONFIGURATION, text, &network()).unwrap_err().to_string();
            assert!(message.contains("/etc/docker/daemon.json is not a JSON object"), "{message}");
        }
    }
}
