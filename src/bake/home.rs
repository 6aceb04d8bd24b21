//! Keeps what the user's scripts leave in their home and in temporary directories (logins, caches, downloads) out of
//! the image. Those directories are on the volume, which a commit leaves out. So this also covers tools with fixed paths.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::VOLUME_DIR;
use crate::error::Result;
use crate::files;
use crate::node::mounts;
use crate::supervisor::reaper;

const HOME: &str = "/root";
const TMP: &str = "/tmp";
const APART: [&str; 3] = [HOME, TMP, "/var/tmp"];
/// Where they are on the volume.
const DIRECTORY: &str = "hooks";
/// Files that our own commands leave there.
const OURS: [&str; 4] = ["/root/.docker", "/root/.kube", "/root/.cache", "/tmp/hostpath_pv"];

/// What was in the directories before the scripts ran.
pub struct Home(Vec<PathBuf>);

/// Mounts directories on the volume, with a copy of the image's contents, over the image's own. This must come
/// before anything else is mounted below them.
pub fn set_apart() -> Result<Home> {
    for target in APART {
        let source = files::below(&Path::new(VOLUME_DIR).join(DIRECTORY), target);
        files::make_dir(&source)?;
        files::make_dir(target)?;
        reaper::run(Command::new("cp").arg("-a").arg(format!("{target}/.")).arg(&source))?;
        mounts::bind(&source, target)?;
    }
    Ok(Home(entries()))
}

/// Variables for the scripts, which override those that the build passes: the builder's home does not exist here.
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
    /// Logs what the scripts have left there, for users who expect it in the image.
    pub fn log_what_is_left_out(&self) {
        let is_ours = |path: &PathBuf| OURS.iter().any(|ours| path == Path::new(ours));
        let made = entries().into_iter().filter(|path| !self.0.contains(path) && !is_ours(path));
        let made: Vec<String> = made.map(|path| path.display().to_string()).collect();
        if !made.is_empty() {
            log::info!(target: "hook", "left out of the image, because it is in /root or a temporary directory: {}", made.join(", "));
        }
    }
}

fn entries() -> Vec<PathBuf> {
    APART.iter().flat_map(|target| files::list(target).unwrap_or_default()).collect()
}
