//! Removes deleted objects, such as a Secret, from etcd for good. etcd keeps old revisions, its database
//! keeps the contents of free pages, and its write-ahead log keeps every write. A snapshot of the current state,
//! restored into a new data directory, has none of it.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::cluster::ETCD;
use crate::config::{ETCD_DIR, PKI_DIR};
use crate::daemons::containerd::ctr;
use crate::error::{Error, Result};
use crate::save::control_plane::{self, Task};
use crate::save::manifest;

/// In etcd's data directory, which has the same path in its container.
const SNAPSHOT: &str = "snapshot.db";
const RESTORED: &str = "restored";
const MEMBER: &str = "member";
/// What the new data must have in common with the static pod that kubeadm wrote: options of both etcd and the tools.
const MEMBERSHIP: [&str; 3] = ["name", "initial-cluster", "initial-advertise-peer-urls"];
const CLIENT: &str = "etcdctl";
/// It restores from 3.5 on; from 3.6 the client no longer does.
const RESTORER: &str = "etcdutl";
/// Where the programs of a container can be.
const PROGRAM_DIRS: [&str; 3] = ["usr/local/bin", "usr/bin", "bin"];

/// How often to ask for the revision.
const TRIES: u32 = 5;

/// etcd's running container, in which the tools of its image are run.
pub struct Etcd {
    container: Task,
    executions: Cell<u32>,
}

impl Etcd {
    pub fn running() -> Result<Etcd> {
        Ok(Etcd { container: control_plane::one(ETCD)?, executions: Cell::new(0) })
    }

    /// Restores the current state into a new directory next to the data. Nothing else may write to etcd meanwhile.
    pub fn rewrite(&self) -> Result<()> {
        let root = self.container.proc().join("root");
        if !has_program(&root, CLIENT) {
            return warn(&format!("etcd's image has no {CLIENT}"));
        }
        let restorer = if has_program(&root, RESTORER) { RESTORER } else { CLIENT };
        let path = |name: &str| format!("{ETCD_DIR}/{name}");
        let status = ["endpoint", "status", "--write-out=json"];
        let revision = (0..TRIES).find_map(|_| revision_in(&self.client(&status).ok()?));
        let revision = revision.ok_or_else(|| Error::new(format!("`{CLIENT} {}` did not report a revision", status.join(" "))))?;
        self.client(&["compact", "--physical", &revision.to_string()])?;
        self.client(&["defrag"])?;
        self.client(&["snapshot", "save", &path(SNAPSHOT)])?;
        let pod = manifest::read(ETCD)?;
        let option = |name: &&str| {
            let value = pod.flag(name).ok_or_else(|| Error::new(format!("etcd's static pod has no flag --{name}")));
            value.map(|value| format!("--{name}={value}"))
        };
        let membership: Vec<String> = MEMBERSHIP.iter().map(option).collect::<Result<_>>()?;
        let membership: Vec<&str> = membership.iter().map(String::as_str).collect();
        let data = format!("--data-dir={}", path(RESTORED));
        self.run(&[&[restorer, "snapshot", "restore", &path(SNAPSHOT), &data], membership.as_slice()].concat())?;
        if !Path::new(&path(RESTORED)).exists() {
            // It has printed its help instead.
            return warn(&format!("etcd's image has no {RESTORER}, which restores snapshots since etcd 3.6"));
        }
        fs::remove_file(path(SNAPSHOT)).map_err(|cause| Error::io("remove", path(SNAPSHOT), cause))
    }

    fn client(&self, arguments: &[&str]) -> Result<String> {
        let pki = format!("{PKI_DIR}/etcd");
        let (ca, certificate, key) = (
            format!("--cacert={pki}/ca.crt"),
            format!("--cert={pki}/healthcheck-client.crt"),
            format!("--key={pki}/healthcheck-client.key"),
        );
        let access = [CLIENT, "--endpoints=https://127.0.0.1:2379", &ca, &certificate, &key];
        self.run(&[access.as_slice(), arguments].concat())
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        self.executions.set(self.executions.get() + 1);
        let id = format!("kind-{}", self.executions.get());
        ctr(&[&["tasks", "exec", "--exec-id", &id, &self.container.id], arguments].concat())
    }
}

fn warn(reason: &str) -> Result<()> {
    log::warn!(target: "save", "objects that were deleted from the cluster, such as a Secret, can still be found in what is saved: {reason}");
    Ok(())
}

/// Looks for a program in a container. Asking the program itself is not as reliable: on a busy machine the answer of
/// `ctr tasks exec` has been lost.
fn has_program(root: &Path, name: &str) -> bool {
    // Not followed: an absolute link would lead out of the container.
    PROGRAM_DIRS.iter().any(|directory| fs::symlink_metadata(root.join(directory).join(name)).is_ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_is_found() {
        let status = r#"[{"Endpoint":"https://127.0.0.1:2379","Status":{"header":{"cluster_id":14841639068965178418,"member_id":10276657743932975437,"revision":612,"raft_term":2},"version":"3.6.8"}}]"#;
        assert_eq!(revision_in(status), Some(612));
        assert_eq!(revision_in("[]"), None);
    }
}
