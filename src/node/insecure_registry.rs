//! Makes containerd, which pulls for pods, trust the registries that Docker is told to trust without a certificate.
//! containerd reads a registry's configuration at every pull.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::node::mounts;
use crate::node::registry::CERTS_DIR;

/// Marks our files, which a later start or setting may replace.
const MARK: &str = "# Made by kind for dockerd's insecure-registries\n";

/// Configures each of `registries` (`HOST` or `HOST:PORT`) below `root`, unless the user has done so.
pub fn trust(root: &Path, registries: &[String]) -> Result<()> {
    for registry in registries {
        // dockerd ignores the scheme too.
        let host = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        if host.contains('/') {
            log::warn!(target: "registry", "the insecure registries in {registry} apply only to Docker: for pods, name HOST or HOST:PORT");
            continue;
        }
        // The host becomes part of a path and of a quoted string.
        if host.is_empty()
            || host.starts_with('.')
            || host.contains(|c: char| c.is_whitespace() || c.is_control() || ['"', '\\'].contains(&c))
        {
            continue;
        }
        let directory = root.join(CERTS_DIR.trim_start_matches('/')).join(host);
        let file = directory.join("hosts.toml");
        if fs::read_to_string(&file).is_ok_and(|text| !text.starts_with(MARK)) {
            log::info!(target: "registry", "{} is the user's own and stays as it is", file.display());
            continue;
        }
        mounts::make_dir(&directory)?;
        fs::write(&file, description(host)).map_err(|cause| Error::io("write", &file, cause))?;
    }
    Ok(())
}

/// The same as Docker: HTTPS with any certificate, or plain HTTP if the registry does not support HTTPS.
fn description(host: &str) -> String {
    let capabilities = "  capabilities = [\"pull\", \"resolve\"]\n";
    format!(
        "{MARK}server = \"http://{host}\"\n[host.\"https://{host}\"]\n{capabilities}  skip_verify = true\n[host.\"http://{host}\"]\n{capabilities}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_described_and_the_users_own_file_stays() {
        let root = std::env::temp_dir().join(format!("kind-insecure-{}", std::process::id()));
        let own = root.join("etc/docker/certs.d/own.example/hosts.toml");
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        fs::write(&own, "mine").unwrap();
        let registries = ["reg:5000", "http://plain.example/", "own.example", "10.0.0.0/8", "../x", "a\"b", ""].map(String::from);
        for _ in 0..2 {
            trust(&root, &registries).unwrap();
        }
        let mut names: Vec<String> = fs::read_dir(root.join("etc/docker/certs.d"))
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["own.example", "plain.example", "reg:5000"]);
        assert_eq!(fs::read_to_string(&own).unwrap(), "mine");
        let text = fs::read_to_string(root.join("etc/docker/certs.d/reg:5000/hosts.toml")).unwrap();
        assert!(text.contains("[host.\"https://reg:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n  skip_verify = true\n"), "{text}");
        fs::remove_dir_all(root).unwrap();
    }
}
