//! Nothing that was deleted stays in the baked etcd: it keeps old revisions, its database the pages that are
//! free now, and its log every write. A snapshot of what is there, restored, is new data without any of it.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::config::{ETCD_DIR, PKI_DIR, STATIC_POD_DIR};
use crate::daemons::containerd::ctr;
use crate::error::{Error, Result};

/// Below etcd's data directory, which its container sees under the same path.
const SNAPSHOT: &str = "snapshot.db";
const RESTORED: &str = "restored";
const MEMBER: &str = "member";
/// What new data needs to fit the static pod that kubeadm has written, as options of etcd and of the tools alike.
const MEMBERSHIP: [&str; 3] = ["name", "initial-cluster", "initial-advertise-peer-urls"];
/// The tools that restore: from 3.6 etcdctl only saves, and before 3.5 there is no etcdutl.
const RESTORERS: [&str; 2] = ["etcdutl", "etcdctl"];

/// Etcd's container, in which its image's tools are run.
pub struct Etcd<'a> {
    container: &'a str,
    executions: Cell<u32>,
}

impl Etcd<'_> {
    pub fn new(container: &str) -> Etcd<'_> {
        Etcd { container, executions: Cell::new(0) }
    }

    /// Writes what etcd holds now beside its data, while it runs and nobody else writes.
    pub fn rewrite(&self) -> Result<()> {
        let Some(restorer) = RESTORERS.into_iter().find(|tool| self.restores(tool)) else {
            log::warn!(target: "bake", "what the hooks have deleted in the cluster, such as a Secret, can still be found in the image: etcd's image has no etcdctl and etcdutl");
            return Ok(());
        };
        let path = |name: &str| format!("{ETCD_DIR}/{name}");
        let revision = self.client(&["endpoint", "status", "--write-out=json"])?;
        let revision = revision_in(&revision).ok_or_else(|| Error::new(format!("etcdctl names no revision: {revision}")))?;
        self.client(&["compact", "--physical", &revision.to_string()])?;
        self.client(&["defrag"])?;
        self.client(&["snapshot", "save", &path(SNAPSHOT)])?;
        let manifest = Path::new(STATIC_POD_DIR).join("etcd.yaml");
        let manifest = fs::read_to_string(&manifest).map_err(|cause| Error::io("read", &manifest, cause))?;
        let membership: Vec<String> = MEMBERSHIP.iter().map(|name| option(&manifest, name)).collect::<Result<_>>()?;
        let membership: Vec<&str> = membership.iter().map(String::as_str).collect();
        let data = format!("--data-dir={}", path(RESTORED));
        self.run(&[&[restorer, "snapshot", "restore", &path(SNAPSHOT), &data], membership.as_slice()].concat())?;
        fs::remove_file(path(SNAPSHOT)).map_err(|cause| Error::io("remove", path(SNAPSHOT), cause))
    }

    fn restores(&self, tool: &str) -> bool {
        // Those that know no such command show the one above it.
        self.run(&[tool, "snapshot", "restore", "--help"]).is_ok_and(|help| help.contains("--data-dir"))
    }

    fn client(&self, arguments: &[&str]) -> Result<String> {
        let pki = format!("{PKI_DIR}/etcd");
        let (authority, certificate, key) = (
            format!("--cacert={pki}/ca.crt"),
            format!("--cert={pki}/healthcheck-client.crt"),
            format!("--key={pki}/healthcheck-client.key"),
        );
        let access = ["etcdctl", "--endpoints=https://127.0.0.1:2379", &authority, &certificate, &key];
        self.run(&[access.as_slice(), arguments].concat())
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        self.executions.set(self.executions.get() + 1);
        let id = format!("kind-{}", self.executions.get());
        ctr(&[&["tasks", "exec", "--exec-id", &id, self.container], arguments].concat())
    }
}

/// Puts the new data in the place of the old, where there is some. Etcd has ended.
pub fn adopt() -> Result<()> {
    let (restored, member) = (Path::new(ETCD_DIR).join(RESTORED), Path::new(ETCD_DIR).join(MEMBER));
    if !restored.exists() {
        return Ok(());
    }
    fs::remove_dir_all(&member).map_err(|cause| Error::io("remove", &member, cause))?;
    fs::rename(restored.join(MEMBER), &member).map_err(|cause| Error::io("rename", restored.join(MEMBER), cause))?;
    fs::remove_dir_all(&restored).map_err(|cause| Error::io("remove", &restored, cause))
}

/// The newest revision, in what `etcdctl endpoint status` says.
fn revision_in(status: &str) -> Option<u64> {
    serde_json::from_str::<Value>(status).ok()?.pointer("/0/Status/header/revision")?.as_u64()
}

/// An option of etcd's command line in its static pod, as `--name=value`.
fn option(manifest: &str, name: &str) -> Result<String> {
    let flag = format!("--{name}=");
    let found = manifest.lines().map(|line| line.trim().trim_start_matches("- ")).find(|line| line.starts_with(&flag));
    found.map(str::to_string).ok_or_else(|| Error::new(format!("the static pod of etcd has no {flag}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_membership_is_that_of_kubeadms_static_pod() {
        let manifest = "spec:\n  containers:\n  - command:\n    - etcd\n    - --advertise-client-urls=https://172.99.99.1:2379\n    - --initial-advertise-peer-urls=https://172.99.99.1:2380\n    - --initial-cluster=kind=https://172.99.99.1:2380\n    - --name=kind\n";
        assert_eq!(option(manifest, "name").unwrap(), "--name=kind");
        assert_eq!(option(manifest, "initial-cluster").unwrap(), "--initial-cluster=kind=https://172.99.99.1:2380");
        assert!(option(manifest, "data-dir").unwrap_err().to_string().contains("--data-dir="));
    }

    #[test]
    fn the_revision_is_found() {
        let status = r#"[{"Endpoint":"https://127.0.0.1:2379","Status":{"header":{"cluster_id":14841639068965178418,"member_id":10276657743932975437,"revision":612,"raft_term":2},"version":"3.6.8"}}]"#;
        assert_eq!(revision_in(status), Some(612));
        assert_eq!(revision_in("[]"), None);
    }
}
