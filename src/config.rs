//! Every path, port, time limit and environment variable, with its default and its source.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use crate::error::{Error, Result};
use crate::{files, listen, subnet};

// Paths in the image, written by the bake.
pub const CLUSTER_FILE: &str = "/kind/cluster.json";
pub const STORE_DIR: &str = "/kind/store";
pub const SBOM_FILE: &str = "/kind/sbom.cdx.json";
pub const CREDENTIALS_DIR: &str = "/kind/credentials";
/// What restores the saved control plane.
pub const CRIU_DIR: &str = "/kind/criu";
/// What `kind save` saves, each time in a directory of its own, and the link to the one that counts (`node::state_dir`).
pub const SAVED_STATES: &str = "/kind/saved";
pub const CURRENT_STATE: &str = "/kind/saved/current";

// The user's paths, processed before kubernetes-ready is served: images once Docker answers, the rest once the
// cluster is up.
pub const IMAGES_DIR: &str = "/kind/images";
pub const MANIFESTS_DIR: &str = "/kind/manifests";
pub const READY_SCRIPT: &str = "/kubernetes-ready.sh";
pub const READY_SCRIPTS_DIR: &str = "/kubernetes-ready.d";

// Paths of the running node.
pub const STATE_DIR: &str = "/var/kind";
pub const LOG_DIR: &str = "/var/log/kind";
pub const RUN_DIR: &str = "/run/kind";
/// Where containerd, which pulls for pods, looks for what registries need (`node::pull_hosts`).
pub const CRI_CERTS_DIR: &str = "/run/kind/certs.d";
/// Where kubelet reads the pods' name servers.
pub const RESOLV_CONF: &str = "/run/kind/resolv.conf";
/// The logs of the restored control plane, and the socket of its owner.
pub const RESTORED_DIR: &str = "/run/kind/restored";
/// dockerd's data root; a volume, as in docker:dind.
pub const DOCKER_DIR: &str = "/var/lib/docker";
/// Our part of that volume: containerd's root and the directories that are written to often.
pub const VOLUME_DIR: &str = "/var/lib/docker/kind";
pub const CONTAINERD_ROOT: &str = "/var/lib/docker/kind/containerd";
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
pub const DOCKER_SOCKET: &str = "/var/run/docker.sock";
pub const KUBELET_DIR: &str = "/var/lib/kubelet";
pub const ETCD_DIR: &str = "/var/lib/etcd";
/// Where kube-controller-manager's host-path provisioner creates volumes (hard-coded in its source).
pub const HOSTPATH_DIR: &str = "/tmp/hostpath_pv";
pub const POD_LOG_DIR: &str = "/var/log/pods";
pub const KUBERNETES_DIR: &str = "/etc/kubernetes";
/// Where kubeadm puts the control plane's keys and certificates.
pub const PKI_DIR: &str = "/etc/kubernetes/pki";
/// Where kubelet finds the control plane's static pods.
pub const STATIC_POD_DIR: &str = "/etc/kubernetes/manifests";
pub const ADMIN_KUBECONFIG: &str = "/etc/kubernetes/admin.conf";
pub const CNI_BIN_DIR: &str = "/opt/cni/bin";
pub const CNI_CONF_DIR: &str = "/etc/cni/net.d";

// Names and addresses that the bake and the run must agree on.
pub const DEFAULT_STATIC_IP: Ipv4Addr = Ipv4Addr::new(172, 99, 99, 1);
pub const NODE_NAME: &str = "kind";
/// The CRI plugin's containerd namespace, which dockerd shares so that pods can run what it builds.
pub const NAMESPACE: &str = "k8s.io";
/// kubeadm's default subnet for Services, and ours for pods. A bake may choose others (`node::cluster_network`).
pub const SERVICE_SUBNET: &str = "10.96.0.0/12";
pub const POD_SUBNET: &str = "10.244.0.0/16";
/// Alternatives to the default for when the container itself is in one of these subnets, for example as a pod of a cluster
/// that uses the same default.
pub const POD_SUBNETS: [&str; 4] = [POD_SUBNET, "10.245.0.0/16", "10.246.0.0/16", "10.247.0.0/16"];

// Our hidden subcommands, which run between a daemon's fork and exec.
/// Passes a listening socket to dockerd.
pub const EXEC_WITH_SOCKET: &str = "exec-with-socket";

/// The path of this program, in the image and in containers that run it.
pub const INIT: &str = "/usr/local/bin/kind";
/// What kube-router's pod runs first.
pub const AWAIT_KUBE_PROXY: &str = "await-kube-proxy";

// More of them, for the restored control plane.
/// The command of its containers.
pub const STAND_IN: &str = "stand-in";
/// The process above its programs.
pub const PARENT: &str = "restored-parent";

// Ports.
pub const API_PORT: u16 = 8443;
pub const DOCKER_PORT: u16 = 2375;
pub const DOCKER_TLS_PORT: u16 = 2376;
pub const FILES_PORT: u16 = 10080;
/// The same files, for browsers and Node, which refuse to connect to 10080 (`node::browser`).
const BROWSER_PORT: u16 = 10081;
/// kubelet's own API (its default).
pub const KUBELET_PORT: u16 = 10250;
/// kubelet's own health endpoint, on loopback (its default).
pub const KUBELET_HEALTH_PORT: u16 = 10248;

/// The node's own registry, on loopback: the first of these that is free.
pub const LOCAL_REGISTRY_PORTS: RangeInclusive<u16> = 10082..=10090;

// Time limits.
/// How often we look for a socket or file that is about to appear.
pub const POLL: Duration = Duration::from_millis(20);
/// The same, until processes have ended that were killed.
pub const KILL_POLL: Duration = Duration::from_millis(5);
/// A daemon that has not answered after this long hangs. A cold disk takes several seconds, a starved
/// machine (a VM under emulation) more than a minute. This is half of the cluster's limit.
pub const DAEMON_LIMIT: Duration = Duration::from_secs(150);
/// The API server comes up in seconds; on a starved machine it may take minutes.
pub const CLUSTER_LIMIT: Duration = Duration::from_secs(300);
/// The user's manifests and scripts may pull images and wait for things.
pub const EXTENSIONS_LIMIT: Duration = Duration::from_secs(600);
/// One request to the API server or to DNS.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Docker kills a container 10 s after `docker stop`, so the stages of our stop add up to less.
pub const STOP_KUBELET: Duration = Duration::from_secs(2);
/// How long Docker's containers have between SIGTERM and SIGKILL.
pub const STOP_CONTAINERS: Duration = Duration::from_secs(2);
pub const STOP_DOCKERD: Duration = Duration::from_secs(2);
pub const STOP_CONTAINERD: Duration = Duration::from_secs(2);

// Environment variables for a start. A runner passes a job's variables to its services, so the names begin with
// KIND_. There, an invalid value is an error; under an older name it is only a warning.
pub const LISTEN: &str = "KIND_LISTEN";
pub const LOG: &str = "KIND_LOG";
pub const READY_TIMEOUT: &str = "KIND_READY_TIMEOUT";
pub const PUBLISHED_API_PORT: &str = "KIND_API_PORT";
pub const KUBELET_ARGS: &str = "KIND_KUBELET_ARGS";
pub const DOCKERD_ARGS: &str = "KIND_DOCKERD_ARGS";
pub const ENFORCE_CAPACITY: &str = "KIND_ENFORCE_CAPACITY";
pub const SYSCTLS: &str = "KIND_SYSCTLS";
pub const LOAD_BALANCER: &str = "KIND_LOAD_BALANCER";
pub const RESTORE: &str = "KIND_RESTORE";
pub const REGISTRY: &str = "KIND_REGISTRY";
pub const REGISTRY_USER: &str = "KIND_REGISTRY_USER";
pub const REGISTRY_PASSWORD: &str = "KIND_REGISTRY_PASSWORD";
pub const REGISTRY_PASSWORD_FILE: &str = "KIND_REGISTRY_PASSWORD_FILE";
pub const REGISTRY_CA: &str = "KIND_REGISTRY_CA";
pub const REGISTRY_MIRROR: &str = "KIND_REGISTRY_MIRROR";
const SETTINGS: [&str; 16] = [
    LISTEN,
    LOG,
    READY_TIMEOUT,
    PUBLISHED_API_PORT,
    KUBELET_ARGS,
    DOCKERD_ARGS,
    ENFORCE_CAPACITY,
    SYSCTLS,
    LOAD_BALANCER,
    RESTORE,
    REGISTRY,
    REGISTRY_USER,
    REGISTRY_PASSWORD,
    REGISTRY_PASSWORD_FILE,
    REGISTRY_CA,
    REGISTRY_MIRROR,
];
/// The name that the first kind used.
const STATIC_IP: &str = "STATIC_IP";
/// Added to the older names.
const PREFIX: &str = "KIND_";
/// Removed from the environment once they have been read.
pub const SECRETS: [&str; 2] = [REGISTRY_PASSWORD, "REGISTRY_PASSWORD"];

/// A setting's older name, such as `REGISTRY`.
pub fn older_name(setting: &str) -> &str {
    setting.strip_prefix(PREFIX).unwrap_or(setting)
}

/// The environment as settings are read from it. A variable counts as unset if it is empty, or if a Docker link or
/// a Kubernetes Service set it, whose names may begin with KIND_ too (`KIND_API_PORT=tcp://…`).
pub fn settings(get: impl Fn(&str) -> Option<String>) -> impl Fn(&str) -> Option<String> {
    move |name| get(name).filter(|value| !value.is_empty() && !is_of_link(name, value))
}

fn is_of_link(name: &str, value: &str) -> bool {
    name.starts_with(PREFIX) && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

/// The log level.
pub fn log_level(get: impl Fn(&str) -> Option<String>) -> Result<LevelFilter> {
    let parse = |text: String| text.parse().map_err(|_| invalid(LOG, &text, "use error, warn, info or debug"));
    settings(get)(LOG).map_or(Ok(LevelFilter::Info), parse)
}

/// The settings of a start, from the environment.
#[derive(Clone, Debug)]
pub struct Config {
    /// Prefix of the state directory and Docker's socket, so that tests do not need root's paths.
    root: PathBuf,
    /// Where the file server listens (`KIND_LISTEN`); at least one.
    pub files_addresses: Vec<FilesAddress>,
    /// How long the cluster may take to become ready before the boot counts as failed (`KIND_READY_TIMEOUT`).
    pub ready_timeout: Duration,
    /// `STATIC_IP`, if set.
    pub static_ip: Option<Ipv4Addr>,
    /// The port in `/config` (`KIND_API_PORT`), for when 8443 is published as another one.
    pub api_port: u16,
    /// Added to the daemons' command lines (`KIND_KUBELET_ARGS`, `KIND_DOCKERD_ARGS`).
    pub kubelet_arguments: Vec<String>,
    pub dockerd_arguments: Vec<String>,
    /// Whether the node is as large as its container instead of the machine (`KIND_ENFORCE_CAPACITY`).
    pub enforce_capacity: bool,
    /// Whether kernel settings of the machine may be changed (`KIND_SYSCTLS`).
    pub sysctls: bool,
    /// Whether LoadBalancer Services get addresses from here (`KIND_LOAD_BALANCER`).
    pub load_balancer: bool,
    /// Whether a saved control plane is restored (`KIND_RESTORE`), if that was said.
    pub restore: Option<bool>,
    /// For the log: settings that have no effect.
    pub warnings: Vec<String>,
}

/// Where the file server listens.
#[derive(Clone, Debug)]
pub struct FilesAddress {
    pub address: SocketAddr,
    /// Whether the start fails if it cannot.
    pub is_needed: bool,
}

impl FilesAddress {
    /// Whether browsers connect to it (`node::browser`).
    pub fn is_for_browsers(&self) -> bool {
        self.address.port() != FILES_PORT
    }
}

impl Config {
    /// Where the file server listens first of all.
    pub fn files_address(&self) -> SocketAddr {
        self.files_addresses[0].address
    }

    /// Reads the environment.
    ///
    /// # Errors
    /// A variable has an invalid value; the message names the variable.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Config> {
        let of_links = SETTINGS.iter().filter(|name| get(name).is_some_and(|value| is_of_link(name, &value)));
        let ignored = |name| format!("{name} comes from a Docker link or a Kubernetes Service of that name, and is ignored");
        let mut warnings: Vec<String> = of_links.map(ignored).collect();
        log_level(&get)?;
        let get = settings(get);
        let enforce_capacity = match (get(ENFORCE_CAPACITY), get(older_name(ENFORCE_CAPACITY))) {
            (Some(text), _) => parse_switch(ENFORCE_CAPACITY, &text)?,
            (None, Some(text)) => parse_switch(older_name(ENFORCE_CAPACITY), &text).unwrap_or_else(|error| {
                warnings.push(format!("{error}. It is ignored"));
                false
            }),
            (None, None) => false,
        };
        Ok(Config {
            root: get("KIND_ROOT").unwrap_or_else(|| "/".into()).into(),
            files_addresses: get(LISTEN).map_or_else(|| Ok(default_listen()), |text| parse_listen(&text))?,
            ready_timeout: get(READY_TIMEOUT).map_or(Ok(CLUSTER_LIMIT), |text| parse_ready_timeout(&text))?,
            static_ip: get(STATIC_IP).map(|text| parse_static_ip(&text)).transpose()?,
            api_port: get(PUBLISHED_API_PORT).map_or(Ok(API_PORT), |text| parse_api_port(&text))?,
            kubelet_arguments: words(get(KUBELET_ARGS)),
            dockerd_arguments: words(get(DOCKERD_ARGS)),
            enforce_capacity,
            sysctls: get(SYSCTLS).map_or(Ok(true), |text| parse_switch(SYSCTLS, &text))?,
            load_balancer: get(LOAD_BALANCER).map_or(Ok(true), |text| parse_switch(LOAD_BALANCER, &text))?,
            restore: get(RESTORE).map(|text| parse_switch(RESTORE, &text)).transpose()?,
            warnings,
        })
    }

    /// A path below the root, which tests set.
    pub fn path(&self, path: &str) -> PathBuf {
        files::below(&self.root, path)
    }
}

fn default_listen() -> Vec<FilesAddress> {
    let everywhere = |port, is_needed| FilesAddress { address: listen::everywhere(port), is_needed };
    vec![everywhere(FILES_PORT, true), everywhere(BROWSER_PORT, false)]
}

/// `ADDRESS:PORT`, or an address alone; or several of them, separated by commas.
fn parse_listen(text: &str) -> Result<Vec<FilesAddress>> {
    let parse = |text: &str| text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, FILES_PORT)));
    let addresses = text.split(',').map(|one| parse(one.trim()).map(|address| FilesAddress { address, is_needed: true }));
    let addresses = addresses.collect::<Option<Vec<_>>>();
    addresses.ok_or_else(|| invalid(LISTEN, text, "use ADDRESS or ADDRESS:PORT, such as 127.0.0.1:10080, or several with commas between"))
}

fn parse_ready_timeout(text: &str) -> Result<Duration> {
    let seconds = text.parse().ok().filter(|seconds| *seconds != 0).map(Duration::from_secs);
    seconds.ok_or_else(|| invalid(READY_TIMEOUT, text, "use a whole number of seconds greater than 0"))
}

fn parse_api_port(text: &str) -> Result<u16> {
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| invalid(PUBLISHED_API_PORT, text, "use the port that 8443 is published as, such as 18443 for -p 18443:8443"))
}

fn parse_switch(name: &str, text: &str) -> Result<bool> {
    match text.trim().to_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(invalid(name, text, "use 1 or 0")),
    }
}

fn invalid(name: &str, value: &str, advice: &str) -> Error {
    Error::new(format!("invalid {name}={value}: {advice}"))
}

/// Arguments separated by spaces: no flag of the daemons needs a space in its value.
fn words(text: Option<String>) -> Vec<String> {
    text.unwrap_or_default().split_whitespace().map(str::to_string).collect()
}

fn parse_static_ip(text: &str) -> Result<Ipv4Addr> {
    let bad = |why: &str| {
        Error::new(format!("{STATIC_IP}={text} {why}"))
            .advise(format!("Use an unused IPv4 address, such as the default {DEFAULT_STATIC_IP}"))
    };
    let ip: Ipv4Addr = text.parse().map_err(|_| bad("is not an IPv4 address"))?;
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.is_link_local() {
        return Err(bad("cannot be a node's address"));
    }
    for subnet in [SERVICE_SUBNET, POD_SUBNET] {
        if subnet::overlap(subnet, ip, u32::MAX) {
            return Err(bad(&format!("is in {subnet}, which the cluster uses itself")));
        }
    }
    Ok(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, value: &str) -> Result<Config> {
        Config::from_env(|asked| (asked == name).then(|| value.to_string()))
    }

    #[test]
    fn the_defaults_apply_when_nothing_is_set_or_a_variable_is_empty() {
        let config = config("STATIC_IP", "").unwrap();
        assert_eq!(config.static_ip, None);
        let listens: Vec<_> = config.files_addresses.iter().map(|files| (files.address.to_string(), files.is_needed)).collect();
        assert_eq!(listens, [("[::]:10080".to_string(), true), ("[::]:10081".to_string(), false)]);
        assert_eq!(config.path("/var/kind"), PathBuf::from("/var/kind"));
    }

    #[test]
    fn a_static_ip_that_cannot_serve_is_refused_by_name() {
        let cases =
            ["nonsense", "300.1.1.1", "127.0.0.1", "0.0.0.0", "224.0.0.1", "169.254.1.1", "10.96.0.1", "10.111.255.1", "10.244.3.4", "::1"];
        for text in cases {
            let message = config("STATIC_IP", text).unwrap_err().to_string();
            assert!(message.contains(&format!("STATIC_IP={text}")), "{message}");
        }
        for text in ["172.99.99.1", "10.95.255.255", "10.112.0.1", "192.168.1.1"] {
            assert_eq!(config("STATIC_IP", text).unwrap().static_ip, Some(text.parse().unwrap()));
        }
    }

    #[test]
    fn the_file_server_listens_on_the_given_address() {
        for (text, addresses) in [
            ("127.0.0.1", &["127.0.0.1:10080"][..]),
            ("0.0.0.0:80", &["0.0.0.0:80"]),
            ("[::]:10080", &["[::]:10080"]),
            ("127.0.0.1:10080, 10.0.0.1:80,::1", &["127.0.0.1:10080", "10.0.0.1:80", "[::1]:10080"]),
        ] {
            let listens = config("KIND_LISTEN", text).unwrap().files_addresses;
            assert!(listens.iter().all(|files| files.is_needed), "{text}");
            assert_eq!(listens.iter().map(|files| files.address.to_string()).collect::<Vec<_>>(), addresses);
        }
        for text in ["eth0", ",", "127.0.0.1:10080,", "127.0.0.1:99999"] {
            assert!(config("KIND_LISTEN", text).unwrap_err().to_string().contains(&format!("KIND_LISTEN={text}")), "{text}");
        }
    }

    #[test]
    fn the_port_of_the_kubeconfig_is_a_port() {
        assert_eq!(config("STATIC_IP", "").unwrap().api_port, 8443);
        assert_eq!(config("KIND_API_PORT", "18443").unwrap().api_port, 18443);
        for text in ["0", "65536", "-1", "http", "8443:8443"] {
            let message = config("KIND_API_PORT", text).unwrap_err().to_string();
            assert!(message.contains(&format!("KIND_API_PORT={text}")), "{message}");
        }
    }

    #[test]
    fn a_switch_is_on_or_off_and_nonsense_is_no_error_under_the_older_name() {
        assert!(!config("STATIC_IP", "").unwrap().enforce_capacity);
        for (text, is_on) in [("1", true), ("true", true), (" On ", true), ("0", false), ("no", false), ("", false)] {
            for name in ["KIND_ENFORCE_CAPACITY", "ENFORCE_CAPACITY"] {
                let config = config(name, text).unwrap();
                assert_eq!((config.enforce_capacity, config.warnings.len()), (is_on, 0), "{name}={text}");
            }
        }
        assert!(config("KIND_ENFORCE_CAPACITY", "80%").unwrap_err().to_string().contains("KIND_ENFORCE_CAPACITY=80%"));
        let older = config("ENFORCE_CAPACITY", "80%").unwrap();
        assert!(
            !older.enforce_capacity && older.warnings[0].starts_with("invalid ENFORCE_CAPACITY=80%: use 1 or 0"),
            "{:?}",
            older.warnings
        );
    }

    #[test]
    fn what_a_link_or_a_service_has_set_is_ignored_with_a_warning() {
        for name in SETTINGS {
            let config = config(name, "tcp://10.0.0.1:2375").unwrap();
            assert!(config.warnings.len() == 1 && config.warnings[0].starts_with(name), "{name}: {:?}", config.warnings);
            assert_eq!((config.api_port, config.files_address().port()), (8443, 10080));
        }
        // Not our settings, so there is no warning.
        for (name, value) in [("KIND_PORT", "tcp://10.0.0.1:2375"), ("KIND_SERVICE_HOST", "10.0.0.1"), ("KIND_VERSION", "0.31")] {
            assert!(config(name, value).unwrap().warnings.is_empty(), "{name}");
        }
    }

    #[test]
    fn an_unknown_log_level_is_an_error() {
        for text in ["error", "warn", "INFO", "debug"] {
            assert!(config("KIND_LOG", text).is_ok(), "{text}");
        }
        assert!(config("KIND_LOG", "loud").unwrap_err().to_string().starts_with("invalid KIND_LOG=loud: use error"));
        assert_eq!(log_level(|_| None).unwrap(), LevelFilter::Info);
    }

    #[test]
    fn the_ready_timeout_is_a_number_of_seconds() {
        assert_eq!(config("STATIC_IP", "").unwrap().ready_timeout, CLUSTER_LIMIT);
        assert_eq!(config("KIND_READY_TIMEOUT", "60").unwrap().ready_timeout, Duration::from_secs(60));
        for text in ["0", "-1", "1m", "soon"] {
            let message = config("KIND_READY_TIMEOUT", text).unwrap_err().to_string();
            assert!(message.contains(&format!("KIND_READY_TIMEOUT={text}")), "{message}");
        }
    }

    #[test]
    fn arguments_for_the_daemons_are_split_at_spaces() {
        assert_eq!(config("KIND_KUBELET_ARGS", " --max-pods=50  --v=4\n").unwrap().kubelet_arguments, ["--max-pods=50", "--v=4"]);
        assert_eq!(config("KIND_DOCKERD_ARGS", "--debug").unwrap().dockerd_arguments, ["--debug"]);
        assert!(config("KIND_DOCKERD_ARGS", "").unwrap().dockerd_arguments.is_empty());
    }
}
