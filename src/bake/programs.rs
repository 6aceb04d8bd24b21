//! The control plane's programs, as the bake's kubelet runs them: how they are to be started when they are saved, and what runs
//! in their containers when they are restored.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::bake::bundle::BIN_DIR;
use crate::cluster::PROGRAMS;
use crate::config::{INIT, RESTORED_DIR, STAND_IN, STORE_DIR};
use crate::error::{Error, Result};
use crate::files;
use crate::node::store::SNAPSHOTS;
use crate::restore::kubelet_log;
use crate::restore::saved::Start;
use crate::save::{control_plane, manifest};

/// Variables of the containers that the programs keep.
const KEPT_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// A program as it runs in its container, by which it is found again in the store.
pub struct Running {
    name: &'static str,
    argv: Vec<String>,
    environment: Vec<(String, String)>,
    /// The path in the container.
    path: PathBuf,
    size: u64,
    modified: i64,
}

/// Makes the control plane's containers run `kind stand-in`, which waits for the restored program or becomes the program.
pub fn put_stand_ins() -> Result<()> {
    kubelet_log::check(Path::new(BIN_DIR));
    let put = |name: &&str| {
        manifest::edit(name, |pod| {
            pod.run_through(&[INIT, STAND_IN, name]);
            pod.mount_file("kind", INIT);
            pod.mount("restored", RESTORED_DIR);
            Ok(())
        })
    };
    PROGRAMS.iter().try_for_each(put)
}

/// Looks at the running control plane. Called before it is stopped.
pub fn look() -> Result<Vec<Running>> {
    PROGRAMS.iter().map(|name| look_at(name)).collect()
}

fn look_at(name: &'static str) -> Result<Running> {
    let pod = manifest::read(name)?;
    if let Some(path) = pod.path_of_its_own() {
        return Err(Error::new(format!("{path} in the static pod {name} is not the node's {path}")));
    }
    let own_variables = pod.variables();
    let proc = control_plane::one(name)?.proc();
    let read = |file: &str| fs::read(proc.join(file)).map_err(|cause| Error::io("read", proc.join(file), cause));
    let strings = |bytes: Vec<u8>| -> Vec<String> {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.split_terminator('\0').map(str::to_string).collect()
    };
    let variables = strings(read("environ")?);
    let kept = variables.iter().filter_map(|variable| variable.split_once('='));
    let kept = kept.filter(|(name, _)| KEPT_VARIABLES.contains(name) || own_variables.contains(name));
    let environment = kept.map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let executable = proc.join("exe");
    let path = fs::read_link(&executable).map_err(|cause| Error::io("read", &executable, cause))?;
    let metadata = fs::metadata(&executable).map_err(|cause| Error::io("read", &executable, cause))?;
    let user = fs::metadata(&proc).map_err(|cause| Error::io("read", &proc, cause))?.uid();
    if user != 0 {
        // Its stand-in could not reach the owner.
        return Err(Error::new(format!("{name} runs as user {user}, and only programs that run as root can be saved")));
    }
    Ok(Running { name, argv: strings(read("cmdline")?), environment, path, size: metadata.len(), modified: metadata.mtime() })
}

impl Running {
    /// How it is started when it is saved.
    pub fn start(&self) -> Result<Start> {
        let (argv, environment) = (self.argv.clone(), self.environment.clone());
        Ok(Start { name: self.name.into(), executable: self.in_store()?, argv, environment })
    }

    /// The same executable among the layers of the store, from which it runs when it is restored.
    fn in_store(&self) -> Result<PathBuf> {
        let path = self.path.strip_prefix("/").unwrap_or(&self.path);
        let layers = files::list(Path::new(STORE_DIR).join(SNAPSHOTS))?;
        let is_same = |file: &PathBuf| {
            fs::symlink_metadata(file).is_ok_and(|found| found.is_file() && (found.len(), found.mtime()) == (self.size, self.modified))
        };
        let found = layers.iter().map(|layer| layer.join("fs").join(path)).find(is_same);
        found.ok_or_else(|| Error::new(format!("{} is in none of the image's layers", self.path.display())))
    }
}
