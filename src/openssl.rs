//! Creates keys and certificates with the image's openssl command: during the bake, at a start that serves
//! Docker over TLS, and when the API server's certificate gets another name.

use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::supervisor::reaper;
use crate::sys;

/// Days for which the cluster's certificates are valid: an image must not expire.
pub const HUNDRED_YEARS: &str = "36500";
/// Seconds.
const DAY: u64 = 24 * 60 * 60;

/// openssl writes here first, so that an incomplete file never has the final name.
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
    /// RSA like docker:dind's keys: clients that support nothing else are still in use. docker:dind uses 4096 bits,
    /// which take seconds on a CI machine's two cores and protect nothing that lives longer.
    Rsa2048,
    /// The type that kubeadm is configured to use too: an RSA handshake costs several times as much, and the API
    /// server opens more than sixty connections to etcd when it starts (its log counts them).
    EcdsaP256,
}

/// Creates a key unless there is one already.
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

/// A certificate to create for an existing key.
pub struct Certificate<'a> {
    pub subject: &'a str,
    pub key: &'a Path,
    /// Certificate and key of the CA; `None` for a self-signed certificate.
    pub ca: Option<(&'a Path, &'a Path)>,
    pub days: &'a str,
    pub extensions: &'a [&'a str],
}

impl Certificate<'_> {
    pub fn write(&self, path: &Path) -> Result<()> {
        sign(|| {
            let mut command = Command::new("openssl");
            command
                .args(["req", "-x509", "-days", self.days, "-subj", self.subject, "-key"])
                .arg(self.key)
                .arg("-out")
                .arg(temporary(path));
            if let Some((certificate, key)) = self.ca {
                command.arg("-CA").arg(certificate).arg("-CAkey").arg(key);
            }
            command.args(self.extensions.iter().flat_map(|extension| ["-addext", *extension]));
            command
        })?;
        finish(path, 0o644)
    }
}

/// Signs a certificate again with the same key, names and extensions, valid for `days`.
pub fn sign_again(path: &Path, (certificate, key): (&Path, &Path), days: &str) -> Result<()> {
    sign(|| {
        let mut command = Command::new("openssl");
        command.args(["x509", "-days", days, "-in"]).arg(path).arg("-out").arg(temporary(path));
        command.arg("-CA").arg(certificate).arg("-CAkey").arg(key);
        command
    })?;
    finish(path, 0o644)
}

/// Runs the signing command with a certificate that is valid from yesterday, because the clock of the machine that
/// uses it may be behind ours. This takes openssl 3.4 or newer; with an older one the certificate is valid from now.
fn sign(command: impl Fn() -> Command) -> Result<()> {
    let dated = reaper::run(command().args(["-not_before", &utc(sys::now().saturating_sub(DAY))]));
    // If the option was not the problem, this fails with the same error.
    dated.or_else(|_| reaper::run(&mut command())).map(drop)
}

/// Seconds since 1970 as openssl expects a time: `YYYYMMDDHHMMSSZ`.
fn utc(seconds: u64) -> String {
    sys::utc(seconds).replace(['-', 'T', ':'], "")
}

/// A name or an address as an entry of `subjectAltName`.
pub fn alternative_name(name: &str) -> String {
    match name.parse::<IpAddr>() {
        Ok(address) => format!("IP:{address}"),
        Err(_) => format!("DNS:{name}"),
    }
}

/// The names and addresses that a certificate holds.
pub fn names_of(certificate: &Path) -> Result<Vec<String>> {
    reaper::run(Command::new("openssl").args(["x509", "-noout", "-ext", "subjectAltName", "-in"]).arg(certificate))
        .map(|text| parse_names(&text))
}

/// Parses a line such as `    DNS:kind, IP Address:0:0:0:0:0:0:0:1`.
fn parse_names(text: &str) -> Vec<String> {
    let entries = text.split([',', '\n']).map(str::trim);
    let name = |entry: &str| match (entry.strip_prefix("DNS:"), entry.strip_prefix("IP Address:")) {
        (Some(name), _) => Some(name.to_string()),
        (_, Some(address)) => Some(address.parse::<IpAddr>().ok()?.to_string()),
        _ => None,
    };
    entries.filter_map(name).collect()
}

/// Checks that `certificate` is signed by `ca` and valid now; the error is openssl's own.
pub fn verify(ca: &Path, certificate: &Path) -> Result<()> {
    reaper::run(Command::new("openssl").arg("verify").arg("-CAfile").arg(ca).arg(certificate)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date() {
        for (seconds, text) in [(0, "19700101000000Z"), (951_782_399, "20000228235959Z"), (4_107_542_400, "21000301000000Z")] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn names_are_read_as_they_were_given() {
        let text = "X509v3 Subject Alternative Name: \n    DNS:*.svc, DNS:kind, IP Address:10.96.0.1, IP Address:FD00:0:0:0:0:0:0:1\n";
        assert_eq!(parse_names(text), ["*.svc", "kind", "10.96.0.1", "fd00::1"]);
        assert_eq!(
            ["*.svc", "kind", "10.96.0.1", "fd00::1"].map(alternative_name),
            ["DNS:*.svc", "DNS:kind", "IP:10.96.0.1", "IP:fd00::1"]
        );
        assert!(parse_names("").is_empty());
    }
}
