//! Which archives of layers are not in the image.
//!
//! containerd has each layer twice: unpacked, which containers run from, and as the archive that was pulled or loaded,
//! which `docker push` and `docker save` send. Nobody sends Kubernetes' own images from here, and their archives take up
//! as much of the image as what they run from.
//!
//! containerd's records of these archives stay as they are. Builds, pulls and `docker images` ask them alone which layers
//! are there: without a record, BuildKit would get the archive from a registry before it builds FROM the image, and dockerd
//! would not know the image's size and configuration (seen with Docker 28.5).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::daemons::image_records::Record;
use crate::error::{Error, Result};

pub const VARIABLE: &str = "KIND_KEEP_ARCHIVES";
/// A layer up to this size (bytes) may be one of a base image that a job's own images share, such as distroless: their
/// pull would rely on the record, and their push would find no archive. Kubernetes' programs take more, even compressed.
const SMALL: u64 = 4 << 20;

/// Whether every archive stays.
pub fn keeps_all(value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(other) => Err(Error::new(format!("invalid {VARIABLE}={other}: use 1 to keep the archives of Kubernetes' own images"))),
    }
}

/// The names in the directory `blobs` of the large layers of `images` that are in no image with a name of another kind.
pub fn unneeded(images: &[String], records: &[Record], blobs: &Path) -> Result<BTreeSet<String>> {
    let (mut theirs, mut needed) = (BTreeSet::new(), BTreeSet::new());
    for record in records {
        let layers = if images.contains(&record.name) { &mut theirs } else { &mut needed };
        add_layers(&record.target, blobs, layers)?;
    }
    let is_large = |name: &&String| fs::metadata(blobs.join(name)).is_ok_and(|archive| archive.len() > SMALL);
    Ok(theirs.difference(&needed).filter(is_large).cloned().collect())
}

/// What a manifest or an index of manifests refers to (OCI image specification).
#[derive(Deserialize)]
struct Manifest {
    /// `null` if there are none, as Go writes it.
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

fn add_layers(digest: &str, blobs: &Path, layers: &mut BTreeSet<String>) -> Result<()> {
    let path = blobs.join(name_of(digest));
    // An index also names the manifests of other platforms, which are not there.
    if !path.exists() {
        return Ok(());
    }
    let bytes = fs::read(&path).map_err(|cause| Error::io("read", &path, cause))?;
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|cause| Error::new(format!("{} is no manifest of an image: {cause}", path.display())))?;
    layers.extend(manifest.layers.iter().flatten().map(|layer| name_of(&layer.digest).to_string()));
    manifest.manifests.iter().flatten().try_for_each(|manifest| add_layers(&manifest.digest, blobs, layers))
}

fn name_of(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemons::image_records::tests::record;

    const KUBERNETES: &str = "registry.k8s.io/etcd:3";

    /// Of images, as pairs of a name and a target, which archives the image does without. The targets are manifests of
    /// different layers, and an index of the first.
    fn unneeded_of(images: &[(&str, &str)]) -> BTreeSet<String> {
        let blobs = tempfile(images);
        let manifest = |name: &str, layers: &[&str]| {
            let layers: Vec<String> = layers.iter().map(|layer| format!(r#"{{"digest": "sha256:{layer}", "size": 1}}"#)).collect();
            fs::write(blobs.join(name), format!(r#"{{"config": {{"digest": "sha256:c"}}, "layers": [{}]}}"#, layers.join(","))).unwrap();
        };
        manifest("m-big", &["big", "small"]);
        manifest("m-other", &["other"]);
        manifest("m-both", &["big", "other"]);
        fs::write(blobs.join("empty"), r#"{"layers": null}"#).unwrap();
        let index = r#"{"manifests": [{"digest": "sha256:m-big"}, {"digest": "sha256:of-another-platform"}]}"#;
        fs::write(blobs.join("index"), index).unwrap();
        for (layer, size) in [("big", SMALL + 1), ("other", SMALL + 1), ("small", SMALL)] {
            fs::File::create(blobs.join(layer)).unwrap().set_len(size).unwrap();
        }
        let records: Vec<Record> = images.iter().map(|(name, target)| record(name, &format!("sha256:{target}"))).collect();
        let unneeded = unneeded(&[KUBERNETES.to_string()], &records, &blobs);
        fs::remove_dir_all(&blobs).unwrap();
        unneeded.unwrap()
    }

    fn tempfile(images: &[(&str, &str)]) -> std::path::PathBuf {
        let name: String = images.iter().flat_map(|(name, target)| [*name, *target]).collect::<String>().replace('/', "-");
        let blobs = std::env::temp_dir().join(format!("kind-archives-{}-{name}", std::process::id()));
        fs::create_dir_all(&blobs).unwrap();
        blobs
    }

    #[test]
    fn the_large_layers_of_kubernetes_go_unless_an_image_of_the_users_has_them() {
        for (images, expected) in [
            (&[][..], &[][..]),
            (&[(KUBERNETES, "m-big")], &["big"]),
            (&[(KUBERNETES, "index")], &["big"]),
            (&[(KUBERNETES, "m-both")], &["big", "other"]),
            (&[(KUBERNETES, "m-both"), ("app:1", "m-other")], &["big"]),
            // A name of the user's own keeps what is behind it.
            (&[(KUBERNETES, "m-big"), ("docker.io/library/etcd:3", "m-big")], &[]),
            (&[(KUBERNETES, "m-big"), ("app:1", "index")], &[]),
            (&[("app:1", "m-big")], &[]),
            (&[(KUBERNETES, "m-big"), ("app:1", "empty")], &["big"]),
            (&[(KUBERNETES, "not-there")], &[]),
        ] {
            let expected: BTreeSet<String> = expected.iter().map(|name| name.to_string()).collect();
            assert_eq!(unneeded_of(images), expected, "{images:?}");
        }
    }

    #[test]
    fn the_setting_is_one_or_zero() {
        for (value, keeps) in [(None, false), (Some("0"), false), (Some("1"), true)] {
            assert_eq!(keeps_all(value).unwrap(), keeps, "{value:?}");
        }
        let message = keeps_all(Some("yes")).unwrap_err().to_string();
        assert!(message.starts_with("invalid KIND_KEEP_ARCHIVES=yes: use 1"), "{message}");
    }
}
