//! Makes containerd, which pulls for pods, trust the registries that Docker is told to trust without a certificate.
//! containerd reads a registry's configuration at every pull.
//!
//! dockerd reads a `hosts.toml` below /etc/docker/certs.d too, and would push to the first host there, without its own
//! fallback from HTTPS to HTTP. So what is for containerd alone is in a directory of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::config::{CRI_CERTS_DIR, RUN_DIR};
use crate::error::{Error, Result};
use crate::files;
use crate::node::mounts;
use crate::node::registry::CERTS_DIR;

/// Below `RUN_DIR`.
const OWN_DIR: &str = "insecure-certs.d";

/// Configures each of `registries` (`HOST` or `HOST:PORT`) below `root`, unless the user has done so. Whatever else
/// Docker's directory holds at this moment counts for containerd too.
pub fn trust(root: &Path, registries: &[String]) -> Result<()> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let (dockers, own) = (below(CERTS_DIR), below(RUN_DIR).join(OWN_DIR));
    let mut hosts: Vec<&str> = registries.iter().filter_map(|registry| host(registry)).collect();
    hosts.retain(|host| {
        let has_own = dockers.join(host).join("hosts.toml").exists();
        if has_own {
            log::info!(target: "registry", "{}/{host}/hosts.toml is the user's own and stays as it is", dockers.display());
        }
        !has_own
    });
    if hosts.is_empty() {
        return link(&dockers, &below(CRI_CERTS_DIR));
    }
    files::remove_tree(&own)?;
    mounts::make_dir(&own)?;
    for entry in fs::read_dir(&dockers).into_iter().flatten().flatten().filter(|entry| !hosts.iter().any(|host| entry.file_name() == *host))
    {
        link(&entry.path(), &own.join(entry.file_name()))?;
    }
    for host in hosts {
        mounts::make_dir(own.join(host))?;
        files::write(own.join(host).join("hosts.toml"), description(host))?;
    }
    link(&own, &below(CRI_CERTS_DIR))
}

/// The host of a registry as dockerd takes it; `None` for what is none.
fn host(registry: &str) -> Option<&str> {
    // dockerd ignores the scheme too.
    let host = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    if host.contains('/') {
        log::warn!(target: "registry", "the insecure registries in {registry} apply only to Docker: for pods, name HOST or HOST:PORT");
        return None;
    }
    // The host becomes part of a path and of a quoted string.
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || ['"', '\\'].contains(&c);
    (!host.is_empty() && !host.starts_with('.') && !host.contains(is_odd)).then_some(host)
}

/// Makes `link` a symbolic link to `target`, in one step for whoever reads it.
fn link(target: &Path, link: &Path) -> Result<()> {
    let mut new = link.as_os_str().to_owned();
    new.push(".new");
    let _ = fs::remove_file(&new);
    mounts::make_dir(link.parent().unwrap_or(Path::new("/")))?;
    let done = symlink(target, &new).and_then(|()| fs::rename(&new, link));
    done.map_err(|cause| Error::io("link", link, cause))
}

/// The same as Docker: HTTPS with any certificate, or plain HTTP if the registry does not support HTTPS.
fn description(host: &str) -> String {
    let capabilities = "  capabilities = [\"pull\", \"resolve\"]\n";
    format!(
        "server = \"http://{host}\"\n[host.\"https://{host}\"]\n{capabilities}  skip_verify = true\n[host.\"http://{host}\"]\n{capabilities}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_described_for_containerd_alone_and_the_users_own_counts() {
        let root = std::env::temp_dir().join(format!("kind-insecure-{}", std::process::id()));
        let own = root.join("etc/docker/certs.d/own.example/hosts.toml");
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        fs::write(&own, "mine").unwrap();
        let names = |path: &str| {
            let mut names: Vec<String> =
                fs::read_dir(root.join(path)).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        trust(&root, &[]).unwrap();
        assert_eq!(names("run/kind/certs.d"), ["own.example"]);
        let registries = ["reg:5000", "http://plain.example/", "own.example", "10.0.0.0/8", "../x", "a\"b", ""].map(String::from);
        for _ in 0..2 {
            trust(&root, &registries).unwrap();
            assert_eq!(names("run/kind/certs.d"), ["own.example", "plain.example", "reg:5000"]);
        }
        assert_eq!(names("etc/docker/certs.d"), ["own.example"]);
        assert_eq!(fs::read_to_string(root.join("run/kind/certs.d/own.example/hosts.toml")).unwrap(), "mine");
        let text = fs::read_to_string(root.join("run/kind/certs.d/reg:5000/hosts.toml")).unwrap();
        assert!(text.contains("[host.\"https://reg:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n  skip_verify = true\n"), "{text}");
        fs::remove_dir_all(root).unwrap();
    }
}
