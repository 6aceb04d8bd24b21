//! Keys and certificates, made by the openssl command that the image has: once in a bake, and at a
//! start that serves Docker with TLS.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::supervisor::reaper;

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

pub enum Keys {
    /// The kind that docker:dind makes: clients that know no other are still in use. It makes 4096 bits,
    /// which cost seconds on a CI machine's two cores and protect no longer-lived secret.
    Rsa2048,
    /// As kubeadm is told to make its own: a handshake with RSA costs several times as much, and the API
    /// server opens more than sixty connections to etcd when it starts (its log counts them).
    EcdsaP256,
}

/// Makes a key where there is none yet.
pub fn ensure_key(path: &Path, keys: Keys, mode: u32) -> Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0) {
        return Ok(());
    }
    let options = match keys {
        Keys::Rsa2048 => ["RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        Keys::EcdsaP256 => ["EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
    };
    reaper::run(Command::new("openssl").args(["genpkey", "-algorithm"]).args(options).arg("-out").arg(temporary(path)))?;
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
