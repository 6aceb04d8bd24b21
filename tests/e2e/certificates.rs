//! What the image holds of certificates and keys: an image must not die of age, nor give a key away.

use std::process::Command;

use base64::prelude::{Engine, BASE64_URL_SAFE_NO_PAD};

use crate::cluster::{shared, LIMIT};
use crate::engine::{docker, image, tools, Container};
use crate::process::run;

/// Where the cluster's own files lie. Authorities of the world are Debian's, layers are other images'.
const FOLDERS: &str = "/etc /kind /var /root /opt /home /srv /usr/local";
const LEFT_OUT: &str = r"-path /etc/ssl -o -path /etc/ca-certificates -o -path /kind/store -o -path /var/lib/dpkg";

/// A private key of nobody's.
pub fn new_key() -> String {
    let container = Container::idle(&[], &["sleep", "infinity"]);
    container.exec(&["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]).ok()
}

/// Runs a script in a container of the image in which nothing else runs; `$@` are files that match a pattern.
fn with_files(pattern: &str, script: &str) -> String {
    let container = Container::idle(&[], &["sleep", "infinity"]);
    // What a start begins with lies in archives.
    container
        .exec(&["sh", "-c", "for seed in /kind/seed/*.tar; do mkdir \"${seed%.tar}\" && tar -x -f \"$seed\" -C \"${seed%.tar}\"; done"])
        .ok();
    let find = format!(
        r#"find {FOLDERS} \( {LEFT_OUT} \) -prune -o -type f -size -4096k -exec grep -IlE -e '{pattern}' {{}} + 2>/dev/null | sort | while read -r file; do
{script}
done"#
    );
    container.exec(&["bash", "-c", &find]).ok()
}

/// Prints `FILE END SUBJECT BEGINNING` of each certificate of `$file`, in PEM or as base64 in a kubeconfig.
const CERTIFICATES: &str = r#"
  { cat "$file"; sed -nE 's/.*certificate(-authority)?-data: //p' "$file" | while read -r data; do echo "$data" | base64 -d; done; } |
    awk '/-BEGIN CERTIFICATE-/ {inside=1} inside {text = text $0 "\n"} /-END CERTIFICATE-/ {printf "%s", text | "openssl x509 -noout -enddate -subject -startdate -dateopt iso_8601 | tr \"\\n\" \" \""; close("openssl x509 -noout -enddate -subject -startdate -dateopt iso_8601 | tr \"\\n\" \" \""); print ""; text=""; inside=0}' |
    while read -r line; do echo "$file $line"; done"#;

/// A builder's clock may be ahead of a runner's by this much (seconds) and more.
const BACKDATED: i64 = 23 * 60 * 60;

/// Seconds since 1970 of a time as Docker and openssl write it.
pub fn seconds(time: &str) -> i64 {
    run(Command::new("date").args(["--utc", "--date", time, "+%s"]), LIMIT).ok().parse().expect("date prints a number")
}

/// When the image was made.
fn baked_at() -> i64 {
    seconds(&docker(&["image", "inspect", "--format", "{{.Created}}", image()]).ok())
}

/// Whether a certificate that was made at about `made` is valid for those whose clock is behind; `said` is
/// what openssl says of it.
pub fn is_backdated(said: &str, made: i64) -> bool {
    let begin = said.split_once("notBefore=").unwrap_or_else(|| panic!("no beginning in {said}")).1;
    seconds(begin.trim()) <= made - BACKDATED
}

fn this_year() -> u32 {
    run(Command::new("date").args(["+%Y"]), LIMIT).ok().parse().expect("date prints a year")
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn every_baked_certificate_is_valid_since_a_day_before_the_bake_and_for_ten_years() {
    let said = with_files("BEGIN CERTIFICATE|certificate-data: |authority-data: ", CERTIFICATES);
    println!("{said}");
    let (mut found, made) = (vec![], baked_at());
    for line in said.lines() {
        let (file, rest) = line.split_once(" notAfter=").unwrap_or_else(|| panic!("openssl did not read {line}"));
        let year: u32 = rest.get(..4).and_then(|year| year.parse().ok()).unwrap_or_else(|| panic!("no year in {line}"));
        assert!(year > this_year() + 10, "{line}");
        assert!(is_backdated(line, made), "not valid for whose clock is behind: {line}");
        found.push(file);
    }
    // Each that kubeadm, kubelet and we make is among them.
    for file in [
        "/etc/kubernetes/pki/ca.crt",
        "/etc/kubernetes/pki/front-proxy-ca.crt",
        "/etc/kubernetes/pki/front-proxy-client.crt",
        "/etc/kubernetes/pki/apiserver.crt",
        "/etc/kubernetes/pki/apiserver-kubelet-client.crt",
        "/etc/kubernetes/pki/apiserver-etcd-client.crt",
        "/etc/kubernetes/pki/etcd/ca.crt",
        "/etc/kubernetes/pki/etcd/server.crt",
        "/etc/kubernetes/pki/etcd/peer.crt",
        "/etc/kubernetes/pki/etcd/healthcheck-client.crt",
        "/etc/kubernetes/admin.conf",
        "/etc/kubernetes/kubelet.conf",
        "/etc/kubernetes/scheduler.conf",
        "/etc/kubernetes/controller-manager.conf",
        "/kind/credentials/client.crt",
        "/kind/credentials/config",
        "/kind/seed/kubelet/pki/kubelet.crt",
    ] {
        assert!(found.contains(&file), "{file} is not among {found:?}");
    }
}

/// What is served while the cluster runs: made at its start, or one of those above.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn the_certificates_that_are_served_are_valid_since_yesterday_and_for_ten_years() {
    let cluster = shared();
    for (who, port) in [("the API server", "8443"), ("kubelet", "10250"), ("etcd", "2379")] {
        let address = &tools().static_ip;
        let ask = format!(
            "openssl s_client -connect {address}:{port} </dev/null 2>/dev/null | openssl x509 -noout -enddate -startdate -dateopt iso_8601"
        );
        let end = cluster.container.exec(&["sh", "-c", &ask]).ok();
        let year: u32 = end.strip_prefix("notAfter=").and_then(|end| end.get(..4)?.parse().ok()).unwrap_or_else(|| panic!("{who}: {end}"));
        assert!(year > this_year() + 10, "{who}: {end}");
        assert!(is_backdated(&end, seconds("now")), "{who}: {end}");
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn every_key_in_the_image_is_for_root_alone() {
    let said = with_files("BEGIN [A-Z ]*PRIVATE KEY|client-key-data: |auths", r#"stat -c '%a %U %n' "$file""#);
    println!("{said}");
    let careless: Vec<&str> = said.lines().filter(|line| !line.starts_with("600 root ")).collect();
    assert!(careless.is_empty(), "{careless:?}");
    for file in [
        "/etc/kubernetes/pki/ca.key",
        "/etc/kubernetes/pki/sa.key",
        "/etc/kubernetes/admin.conf",
        "/kind/credentials/client.key",
        "/kind/seed/kubelet/pki/kubelet.key",
    ] {
        assert!(said.lines().any(|line| line.ends_with(&format!(" {file}"))), "{file} is not among\n{said}");
    }
}

/// The memory of programs that have read the keys, which no search for text finds there.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn the_saved_memory_which_has_the_keys_in_it_is_for_root_alone() {
    let container = Container::idle(&[], &["sleep", "infinity"]);
    assert_eq!(container.exec(&["stat", "-c", "%a %U", "/kind/restore"]).ok(), "700 root");
    assert!(container.exec(&["sh", "-c", "ls /kind/restore/images/pages-*.img"]).succeeded(), "the test is void");
}

/// Otherwise a controller's first request is refused in every start of an image that is older than an hour, which a test's image
/// never is.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn the_controllers_tokens_in_the_saved_memory_are_valid_for_ten_years() {
    let container = Container::idle(&[], &["sleep", "infinity"]);
    let script = "grep -aohE 'eyJ[A-Za-z0-9_-]+\\.eyJ[A-Za-z0-9_-]+\\.[A-Za-z0-9_-]+' /kind/restore/images/pages-*.img | sort -u";
    let tokens = container.exec(&["sh", "-c", script]).ok();
    let claims = |token: &str| -> Option<serde_json::Value> {
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?).ok()
    };
    let controllers = tokens.lines().filter_map(claims).filter(|claims| {
        claims["sub"].as_str().is_some_and(|name| name.starts_with("system:serviceaccount:kube-system:") && name.contains("controller"))
    });
    let days = |claims: &serde_json::Value| (claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap()) / (24 * 60 * 60);
    let found: Vec<(String, u64)> = controllers.map(|claims| (claims["sub"].to_string(), days(&claims))).collect();
    for name in ["replicaset-controller", "deployment-controller", "endpointslice-controller"] {
        assert!(found.iter().any(|(subject, _)| subject.contains(name)), "no token of {name}: {found:?}");
    }
    assert!(found.iter().all(|(_, days)| *days == 3650), "{found:?}");
}

/// fabric8's client takes a key in PKCS #8 for RSA, and reads others with Bouncy Castle alone
/// (https://github.com/fabric8io/kubernetes-client/issues/5656).
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn the_clients_key_is_one_that_java_reads_by_itself() {
    let container = Container::idle(&[], &["sleep", "infinity"]);
    let key = container.exec(&["cat", "/kind/credentials/client.key"]).ok();
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "it is not PKCS #8");
    container.exec(&["openssl", "rsa", "-in", "/kind/credentials/client.key", "-noout", "-check"]).ok();
}

/// The negative control of this file: a certificate of a year and a key that all may read are found.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_short_lived_certificate_and_an_open_key_are_noticed() {
    let container = Container::idle(&[], &["sleep", "infinity"]);
    let make = "openssl req -x509 -newkey rsa:2048 -noenc -days 365 -subj /CN=short -keyout /etc/short.key -out /etc/short.crt 2>/dev/null; chmod 644 /etc/short.key";
    container.exec(&["sh", "-c", make]).ok();
    let one = |file: &str, script: &str| container.exec(&["bash", "-c", &format!("file={file}\n{script}")]).ok();
    let said = one("/etc/short.crt", CERTIFICATES);
    let year: u32 =
        said.split_once("notAfter=").and_then(|(_, rest)| rest.get(..4)?.parse().ok()).unwrap_or_else(|| panic!("{said} {}", image()));
    assert!(year <= this_year() + 10 && said.contains("short"), "{said}");
    assert!(!is_backdated(&said, seconds("now")), "{said}");
    assert!(!one("/etc/short.key", r#"stat -c '%a %U %n' "$file""#).starts_with("600"));
}
