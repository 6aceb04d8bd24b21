//! Loads the user's image archives into the store that Docker and the pods share.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::config::{CONTAINERD_SOCKET, IMAGES_DIR, NAMESPACE};
use crate::daemons::image_records::{self, Record};
use crate::daemons::{containerd, image_names};
use crate::error::{Error, Result};
use crate::supervisor::reaper;

pub const EXTENSIONS: [&str; 3] = ["tar", "gz", "tgz"];
/// The client of containerd 1.7 reads nothing that is compressed.
const LOAD_COMPRESSED: &str = r#"set -o pipefail; gzip -dc -- "$1" | ctr --address "$2" --namespace "$3" images import -"#;

/// Loads one archive. containerd does it, because dockerd may listen only where its user said.
///
/// # Errors
/// It contains no image; the error has containerd's message.
pub fn load(path: &Path) -> Result<()> {
    let started = Instant::now();
    let before = image_records::list()?;
    let file = path.to_string_lossy();
    let loaded = if file.ends_with(".tar") {
        containerd::ctr(&["images", "import", &file])
    } else {
        reaper::run(Command::new("bash").args(["-c", LOAD_COMPRESSED, "load", &file, CONTAINERD_SOCKET, NAMESPACE]))
    };
    loaded.map_err(|error| {
        Error::new(format!("{} cannot be loaded: {error}", path.display()))
            .advise(format!("{IMAGES_DIR} is for archives of images, as `docker save` writes them"))
    })?;
    let is_new = |record: &Record| !before.iter().any(|old| old.name == record.name && old.target == record.target);
    let after = image_records::list()?;
    let new: Vec<String> = after
        .iter()
        .filter(|record| is_new(record) && !record.name.starts_with(image_names::ID))
        .map(|record| familiar(&record.name))
        .collect();
    let names = if new.is_empty() { "all of it was there already".to_string() } else { new.join(", ") };
    log::info!(target: "images", "{} loaded in {:.1} s: {names}", path.display(), started.elapsed().as_secs_f64());
    Ok(())
}

/// An image's name as `docker images` shows it.
fn familiar(name: &str) -> String {
    let short = name.strip_prefix("docker.io/").unwrap_or(name);
    short.strip_prefix("library/").unwrap_or(short).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_docker_shows_them() {
        for (name, shown) in [
            ("docker.io/library/app:1", "app:1"),
            ("docker.io/kind-lab/busybox:1", "kind-lab/busybox:1"),
            ("registry.example.com/library/app:1", "registry.example.com/library/app:1"),
        ] {
            assert_eq!(familiar(name), shown);
        }
    }
}
