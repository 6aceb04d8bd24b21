//! Keeps what the user's scripts leave in their home and in temporary directories (logins, caches, downloads) out of
//! the image. Those directories are on the volume, which a commit leaves out, so this covers tools with fixed paths too.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::VOLUME_DIR;
use crate::error::Result;
use crate::node::{mounts, store};
use crate::supervisor::reaper;

const HOME: &str = "/root";
const TMP: &str = "/tmp";
const APART: [&str; 3] = [HOME, TMP, "/var/tmp"];
/// Where they are on the volume.
const FOLDER: &str = "hooks";
/// What our own commands leave there.
const OURS: [&str; 4] = ["/root/.docker", "/root/.kube", "/root/.cache", "/tmp/hostpath_pv"];

/// What was in the directories before the scripts ran.
pub struct Home(Vec<PathBuf>);

/// Mounts directories of the volume, with a copy of what the image has in them, over those of the image. This has to
/// come before anything else is mounted below them.
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

/// What the scripts find in their environment, even if the build passes on its own: the builder's home is not here.
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
    /// Logs what the scripts have left there, for users who miss it in the image.
    pub fn tell_what_stays_out(&self) {
        let is_ours = |path: &PathBuf| OURS.iter().any(|ours| path == Path::new(ours));
        let made = entries().into_iter().filter(|path| !self.0.contains(path) && !is_ours(path));
        let made: Vec<String> = made.map(|path| path.display().to_string()).collect();
        if !made.is_empty() {
            log::info!(target: "hook", "not in the image, because it is in /root or a temporary directory: {}", made.join(", "));
        }
    }
}

fn entries() -> Vec<PathBuf> {
    APART.iter().flat_map(|target| store::read_dir(Path::new(target)).unwrap_or_default()).collect()
}
