//! The kubeconfig for a client: its server is the address that the client itself used.

use std::net::{IpAddr, Ipv6Addr};

use crate::node::names;

/// The server in the file on disk.
const LOCAL_SERVER: &str = "    server: https://localhost:8443\n";

/// The file on disk: the cluster, the user and the context are all named `kind`.
///
/// The three arguments are base64-encoded PEM, as in kubeconfig files.
pub fn render(ca: &str, certificate: &str, key: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
current-context: kind
clusters:
- name: kind
  cluster:
{LOCAL_SERVER}    certificate-authority-data: {ca}
contexts:
- name: kind
  context:
    cluster: kind
    user: kind
users:
- name: kind
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
"
    )
}

/// The file with the server from `host`, a Host header, and the port on which it is published.
///
/// If the API server shows no certificate for that name (`is_served`), the file has clients check it for `localhost`.
/// `None` if the header is not a host name or address.
pub fn as_asked_for(file: &str, host: Option<&str>, port: u16, is_served: impl FnOnce(&str) -> bool) -> Option<String> {
    let host = host.unwrap_or("localhost");
    let name = host_name(host)?;
    let check = if is_served(name.trim_matches(['[', ']'])) { "" } else { "    tls-server-name: localhost\n" };
    Some(file.replace(LOCAL_SERVER, &format!("    server: https://{name}:{port}\n{check}")))
}

/// The host in a Host header, without the port; IPv6 addresses keep their brackets.
fn host_name(header: &str) -> Option<&str> {
    if header.starts_with('[') {
        let end = header.find(']')?;
        let (name, port) = header.split_at(end + 1);
        name[1..end].parse::<Ipv6Addr>().ok()?;
        return (port.is_empty() || is_port(port.strip_prefix(':')?)).then_some(name);
    }
    let (name, port) = match header.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (header, None),
    };
    let valid = name.parse::<IpAddr>().is_ok() || names::is_host_name(name);
    (valid && port.is_none_or(is_port)).then_some(name)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_header_gives_its_name_or_nothing() {
        for (header, name) in [
            ("localhost:10080", Some("localhost")),
            ("docker", Some("docker")),
            ("my-kind.ci.example:80", Some("my-kind.ci.example")),
            ("group__project", Some("group__project")),
            ("172.17.0.2:10080", Some("172.17.0.2")),
            ("[::1]:10080", Some("[::1]")),
            ("[fd00::2]", Some("[fd00::2]")),
            ("", None),
            (":10080", None),
            ("a b", None),
            ("a\nserver: https://evil", None),
            ("host:port", None),
            ("host:99999", None),
            ("user@host", None),
            ("-x", None),
            ("[::1", None),
            ("[x]:1", None),
            ("[::1]x", None),
        ] {
            assert_eq!(host_name(header), name, "{header:?}");
        }
    }

    #[test]
    fn a_name_outside_the_certificate_is_checked_as_localhost() {
        let file = render("Q0E=", "Q0VSVA==", "S0VZ");
        let is_served = |name: &str| ["localhost", "KIND", "::1"].contains(&name);
        let as_asked_for = |file: &str, host| super::as_asked_for(file, host, 8443, is_served);
        assert_eq!(as_asked_for(&file, None).unwrap(), file);
        assert_eq!(as_asked_for(&file, Some("localhost:10080")).unwrap(), file);
        let known = as_asked_for(&file, Some("KIND:10080")).unwrap();
        assert!(known.contains("server: https://KIND:8443\n") && !known.contains("tls-server-name"), "{known}");
        let unknown = as_asked_for(&file, Some("service-1")).unwrap();
        assert!(unknown.contains("    server: https://service-1:8443\n    tls-server-name: localhost\n"), "{unknown}");
        assert!(as_asked_for(&file, Some("[::1]")).unwrap().contains("server: https://[::1]:8443\n    cert"));
        assert_eq!(as_asked_for(&file, Some("a b")), None);
    }

    #[test]
    fn the_port_is_the_published_one() {
        let file = render("Q0E=", "Q0VSVA==", "S0VZ");
        for host in [None, Some("localhost:20080")] {
            assert!(as_asked_for(&file, host, 18443, |_| true).unwrap().contains("server: https://localhost:18443\n    cert"));
        }
    }
}
