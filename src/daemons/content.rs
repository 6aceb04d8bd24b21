//! The blobs of containerd's store: their labels (`containerd.services.content.v1`), and what is in those that describe
//! images.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::config::CONTAINERD_ROOT;
use crate::daemons::image_records::ask;
use crate::daemons::protobuf::{field, fields, written};
use crate::error::Result;
use crate::node::store::BLOBS;

const CONTENT: &str = "/containerd.services.content.v1.Content";
/// containerd itself takes no longer manifest from a registry (4 MiB).
const LONGEST_MANIFEST: u64 = 4 << 20;
const SHA256: &str = "sha256:";
const INDEXES: [&str; 2] = ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

// Field numbers of protobuf messages.
/// In the response of Info, and in the request of Update.
const INFO: u64 = 1;
/// In the request of Info, and in an info.
const DIGEST: u64 = 1;
const LABELS: u64 = 5;
/// In a label.
const KEY: u64 = 1;
const VALUE: u64 = 2;
/// In the request of Update, and in a mask.
const MASK: u64 = 2;
const PATH: u64 = 1;

pub type Labels = BTreeMap<String, String>;

/// A blob's labels, or `None` if there is no such blob.
pub fn labels(digest: &str) -> Result<Option<Labels>> {
    let answer = ask(CONTENT, "Info", &written(DIGEST, digest.as_bytes()))?;
    Ok(answer.map(|answer| read_labels(&answer)))
}

fn read_labels(answer: &[u8]) -> Labels {
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    let info = field(answer, INFO).unwrap_or_default();
    fields(info).filter(|(number, _)| *number == LABELS).map(|(_, label)| (text(field(label, KEY)), text(field(label, VALUE)))).collect()
}

/// Adds a label to a blob, which keeps its others. One that has gone in the meantime needs none.
pub fn add_label(digest: &str, key: &str, value: &str) -> Result<()> {
    let label = [written(KEY, key.as_bytes()), written(VALUE, value.as_bytes())].concat();
    let info = [written(DIGEST, digest.as_bytes()), written(LABELS, &label)].concat();
    let mask = written(PATH, format!("labels.{key}").as_bytes());
    ask(CONTENT, "Update", &[written(INFO, &info), written(MASK, &mask)].concat()).map(drop)
}

/// A manifest or an index.
#[derive(Debug, PartialEq)]
pub struct Manifest {
    pub digest: String,
    pub media_type: String,
    pub text: Vec<u8>,
}

impl Manifest {
    /// `None` if it is not in the store. The media type is the one that whoever refers to it has for it.
    pub fn read(digest: &str, media_type: &str) -> Option<Manifest> {
        Manifest::read_from(&Path::new(CONTAINERD_ROOT).join(BLOBS), digest, media_type)
    }

    fn read_from(blobs: &Path, digest: &str, media_type: &str) -> Option<Manifest> {
        let name = digest.strip_prefix(SHA256).filter(|name| name.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        let path = blobs.join(name);
        let length = fs::metadata(&path).ok().filter(|metadata| metadata.is_file())?.len();
        let mut text = vec![];
        File::open(path).ok()?.take(LONGEST_MANIFEST).read_to_end(&mut text).ok().filter(|read| *read as u64 == length)?;
        Some(Manifest { digest: digest.to_string(), media_type: media_type.to_string(), text })
    }

    /// What an index lists, as pairs of digest and media type.
    pub fn children(&self) -> Vec<(String, String)> {
        if !INDEXES.contains(&self.media_type.as_str()) {
            return vec![];
        }
        let index: Value = serde_json::from_slice(&self.text).unwrap_or_default();
        let text = |child: &Value, key: &str| child[key].as_str().map(str::to_string);
        let children = index["manifests"].as_array().into_iter().flatten();
        children.filter_map(|child| Some((text(child, "digest")?, text(child, "mediaType")?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_among_the_other_fields() {
        let label = |key: &str, value: &str| written(LABELS, &[written(KEY, key.as_bytes()), written(VALUE, value.as_bytes())].concat());
        let info =
            [written(DIGEST, b"sha256:aa"), vec![2 << 3, 0xac, 0x02], written(3, b"time"), label("a", "1"), label("b", "2,3")].concat();
        let labels = read_labels(&written(INFO, &info));
        assert_eq!(labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>(), ["a=1", "b=2,3"]);
        assert!(read_labels(b"").is_empty());
    }

    #[test]
    fn a_manifest_is_read_whole_and_an_index_has_children() {
        let blobs = std::env::temp_dir().join(format!("kind-content-{}", std::process::id()));
        fs::create_dir_all(&blobs).unwrap();
        let index = r#"{"manifests": [{"digest": "sha256:bb", "mediaType": "m", "size": 1}, {"digest": 1}]}"#;
        fs::write(blobs.join("aa"), index).unwrap();
        let read = |digest: &str, media_type: &str| Manifest::read_from(&blobs, digest, media_type);
        for media_type in INDEXES {
            assert_eq!(read("sha256:aa", media_type).unwrap().children(), [("sha256:bb".to_string(), "m".to_string())]);
        }
        let manifest = read("sha256:aa", "application/vnd.oci.image.manifest.v1+json").unwrap();
        assert_eq!((manifest.children(), manifest.text.as_slice()), (vec![], index.as_bytes()));
        for missing in ["sha256:bb", "sha512:aa", "sha256:../aa", "sha256:", ""] {
            assert_eq!(read(missing, INDEXES[0]), None, "{missing}");
        }
        fs::remove_dir_all(blobs).unwrap();
    }
}
