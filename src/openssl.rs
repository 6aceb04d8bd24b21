//! Keys and certificates, made by the openssl command that the image has: once in a bake, and at a
//! start that serves Docker with TLS.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::reaper;

/// Where openssl writes first: what is not whole never has the final name.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn finish(path: &Path, mode: u32) -> Result<()> {
    let new = temporary(path);
    let done = fs::set_permissions(&new, Permissions::from_mode(mode)).and_then(|()| fs::rename(&new, path));
    done.map_err(|cause| Error::io("write", path, cause))
}

/// Makes an RSA key where there is none yet: clients that know no other kind are still in use.
pub fn ensure_key(path: &Path, bits: u32, mode: u32) -> Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0) {
        return Ok(());
    }
    reaper::run(Command::new("openssl").args(["genrsa", "-out"]).arg(temporary(path)).arg(bits.to_string()))?;
    finish(path, mode)
}

/// A certificate to make for a key that is there.
pub struct Certificate<'a> {
    pub subject: &'a str,
    pub key: &'a Path,
    /// Certificate and key of the one who signs it; itself without.
    pub authority: Option<(&'a Path, &'a Path)>,
    pub days: &'a str,
    pub extensions: &'a [&'a str],
}

impl Certificate<'_> {
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-days", self.days, "-subj", self.subject, "-key"]).arg(self.key).arg("-out").arg(temporary(path));
        if let Some((certificate, key)) = self.authority {
            command.arg("-CA").arg(certificate).arg("-CAkey").arg(key);
        }
        command.args(self.extensions.iter().flat_map(|extension| ["-addext", *extension]));
        reaper::run(&mut command)?;
        finish(path, 0o644)
    }
}

/// Whether `certificate` is signed by `authority` and valid now; the error is openssl's own.
pub fn verify(authority: &Path, certificate: &Path) -> Result<()> {
    reaper::run(Command::new("openssl").arg("verify").arg("-CAfile").arg(authority).arg(certificate)).map(drop)
}
