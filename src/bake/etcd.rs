//! Removes deleted objects, such as a Secret, from the baked etcd for good. etcd keeps old revisions, its database
//! keeps the contents of free pages, and its write-ahead log keeps every write. A snapshot of the current state,
//! restored into a new data directory, has none of it.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::config::{ETCD_DIR, PKI_DIR, STATIC_POD_DIR};
use crate::daemons::containerd::ctr;
use crate::error::{Error, Result};

/// In etcd's data directory, which has the same path in its container.
const SNAPSHOT: &str = "snapshot.db";
const RESTORED: &str = "restored";
const MEMBER: &str = "member";
/// What the new data must have in common with the static pod that kubeadm wrote: options of both etcd and the tools.
const MEMBERSHIP: [&str; 3] = ["name", "initial-cluster", "initial-advertise-peer-urls"];
/// The tools that can restore: from 3.6 etcdctl can only save, and before 3.5 there is no etcdutl.
const RESTORERS: [&str; 2] = ["etcdutl", "etcdctl"];

/// etcd's running container, in which the tools of its image are run.
pub struct Etcd<'a> {
    container: &'a str,
    executions: Cell<u32>,
}

impl Etcd<'_> {
    pub fn new(container: &str) -> Etcd<'_> {
        Etcd { container, executions: Cell::new(0) }
    }

    /// Restores the current state into a new directory next to the data. Nothing else may write to etcd meanwhile.
    pub fn rewrite(&self) -> Result<()> {
        let Some(restorer) = RESTORERS.into_iter().find(|tool| self.restores(tool)) else {
            log::warn!(target: "bake", "objects that were deleted in the cluster, such as a Secret, can still be found in the image, because etcd's image has no etcdctl or etcdutl");
            return Ok(());
        };
        let path = |name: &str| format!("{ETCD_DIR}/{name}");
        let revision = self.client(&["endpoint", "status", "--write-out=json"])?;
        let revision =
            revision_in(&revision).ok_or_else(|| Error::new(format!("`etcdctl endpoint status` names no revision: {revision}")))?;
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
        // A tool without this command prints the help of the one above it.
        self.run(&[tool, "snapshot", "restore", "--help"]).is_ok_and(|help| help.contains("--data-dir"))
    }

    fn client(&self, arguments: &[&str]) -> Result<String> {
        let pki = format!("{PKI_DIR}/etcd");
        let (ca, certificate, key) = (
            format!("--cacert={pki}/ca.crt"),
            format!("--cert={pki}/healthcheck-client.crt"),
            format!("--key={pki}/healthcheck-client.key"),
        );
        let access = ["etcdctl", "--endpoints=https://127.0.0.1:2379", &ca, &certificate, &key];
        self.run(&[access.as_slice(), arguments].concat())
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        self.executions.set(self.executions.get() + 1);
        let id = format!("kind-{}", self.executions.get());
        ctr(&[&["tasks", "exec", "--exec-id", &id, self.container], arguments].concat())
    }
}

/// Replaces the old data with the new, if there is any. etcd must have stopped.
pub fn adopt() -> Result<()> {
    let (restored, member) = (Path::new(ETCD_DIR).join(RESTORED), Path::new(ETCD_DIR).join(MEMBER));
    if !restored.exists() {
        return Ok(());
    }
    fs::remove_dir_all(&member).map_err(|cause| Error::io("remove", &member, cause))?;
    fs::rename(restored.join(MEMBER), &member).map_err(|cause| Error::io("rename", restored.join(MEMBER), cause))?;
    fs::remove_dir_all(&restored).map_err(|cause| Error::io("remove", &restored, cause))
}

/// The current revision, from the output of `etcdctl endpoint status`.
fn revision_in(status: &str) -> Option<u64> {
    serde_json::from_str::<Value>(status).ok()?.pointer("/0/Status/header/revision")?.as_u64()
}

/// An option of etcd's command line in its static pod, as `--name=value`.
fn option(manifest: &str, name: &str) -> Result<String> {
    let flag = format!("--{name}=");
    let found = manifest.lines().map(|line| line.trim().trim_start_matches("- ")).find(|line| line.starts_with(&flag));
    found.map(str::to_string).ok_or_else(|| Error::new(format!("etcd's static pod has no option {flag}")))
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
