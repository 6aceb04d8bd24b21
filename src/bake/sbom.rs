//! What is in the image, as a CycloneDX document beside the cluster: Debian's packages, Docker's and Kubernetes' programs,
//! the images, and the crates of this program. `purl` names each as scanners know it.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{json, Value};

use crate::bake::bundle::Bundle;
use crate::config::SBOM_FILE;
use crate::daemons::image_records;
use crate::error::{Error, Result};
use crate::files;
use crate::node::state_dir::StateDir;
use crate::supervisor::reaper;
use crate::sys;

/// The crates that this program was compiled from.
const CRATES: &str = include_str!("../../Cargo.lock");
/// A program, how it tells its version, and the Go module that it is built from.
const PROGRAMS: [(&str, &[&str], &str); 7] = [
    ("dockerd", &["dockerd", "--version"], "github.com/docker/docker"),
    ("docker", &["docker", "--version"], "github.com/docker/cli"),
    ("docker-buildx", &["docker", "buildx", "version"], "github.com/docker/buildx"),
    ("docker-compose", &["docker", "compose", "version"], "github.com/docker/compose"),
    ("containerd", &["containerd", "--version"], "github.com/containerd/containerd"),
    ("runc", &["runc", "--version"], "github.com/opencontainers/runc"),
    ("cni-plugins", &["sh", "-c", "/opt/cni/bin/bridge 2>&1"], "github.com/containernetworking/plugins"),
];
/// Name, version and architecture, from which source, in which version.
const PACKAGE: &str = "${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\n";

/// Components by their purl, so that none is there twice.
type Components = BTreeMap<String, Value>;

pub fn write(bundle: &Bundle) -> Result<()> {
    let mut components = Components::new();
    let release = files::read("/etc/os-release")?;
    let (os, os_version) = (setting(&release, "ID").unwrap_or("debian"), setting(&release, "VERSION_ID"));
    debian(&mut components, &reaper::run(Command::new("dpkg-query").args(["--show", "--showformat", PACKAGE]))?, os, os_version);
    for package in bundle.criu()? {
        let fields = reaper::run(Command::new("dpkg-deb").args(["--show", "--showformat", PACKAGE]).arg(&package))?;
        // Of a later Debian than the node.
        debian(&mut components, &fields, os, None);
    }
    for (name, command, module) in PROGRAMS {
        // An image may lack Compose, for example.
        if let Ok(said) = reaper::run(Command::new(command[0]).args(&command[1..])) {
            go(&mut components, name, module, version(&said));
        }
    }
    for name in ["kubelet", "kubectl"] {
        go(&mut components, name, "k8s.io/kubernetes", Some(bundle.version.trim_start_matches('v')));
    }
    image_records::load(&StateDir::baked().image_names())?.iter().for_each(|record| image(&mut components, &record.name, &record.target));
    crates(&mut components, CRATES);
    let mut all: Vec<Value> = components.into_values().collect();
    // By it, scanners know whose lists of vulnerabilities count.
    all.push(json!({"type": "operating-system", "bom-ref": "os", "name": os, "version": os_version.unwrap_or("unstable")}));
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": format!("urn:uuid:{}", files::read("/proc/sys/kernel/random/uuid")?.trim()),
        "version": 1,
        "metadata": {
            "timestamp": sys::utc(sys::now()),
            "component": {"type": "container", "bom-ref": "image", "name": "kind", "version": bundle.version},
        },
        "components": all,
    });
    let text = serde_json::to_string_pretty(&document).map_err(|cause| Error::new(format!("cannot write {SBOM_FILE}: {cause}")))?;
    files::write(SBOM_FILE, text)
}

fn add(components: &mut Components, kind: &str, name: &str, version: Option<&str>, purl: String) {
    let mut component = json!({"type": kind, "bom-ref": purl, "name": name, "purl": purl});
    if let Some(version) = version {
        component["version"] = version.into();
    }
    components.insert(purl, component);
}

fn debian(components: &mut Components, packages: &str, os: &str, os_version: Option<&str>) {
    let distro = os_version.map(|version| format!("&distro={os}-{version}")).unwrap_or_default();
    for line in packages.lines() {
        let [name, version, architecture, source, source_version] = line.split('\t').collect::<Vec<_>>()[..] else { continue };
        let upstream = encoded(&format!("{source}@{source_version}"));
        let purl = format!("pkg:deb/{os}/{}@{}?arch={architecture}{distro}&upstream={upstream}", encoded(name), encoded(version));
        add(components, "library", name, Some(version), purl);
    }
}

/// Modules of a later major version than 1 are named after it, Docker's own two excepted, which are older than modules.
fn go(components: &mut Components, program: &str, module: &str, version: Option<&str>) {
    let major: u32 = version.and_then(|version| version.split('.').next()?.parse().ok()).unwrap_or(0);
    let suffix = if major > 1 && !["dockerd", "docker"].contains(&program) { format!("/v{major}") } else { String::new() };
    let at = version.map(|version| format!("@v{}", encoded(version))).unwrap_or_default();
    add(components, "application", program, version, format!("pkg:golang/{module}{suffix}{at}#{program}"));
}

fn image(components: &mut Components, name: &str, digest: &str) {
    // CRI's names for images repeat others'.
    let Some((repository, tag)) = name.rsplit_once(':').filter(|(repository, _)| repository.contains('/') && !repository.contains('@'))
    else {
        return;
    };
    let last = repository.rsplit('/').next().unwrap_or(repository);
    let purl = format!("pkg:oci/{last}@{}?repository_url={}&tag={tag}", encoded(digest), encoded(repository));
    add(components, "container", repository, Some(tag), purl);
}

fn crates(components: &mut Components, lock: &str) {
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?.split('"').nth(1);
        let (Some(name), Some(version)) = (field("name"), field("version")) else { continue };
        let name: &str = name;
        add(components, "library", name, Some(version), format!("pkg:cargo/{name}@{}", encoded(version)));
    }
}

/// The first number with a dot in what a program says of itself: `Docker version 28.5.2, build …`.
fn version(said: &str) -> Option<&str> {
    let words = said.lines().next()?.split([' ', ',']).map(|word| word.strip_prefix('v').unwrap_or(word));
    words.into_iter().find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
}

fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.trim_matches('"')))
}

/// As package URLs want it, in which a colon is never encoded.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purls(fill: impl FnOnce(&mut Components)) -> Vec<String> {
        let mut components = Components::new();
        fill(&mut components);
        components.into_keys().collect()
    }

    #[test]
    fn components_are_named_as_scanners_know_them() {
        let package = "zlib1g\t1:1.3+b1\tamd64\tzlib\t1:1.3\nno line of dpkg's\n";
        let distro = "pkg:deb/debian/zlib1g@1:1.3%2Bb1?arch=amd64&distro=debian-13&upstream=zlib%401:1.3";
        assert_eq!(purls(|all| debian(all, package, "debian", Some("13"))), [distro]);
        assert_eq!(
            purls(|all| {
                go(all, "dockerd", "github.com/docker/docker", Some("28.5.2"));
                go(all, "containerd", "github.com/containerd/containerd", Some("2.1.4"));
                go(all, "runc", "github.com/opencontainers/runc", None);
            }),
            [
                "pkg:golang/github.com/containerd/containerd/v2@v2.1.4#containerd",
                "pkg:golang/github.com/docker/docker@v28.5.2#dockerd",
                "pkg:golang/github.com/opencontainers/runc#runc"
            ]
        );
        let names = ["registry.k8s.io/etcd:3.6.8-0", "sha256:abc", "r.example:5000/a@sha256:abc"];
        let etcd = "pkg:oci/etcd@sha256:abc?repository_url=registry.k8s.io%2Fetcd&tag=3.6.8-0";
        assert_eq!(purls(|all| names.iter().for_each(|name| image(all, name, "sha256:abc"))), [etcd]);
        assert!(purls(|all| crates(all, CRATES)).iter().any(|purl| purl.starts_with("pkg:cargo/tiny_http@0.")));
    }

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (said, found) in [
            ("Docker version 28.5.2+dfsg2, build 1234", Some("28.5.2+dfsg2")),
            ("containerd containerd 2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376", Some("2.1.4")),
            ("runc version 1.3.2+ds1\nspec: 1.2.1", Some("1.3.2+ds1")),
            ("github.com/docker/buildx v0.29.1 a32761a", Some("0.29.1")),
            ("CNI bridge plugin v1.9.1\n", Some("1.9.1")),
            ("CNI bridge plugin version unknown\nCNI protocol versions supported: 0.1.0", None),
            ("", None),
        ] {
            assert_eq!(version(said), found, "{said}");
        }
    }
}
