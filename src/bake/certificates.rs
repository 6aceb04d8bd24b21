//! Certificates that outlive the image: kubeadm's are valid for a year, and an image must not expire.
//!
//! The CAs are created here and kubeadm uses them. Certificates that kubeadm signs with them are signed again at
//! the end of the bake, with the same keys, names and extensions. This works with every version: kubeadm has a
//! setting for it only from 1.31.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use base64::prelude::{Engine, BASE64_STANDARD};

use crate::cluster::kubeconfig;
use crate::config::{CREDENTIALS_DIR, KUBELET_DIR, KUBERNETES_DIR, NODE_NAME, PKI_DIR};
use crate::error::{Error, Result};
use crate::files;
use crate::openssl::{self, Keys, HUNDRED_YEARS};
use crate::readiness::files::{CA_CERT, CLIENT_CERT, CLIENT_KEY, CONFIG};

/// The CAs: file name without extension below the pki directory, and the common name that kubeadm gives it.
const CAS: [(&str, &str); 3] = [("ca", "kubernetes"), ("front-proxy-ca", "front-proxy-ca"), ("etcd/ca", "etcd-ca")];
/// The certificates that kubeadm signs, and the CA that signs each.
const SIGNED: [(&str, &str); 7] = [
    ("apiserver", "ca"),
    ("apiserver-kubelet-client", "ca"),
    ("apiserver-etcd-client", "etcd/ca"),
    ("front-proxy-client", "front-proxy-ca"),
    ("etcd/server", "etcd/ca"),
    ("etcd/peer", "etcd/ca"),
    ("etcd/healthcheck-client", "etcd/ca"),
];

/// Creates the three CAs where kubeadm expects them.
pub fn create_cas() -> Result<()> {
    for (name, common_name) in CAS {
        let path = format!("{PKI_DIR}/{name}");
        files::make_dir(Path::new(&path).parent().unwrap_or(Path::new("/")))?;
        let subject = format!("/CN={common_name}");
        let extensions = ["keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign", &format!("subjectAltName=DNS:{common_name}")];
        new_certificate(&subject, &format!("{path}.key"), &format!("{path}.crt"), None, &extensions)?;
    }
    Ok(())
}

/// Creates the client's credentials, which are served on purpose, and kubelet's serving certificate.
pub fn make_ours(static_ip: Ipv4Addr) -> Result<()> {
    files::make_dir(CREDENTIALS_DIR)?;
    let file = |name: &str| format!("{CREDENTIALS_DIR}/{name}");
    // RSA, like kubeadm's default: Java's fabric8 client needs a library that few have to read any other key.
    openssl::ensure_key(Path::new(&file(CLIENT_KEY)), Keys::Rsa2048, 0o600)?;
    // The API server itself allows this group everything, whatever the roles say.
    sign("/O=system:masters/CN=kind-admin", "clientAuth", "", &file(CLIENT_KEY), &file(CLIENT_CERT))?;
    let pki = format!("{KUBELET_DIR}/pki");
    files::make_dir(&pki)?;
    let names = format!("subjectAltName=DNS:{NODE_NAME},IP:{static_ip}");
    sign(&format!("/CN={NODE_NAME}"), "serverAuth", &names, &format!("{pki}/kubelet.key"), &format!("{pki}/kubelet.crt"))?;

    let ca = format!("{PKI_DIR}/ca.crt");
    fs::copy(&ca, file(CA_CERT)).map_err(|cause| Error::io("copy", &ca, cause))?;
    let base64 = |path: &str| fs::read(path).map(|pem| BASE64_STANDARD.encode(pem)).map_err(|cause| Error::io("read", path, cause));
    let config = kubeconfig::render(&base64(&ca)?, &base64(&file(CLIENT_CERT))?, &base64(&file(CLIENT_KEY))?);
    files::replace(file(CONFIG), config, 0o600)
}

/// Creates a key, unless there is one, and a certificate for it, signed by the cluster's CA.
fn sign(subject: &str, usage: &str, names: &str, key: &str, certificate: &str) -> Result<()> {
    let usage = format!("extendedKeyUsage={usage}");
    let mut extensions = vec!["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature", &usage];
    extensions.extend(Some(names).filter(|names| !names.is_empty()));
    new_certificate(subject, key, certificate, Some("ca"), &extensions)
}

/// Creates a key, unless there is one, and a certificate for it, signed by a CA below the pki directory or self-signed.
fn new_certificate(subject: &str, key: &str, certificate: &str, ca: Option<&str>, extensions: &[&str]) -> Result<()> {
    let ca = ca.map(|name| format!("{PKI_DIR}/{name}"));
    let ca = ca.map(|name| (format!("{name}.crt"), format!("{name}.key")));
    openssl::ensure_key(Path::new(key), Keys::EcdsaP256, 0o600)?;
    let ca = ca.as_ref().map(|(certificate, key)| (Path::new(certificate), Path::new(key)));
    openssl::Certificate { subject, key: Path::new(key), ca, days: HUNDRED_YEARS, extensions }.write(Path::new(certificate))
}

/// Signs again every certificate that kubeadm signed for only a year.
pub fn extend_all() -> Result<()> {
    for (name, ca) in SIGNED {
        let path = format!("{PKI_DIR}/{name}.crt");
        if Path::new(&path).exists() {
            extend(&path, ca)?;
        }
    }
    files::with_extensions(KUBERNETES_DIR, &["conf"])?.iter().try_for_each(|path| extend_kubeconfig(path))
}

/// Every name and address in the API server's certificate: those that we requested, and kubeadm's own.
pub fn names_of_api_server() -> Result<Vec<String>> {
    openssl::names_of(Path::new(&format!("{PKI_DIR}/apiserver.crt")))
}

fn extend(path: &str, ca: &str) -> Result<()> {
    let ca = format!("{PKI_DIR}/{ca}");
    let (certificate, key) = (format!("{ca}.crt"), format!("{ca}.key"));
    openssl::sign_again(Path::new(path), (Path::new(&certificate), Path::new(&key)), HUNDRED_YEARS)
}

/// The kubeconfigs of kubelet, scheduler and controller-manager contain their certificates.
fn extend_kubeconfig(path: &Path) -> Result<()> {
    const FIELD: &str = "client-certificate-data: ";
    let text = files::read(path)?;
    let Some(old) = text.lines().find_map(|line| line.trim_start().strip_prefix(FIELD)) else { return Ok(()) };
    let certificate = format!("{}.crt", path.display());
    let pem =
        BASE64_STANDARD.decode(old.trim()).map_err(|cause| Error::new(format!("{} has an invalid {FIELD}{cause}", path.display())))?;
    files::write(&certificate, pem)?;
    extend(&certificate, "ca")?;
    let new = fs::read(&certificate).map_err(|cause| Error::io("read", &certificate, cause))?;
    files::replace(path, text.replace(old, &BASE64_STANDARD.encode(new)), 0o600)?;
    files::remove(certificate)
}
