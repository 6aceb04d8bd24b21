//! Variables for a job's own programs, which it sets for all of its containers, services included. In this container they
//! must neither point a client that we or the user's scripts start at another node, nor change how our helpers and daemons
//! work: we remove them from our own environment.

use std::process::Command;

use crate::config::ADMIN_KUBECONFIG;

pub const HOST: &str = "DOCKER_HOST";
pub const TLS_VERIFY: &str = "DOCKER_TLS_VERIFY";
pub const CERT_PATH: &str = "DOCKER_CERT_PATH";
const DRIVER: &str = "DOCKER_DRIVER";
/// The Docker CLI's variables. dockerd too would look for certificates in DOCKER_CERT_PATH.
const OF_DOCKER: [&str; 5] = [HOST, "DOCKER_CONTEXT", "DOCKER_TLS", TLS_VERIFY, CERT_PATH];
const KUBECONFIG: &str = "KUBECONFIG";
const SOCKET: &str = "unix://";
/// What changes how shells, runtimes, the C library, OpenSSL and archivers work, by name and by the names' beginnings. Proxies
/// and `SSL_CERT_FILE` are for pulls, as in docker:dind.
const OF_LIBRARIES: [&str; 24] = [
    "BASHOPTS",
    "BASH_ENV",
    "CDPATH",
    "ENV",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
    "GLOBIGNORE",
    "GODEBUG",
    "GOGC",
    "GOMAXPROCS",
    "GOMEMLIMIT",
    "GOTRACEBACK",
    "GZIP",
    "HOSTALIASES",
    "LOCALDOMAIN",
    "LOCPATH",
    "MODPROBE_OPTIONS",
    "NLSPATH",
    "POSIXLY_CORRECT",
    "RES_OPTIONS",
    "SHELLOPTS",
    "TAR_OPTIONS",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
];
const OF_LIBRARIES_BEGIN: [&str; 10] =
    ["BASH_FUNC_", "CONTAINERD_", "ETCD", "LD_", "MALLOC_", "OPENSSL_", "PERL5", "PYTHON", "XTABLES_", "XZ_"];

/// Removes them from our environment, and so from that of everything we start. Must be called before any thread is
/// started. Returns what has no effect with a cluster, for the log.
pub fn take() -> Vec<String> {
    let of_libraries: Vec<String> =
        std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).filter(|name| is_of_a_library(name)).collect();
    of_libraries.iter().for_each(|name| std::env::remove_var(name));
    if !of_libraries.is_empty() {
        log::info!(target: "kind", "for the job's own programs, not passed to the daemons: {}", of_libraries.join(", "));
    }
    let get = |name: &str| std::env::var(name).ok();
    let found = for_clients(get);
    let ignored = without_effect(&found, get(DRIVER));
    found.iter().for_each(|(name, _)| std::env::remove_var(name));
    if get(KUBECONFIG).is_some_and(|path| path != ADMIN_KUBECONFIG) {
        std::env::remove_var(KUBECONFIG);
    }
    ignored
}

fn is_of_a_library(name: &str) -> bool {
    OF_LIBRARIES.contains(&name) || OF_LIBRARIES_BEGIN.iter().any(|begin| name.starts_with(begin))
}

/// Docker's variables that are set, except a `DOCKER_HOST` that names a socket for the daemon.
fn for_clients(get: impl Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let found = OF_DOCKER.iter().filter_map(|name| Some((*name, get(name).filter(|value| !value.is_empty())?)));
    found.filter(|(name, value)| *name != HOST || !value.starts_with(SOCKET)).collect()
}

fn without_effect(clients: &[(&str, String)], driver: Option<String>) -> Vec<String> {
    let clients = clients.iter().map(|(name, value)| format!("{name}={value} (for clients)"));
    let driver = driver.filter(|driver| !driver.is_empty());
    clients.chain(driver.map(|driver| format!("{DRIVER}={driver} (baked images lie in containerd's store)"))).collect()
}

/// The socket that `DOCKER_HOST` names for the daemon, as in docker:dind; any other value is for clients.
pub fn socket_of_environment() -> Option<String> {
    std::env::var(HOST).ok()?.strip_prefix(SOCKET).map(str::to_string)
}

/// dockerd would switch to that storage driver, which has none of the baked images. Docker alone may use it.
pub fn remove_driver(command: &mut Command) {
    command.env_remove(DRIVER);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_how_programs_work_is_of_a_library() {
        for name in ["LD_PRELOAD", "OPENSSL_CONF", "PYTHONPATH", "GODEBUG", "TMPDIR", "BASH_FUNC_docker%%", "CONTAINERD_ADDRESS"] {
            assert!(is_of_a_library(name), "{name}");
        }
        for name in ["PATH", "HOME", "HTTPS_PROXY", "SSL_CERT_FILE", "KIND_LOG", "DOCKER_HOST", "ENVIRONMENT", "LANG", "GOPATH"] {
            assert!(!is_of_a_library(name), "{name}");
        }
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let ignored = |set: &[(&str, &str)], driver| {
            let get = |name: &str| set.iter().find(|(have, _)| *have == name).map(|(_, value)| value.to_string());
            without_effect(&for_clients(get), driver)
        };
        assert_eq!(
            ignored(&[("DOCKER_HOST", "tcp://docker:2376"), ("DOCKER_TLS_VERIFY", ""), ("DOCKER_CONFIG", "/x")], Some("overlay2".into())),
            ["DOCKER_HOST=tcp://docker:2376 (for clients)", "DOCKER_DRIVER=overlay2 (baked images lie in containerd's store)"]
        );
        let socket = [("DOCKER_HOST", "unix:///run/x.sock"), ("DOCKER_TLS_VERIFY", "1")];
        assert_eq!(ignored(&socket, None), ["DOCKER_TLS_VERIFY=1 (for clients)"]);
    }
}
