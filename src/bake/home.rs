//! What the user's scripts leave in their home and in temporary folders: logins, caches, downloads. It lies on
//! the volume, which the commit leaves out, so that even tools with fixed paths leave nothing in the image.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::VOLUME_DIR;
use crate::error::Result;
use crate::node::{mounts, store};
use crate::supervisor::reaper;

const HOME: &str = "/root";
const TMP: &str = "/tmp";
const APART: [&str; 3] = [HOME, TMP, "/var/tmp"];
/// Where the volume has them.
const FOLDER: &str = "hooks";
/// Left by our own commands.
const OURS: [&str; 4] = ["/root/.docker", "/root/.kube", "/root/.cache", "/tmp/hostpath_pv"];

/// The folders, and what they had in them before the scripts ran.
pub struct Home(Vec<PathBuf>);

/// Puts folders of the volume, with what the image has in them, over those of the image. Before anything else
/// is mounted below them.
pub fn set_apart() -> Result<Home> {
    for target in APART {
        let source = Path::new(VOLUME_DIR).join(FOLDER).join(target.trim_start_matches('/'));
        mounts::make_dir(&source)?;
        mounts::make_dir(target)?;
        reaper::run(Command::new("cp").arg("-a").arg(format!("{target}/.")).arg(&source))?;
        mounts::bind(&source, target)?;
    }
    Ok(Home(entries()))
}

/// What scripts find in their environment, whatever the build's own had: the builder's home is not here.
pub fn environment() -> Vec<(&'static str, String)> {
    let variables = [
        ("HOME", HOME),
        ("TMPDIR", TMP),
        ("DOCKER_CONFIG", "/root/.docker"),
        ("XDG_CONFIG_HOME", "/root/.config"),
        ("XDG_CACHE_HOME", "/root/.cache"),
        ("XDG_DATA_HOME", "/root/.local/share"),
        ("XDG_STATE_HOME", "/root/.local/state"),
    ];
    variables.map(|(name, value)| (name, value.to_string())).into()
}

impl Home {
    /// Names what the scripts have made there, for whoever misses it in the image.
    pub fn tell_what_stays_out(&self) {
        let is_ours = |path: &PathBuf| OURS.iter().any(|ours| path == Path::new(ours));
        let made = entries().into_iter().filter(|path| !self.0.contains(path) && !is_ours(path));
        let made: Vec<String> = made.map(|path| path.display().to_string()).collect();
        if !made.is_empty() {
            log::info!(target: "hook", "not in the image, as a script's home and temporary folders are not: {}", made.join(", "));
        }
    }
}

fn entries() -> Vec<PathBuf> {
    APART.iter().flat_map(|target| store::read_dir(Path::new(target)).unwrap_or_default()).collect()
}
