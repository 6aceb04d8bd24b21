//! containerd's image records: each has a name, and the target that it refers to. We use containerd's API
//! (`containerd.services.images.v1`, the same from 1.7 to 2.3), because `ctr` can create a record without replacing
//! one only by tagging, which needs another name of the same image.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::config::{CONTAINERD_SOCKET, NAMESPACE, REQUEST_LIMIT};
use crate::daemons::grpc::{self, Call};
use crate::daemons::protobuf::{field, fields, written};
use crate::error::{Error, Result};
use crate::files;

const IMAGES: &str = "/containerd.services.images.v1.Images";
const SUBSCRIBE: &str = "/containerd.services.events.v1.Events/Subscribe";
/// For a deletion that waits until the content without a name is gone from the disk.
const COLLECTION_LIMIT: Duration = Duration::from_secs(60);

/// Errors of a connection whose other side has ended.
const ENDED: [io::ErrorKind; 3] = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];

// Field numbers of protobuf messages.
/// An image, in the response of List and in the request of Create.
const IMAGE: u64 = 1;
const NAME: u64 = 1;
const TARGET: u64 = 3;
/// In a target, which is a descriptor (OCI image specification).
const MEDIA_TYPE: u64 = 1;
const DIGEST: u64 = 2;
const FILTER: u64 = 1;
/// In a request to Delete: field 2, which is a number, is 1.
const SYNC: [u8; 2] = [2 << 3, 1];

#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub name: String,
    /// The digest of the manifest, or of the manifest list.
    pub target: String,
    pub media_type: String,
    /// containerd's complete `Image` message, including labels.
    image: Vec<u8>,
}

impl Record {
    fn read(image: &[u8]) -> Option<Record> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let target = field(image, TARGET)?;
        Some(Record {
            name: text(field(image, NAME)?)?,
            target: text(field(target, DIGEST)?)?,
            media_type: text(field(target, MEDIA_TYPE)?)?,
            image: image.to_vec(),
        })
    }
}

pub fn list() -> Result<Vec<Record>> {
    let answer = ask(IMAGES, "List", &[])?;
    let answer = answer.ok_or_else(|| Error::new("containerd does not list its images"))?;
    Ok(records(&answer))
}

/// Creates a record, unless the name has one already, which stays as it is. Returns whether it was created.
pub fn create(record: &Record) -> Result<bool> {
    ask(IMAGES, "Create", &written(IMAGE, &record.image)).map(|answer| answer.is_some())
}

/// Deletes a record, unless it is already gone. containerd then also deletes content that no longer has a name, some
/// time later or, with `wait`, before this returns.
pub fn delete(name: &str, wait: bool) -> Result<()> {
    let mut request = written(NAME, name.as_bytes());
    if wait {
        request.extend(SYNC);
    }
    ask_within(COLLECTION_LIMIT, IMAGES, "Delete", &request).map(drop)
}

/// Sends containerd one message and returns the response, or `None` if it refuses.
pub fn ask(service: &str, method: &str, request: &[u8]) -> Result<Option<Vec<u8>>> {
    ask_within(REQUEST_LIMIT, service, method, request)
}

fn ask_within(limit: Duration, service: &str, method: &str, request: &[u8]) -> Result<Option<Vec<u8>>> {
    let method = format!("{service}/{method}");
    grpc::ask(&method, request, limit)
        .map_err(|cause| Error::new(format!("cannot ask containerd on {CONTAINERD_SOCKET} ({method}): {cause}")))
}

/// Changes of image records, as containerd reports them.
pub struct Changes(Call);

impl Changes {
    pub fn subscribe() -> Result<Changes> {
        let filters: Vec<u8> = ["create", "update", "delete"]
            .iter()
            .flat_map(|what| written(FILTER, format!("namespace=={NAMESPACE},topic==\"/images/{what}\"").as_bytes()))
            .collect();
        Call::open(SUBSCRIBE, &filters, REQUEST_LIMIT).map(Changes).map_err(Changes::failed)
    }

    /// Waits for a change, forever if there is no limit. Returns whether there was one, or `None` if
    /// containerd has ended.
    pub fn wait(&mut self, limit: Option<Duration>) -> Result<Option<bool>> {
        self.0.set_limit(limit).map_err(Changes::failed)?;
        match self.0.next() {
            Ok(event) => Ok(event.map(|_| true)),
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => Ok(Some(false)),
            Err(cause) if ENDED.contains(&cause.kind()) => Ok(None),
            Err(cause) => Err(Changes::failed(cause)),
        }
    }

    fn failed(cause: io::Error) -> Error {
        Error::new(format!("cannot subscribe to containerd's events on {CONTAINERD_SOCKET}: {cause}"))
    }
}

/// Saves records in the format in which containerd lists them.
pub fn save(path: &Path, records: &[Record]) -> Result<()> {
    let bytes: Vec<u8> = records.iter().flat_map(|record| written(IMAGE, &record.image)).collect();
    files::write(path, bytes)
}

pub fn load(path: &Path) -> Result<Vec<Record>> {
    fs::read(path).map(|bytes| records(&bytes)).map_err(|cause| Error::io("read", path, cause))
}

fn records(list: &[u8]) -> Vec<Record> {
    fields(list).filter(|(number, _)| *number == IMAGE).filter_map(|(_, image)| Record::read(image)).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn record(name: &str, target: &str) -> Record {
        let target = [written(1, b"application/json"), written(DIGEST, target.as_bytes()), vec![3 << 3, 0xac, 0x02]].concat();
        let label = [written(1, b"key"), written(2, &[b'x'; 200])].concat();
        Record::read(&[written(NAME, name.as_bytes()), written(2, &label), written(TARGET, &target)].concat()).unwrap()
    }

    #[test]
    fn records_are_what_they_were_after_a_start() {
        let path = std::env::temp_dir().join(format!("kind-records-{}", std::process::id()));
        let all = [record("a:1", "sha256:1"), record("b:1", "sha256:2")];
        save(&path, &all).unwrap();
        assert_eq!(load(&path).unwrap(), all);
        fs::remove_file(&path).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
}
