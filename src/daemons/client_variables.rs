//! Variables for clients, which a CI job sets for all of its containers, services included. In this container they
//! must not point any client at another node: neither clients that we or the user's scripts start, nor those of
//! `docker exec`.
//!
//! We remove them from our own environment. `docker exec` starts with the container's environment, which nobody can
//! change, so we put wrappers for `docker` and `kubectl` earlier on PATH, only when a node starts. A job's own
//! container, even one of this image, keeps its variables and has the programs without wrappers.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::{Config, ADMIN_KUBECONFIG};
use crate::error::{Error, Result};
use crate::node::mounts;

pub const HOST: &str = "DOCKER_HOST";
pub const TLS_VERIFY: &str = "DOCKER_TLS_VERIFY";
pub const CERT_PATH: &str = "DOCKER_CERT_PATH";
const DRIVER: &str = "DOCKER_DRIVER";
/// The Docker CLI's variables. dockerd too would look for certificates in DOCKER_CERT_PATH.
const OF_DOCKER: [&str; 5] = [HOST, "DOCKER_CONTEXT", "DOCKER_TLS", TLS_VERIFY, CERT_PATH];
const KUBECONFIG: &str = "KUBECONFIG";
/// Precedes /usr/local/bin on the PATH of every Debian and Docker image.
const WRAPPERS: &str = "/usr/local/sbin";
/// Marks our wrappers, which a later start may replace.
const MARK: &str = "# Made by kind at its start";

/// The variables that are set, except those that have an effect here.
#[derive(Debug, Default)]
pub struct ClientVariables {
    /// `DOCKER_HOST` as it is set, even if it has an effect here.
    host: String,
    set: Vec<(&'static str, String)>,
    /// `KUBECONFIG`, if it is not this node's.
    kubeconfig: Option<String>,
}

impl ClientVariables {
    fn find(get: impl Fn(&str) -> Option<String>) -> ClientVariables {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let found = OF_DOCKER.iter().filter_map(|name| Some((*name, get(name)?)));
        ClientVariables {
            host: get(HOST).unwrap_or_default(),
            set: found.filter(|(name, value)| *name != HOST || !value.starts_with(SOCKET)).collect(),
            kubeconfig: get(KUBECONFIG).filter(|path| path != ADMIN_KUBECONFIG),
        }
    }

    /// Removes them from our environment, and so from that of everything we start. Must be called before any thread
    /// is started.
    pub fn take() -> ClientVariables {
        let found = ClientVariables::find(|name| std::env::var(name).ok());
        found.set.iter().for_each(|(name, _)| std::env::remove_var(name));
        if found.kubeconfig.is_some() {
            std::env::remove_var(KUBECONFIG);
        }
        found
    }

    /// Logs, once per start, which variables have no effect with a cluster.
    pub fn warn(&self) {
        let ignored = self.without_effect(std::env::var(DRIVER).ok());
        if !ignored.is_empty() {
            log::warn!(target: "dockerd", "not passed on to dockerd: {}", ignored.join(", "));
        }
    }

    fn without_effect(&self, driver: Option<String>) -> Vec<String> {
        let mut ignored: Vec<String> = self.set.iter().map(|(name, value)| format!("{name}={value} (for clients)")).collect();
        let driver = driver.filter(|driver| !driver.is_empty());
        ignored.extend(driver.map(|driver| format!("{DRIVER}={driver} (baked images lie in containerd's store)")));
        ignored
    }

    /// Writes the wrappers for `docker exec` if the environment needs them, and removes stale ones.
    pub fn write_wrappers(&self, config: &Config) {
        if let Err(error) = self.try_write_wrappers(config) {
            log::warn!(target: "boot", "clients in docker exec may connect to another node: {error}");
        }
    }

    fn try_write_wrappers(&self, config: &Config) -> Result<()> {
        let path = std::env::var("PATH").unwrap_or_default();
        for (name, script) in [("docker", self.docker()), ("kubectl", self.kubectl())] {
            let wrapper = config.path(WRAPPERS).join(name);
            let is_free = match fs::read_to_string(&wrapper) {
                Ok(text) => text.contains(MARK),
                Err(cause) => cause.kind() == std::io::ErrorKind::NotFound,
            };
            match (script, program_behind(&wrapper, &path)) {
                (Some(script), Some(program)) if is_free => {
                    let text = format!("#!/bin/sh\n{MARK}\n{script}exec {} \"$@\"\n", quoted(&program.display().to_string()));
                    write_program(&wrapper, &text)?;
                }
                _ if is_free => drop(fs::remove_file(&wrapper)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The script leaves the variables alone if the user has set another host in here.
    fn docker(&self) -> Option<String> {
        let unset = |(name, value): &(&str, String)| format!("  [ \"${{{name}-}}\" != {} ] || unset {name}\n", quoted(value));
        let unset: String = self.set.iter().map(unset).collect();
        (!unset.is_empty()).then(|| format!("if [ \"${{{HOST}-}}\" = {} ]; then\n{unset}fi\n", quoted(&self.host)))
    }

    fn kubectl(&self) -> Option<String> {
        let path = self.kubeconfig.as_ref()?;
        Some(format!("[ \"${{{KUBECONFIG}-}}\" != {} ] || export {KUBECONFIG}={ADMIN_KUBECONFIG}\n", quoted(path)))
    }
}

const SOCKET: &str = "unix://";

/// The socket that `DOCKER_HOST` names for the daemon, as in docker:dind; any other value is for clients.
pub fn socket_of_environment() -> Option<String> {
    std::env::var(HOST).ok()?.strip_prefix(SOCKET).map(str::to_string)
}

/// dockerd would switch to that storage driver, which has none of the baked images. Docker alone may use it.
pub fn remove_driver(command: &mut Command) {
    command.env_remove(DRIVER);
}

/// The program that the wrapper hides, if the wrapper comes first on PATH.
fn program_behind(wrapper: &Path, path: &str) -> Option<PathBuf> {
    let (directory, name) = (wrapper.parent()?, wrapper.file_name()?);
    let mut after = std::env::split_paths(path).skip_while(|entry| entry != directory).skip(1);
    after.find_map(|entry| Some(entry.join(name)).filter(|program| program.is_file() && program != wrapper))
}

/// Writes to another name first, because an earlier start's wrapper may be running.
fn write_program(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    path.parent().map_or(Ok(()), mounts::make_dir)?;
    let write = || {
        fs::write(&new, text)?;
        fs::set_permissions(&new, Permissions::from_mode(0o755))?;
        fs::rename(&new, path)
    };
    write().map_err(|cause| Error::io("write", path, cause))
}

/// Quotes a text as one word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(set: &[(&str, &str)]) -> ClientVariables {
        ClientVariables::find(|name| set.iter().find(|(have, _)| *have == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let found = find(&[("DOCKER_HOST", "tcp://docker:2376"), ("DOCKER_TLS_VERIFY", ""), ("DOCKER_CONFIG", "/x")]);
        assert_eq!(
            found.without_effect(Some("overlay2".into())),
            ["DOCKER_HOST=tcp://docker:2376 (for clients)", "DOCKER_DRIVER=overlay2 (baked images lie in containerd's store)"]
        );
        let socket = find(&[("DOCKER_HOST", "unix:///run/x.sock"), ("DOCKER_TLS_VERIFY", "1")]);
        assert_eq!(socket.without_effect(None), ["DOCKER_TLS_VERIFY=1 (for clients)"]);
    }

    #[test]
    fn the_programs_are_those_after_the_wrapper_on_path() {
        let root = std::env::temp_dir().join(format!("kind-clients-{}", std::process::id()));
        for directory in ["sbin", "bin"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(root.join("bin/docker"), "").unwrap();
        let (sbin, bin) = (root.join("sbin").display().to_string(), root.join("bin").display().to_string());
        let wrapper = root.join("sbin/docker");
        assert_eq!(program_behind(&wrapper, &format!("/a:{sbin}:{bin}")), Some(root.join("bin/docker")));
        // There it would be no use, or lead to itself.
        for path in [format!("{bin}:{sbin}"), bin, format!("{sbin}:{sbin}"), String::new()] {
            assert_eq!(program_behind(&wrapper, &path), None, "{path}");
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn nothing_set_needs_no_program_and_a_value_is_one_word() {
        let none = find(&[("KUBECONFIG", ADMIN_KUBECONFIG), ("DOCKER_HOST", "unix:///run/x.sock")]);
        assert_eq!((none.docker(), none.kubectl()), (None, None));
        let some = find(&[("DOCKER_HOST", "tcp://it's"), ("KUBECONFIG", "/tmp/a b")]);
        assert!(some.docker().unwrap().contains(r#"[ "${DOCKER_HOST-}" = 'tcp://it'\''s' ]"#), "{:?}", some.docker());
        assert!(some.kubectl().unwrap().contains(r#"[ "${KUBECONFIG-}" != '/tmp/a b' ]"#), "{:?}", some.kubectl());
    }
}
