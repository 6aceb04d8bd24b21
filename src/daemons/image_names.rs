//! Keeps the names of the baked images: `docker rmi` and `docker system prune -a` take them from every
//! image that no container of Docker's uses, those of the cluster's pods included, and a pod that is
//! started anew would not find its image any more. What the names stand for is never removed (`bake::images`).

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::config::{BAKED_IMAGES, CONTAINERD_SOCKET, NAMESPACE, RUN_DIR};
use crate::daemons::containerd::{self, ctr};
use crate::error::{Error, Result};
use crate::node::mounts;
use crate::readiness::files::KUBERNETES_READY;
use crate::supervisor::reaper;
use crate::supervisor::Init;

/// Of the layout's index, by which containerd names what it imports.
pub const INDEX: &str = "index.json";
pub const IMAGE_NAME: &str = "io.containerd.image.name";

/// What containerd tells of: an image record that is removed. (dockerd does not tell of all: a prune
/// makes no event for the images that it removes, seen with Docker 26.1.)
const EVENTS: &str = r#"topic=="/images/delete""#;
/// After this long without another event, a prune is over.
const QUIET: Duration = Duration::from_millis(300);
/// How often the start is looked for, and how soon a stream that ended is followed again.
const RETRY: Duration = Duration::from_secs(1);

/// Follows containerd in a thread of its own, which sleeps until an image loses a name. It begins when
/// the cluster is ready: a start has better things to do.
pub fn keep(init: &Arc<Init>) -> Result<()> {
    let baked = Index::read(Path::new(BAKED_IMAGES))?;
    let init = init.clone();
    let body = move || {
        let mut told = String::new();
        while !init.shutdown.stopping() {
            if init.readiness.has_reached(KUBERNETES_READY) {
                if let Err(error) = follow(&baked) {
                    // Once, and not every second.
                    let error = error.to_string();
                    if error != told {
                        log::warn!(target: "images", "baked images may lose their names: {error}");
                        told = error;
                    }
                }
            }
            init.shutdown.pause(RETRY);
        }
    };
    let started = thread::Builder::new().name("images".into()).spawn(body);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the thread of the images: {cause}")))
}

/// The index of the baked images, an OCI image layout without the layers.
struct Index(Value);

impl Index {
    fn read(layout: &Path) -> Result<Index> {
        let path = layout.join(INDEX);
        let text = fs::read_to_string(&path).map_err(|cause| Error::io("read", &path, cause))?;
        let index = serde_json::from_str(&text).map_err(|cause| Error::new(format!("{} is broken: {cause}", path.display())))?;
        Ok(Index(index))
    }

    /// The same of those images alone whose name is not `there`; nothing when all are.
    fn without(&self, there: &[String]) -> Option<Value> {
        let mut index = self.0.clone();
        let manifests = index.get_mut("manifests")?.as_array_mut()?;
        manifests.retain(|manifest| {
            let name = manifest.get("annotations").and_then(|annotations| annotations.get(IMAGE_NAME)?.as_str());
            name.is_some_and(|name| !there.iter().any(|there| there == name))
        });
        (!manifests.is_empty()).then_some(index)
    }
}

/// Puts names back until the stream of events ends, as it does with containerd.
fn follow(baked: &Index) -> Result<()> {
    let (stream, theirs) = UnixStream::pair().map_err(fail)?;
    let mut command = Command::new("ctr");
    command.args(["--address", CONTAINERD_SOCKET, "--namespace", NAMESPACE, "events", EVENTS]);
    let child = reaper::spawn(command.stdout(OwnedFd::from(theirs)).stderr(Stdio::null()))?;
    // It holds our copy of the other end, and the stream would never end.
    drop(command);
    let followed = put_back_after_events(&stream, baked);
    child.handle().kill_group();
    child.wait();
    followed
}

fn fail(cause: std::io::Error) -> Error {
    Error::new(format!("cannot follow containerd's events: {cause}"))
}

/// Until the stream ends.
fn put_back_after_events(stream: &UnixStream, baked: &Index) -> Result<()> {
    let mut lines = BufReader::new(stream.try_clone().map_err(fail)?);
    // As after an event: something may have happened while nobody listened.
    stream.set_read_timeout(Some(QUIET)).map_err(fail)?;
    let mut line = String::new();
    loop {
        line.clear();
        match lines.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => stream.set_read_timeout(Some(QUIET)).map_err(fail)?,
            Err(cause) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&cause.kind()) => {
                stream.set_read_timeout(None).map_err(fail)?;
                put_back(baked)?;
            }
            Err(cause) => return Err(fail(cause)),
        }
    }
}

/// Imports the names that are missing. One that has another image by now stays with it.
fn put_back(baked: &Index) -> Result<()> {
    let Some(missing) = baked.without(&containerd::images()?) else { return Ok(()) };
    let (directory, archive) = (Path::new(RUN_DIR).join("images"), Path::new(RUN_DIR).join("images.tar"));
    mounts::make_dir(&directory)?;
    let index = directory.join(INDEX);
    fs::write(&index, missing.to_string()).map_err(|cause| Error::io("write", &index, cause))?;
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(&archive).arg("-C").arg(&directory).arg(INDEX).args(["-C", BAKED_IMAGES, "oci-layout", "blobs"]);
    reaper::run(&mut tar)?;
    ctr(&["images", "import", "--no-unpack", &archive.to_string_lossy()])?;
    log::info!(target: "images", "baked images that had lost their names have them again");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_missing_is_put_back() {
        let manifest = |name: &str| json!({"digest": "sha256:1", "annotations": {IMAGE_NAME: name}});
        let index = Index(json!({"schemaVersion": 2, "manifests": [manifest("a:1"), manifest("b:1")]}));
        assert_eq!(index.without(&["b:1".into(), "mine:1".into()]), Some(json!({"schemaVersion": 2, "manifests": [manifest("a:1")]})));
        assert_eq!(index.without(&["b:1".into(), "a:1".into()]), None);
    }
}
