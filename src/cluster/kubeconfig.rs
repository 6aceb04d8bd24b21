//! The kubeconfig that a client gets: its server is the address that the client itself used.

use std::net::{IpAddr, Ipv6Addr};

/// The server in the file on disk.
const LOCAL_SERVER: &str = "    server: https://localhost:8443\n";

/// The file on disk: the cluster, the user and the context are all named `kind`.
///
/// The three arguments are base64 of PEM, as kubeconfig files hold them.
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

/// The file with the server that `host`, a Host header, names, and the port as which it is published.
///
/// The API server's certificate cannot hold a name that nobody knew when baking: then the client is
/// told to check it for `localhost`. `None` when the header is no host name or address.
pub fn as_asked_for(file: &str, host: Option<&str>, port: u16, certificate_names: &[String]) -> Option<String> {
    let host = host.unwrap_or("localhost");
    let name = host_name(host)?;
    let known = certificate_names.iter().any(|known| known.eq_ignore_ascii_case(name.trim_matches(['[', ']'])));
    let check = if known { "" } else { "    tls-server-name: localhost\n" };
    Some(file.replace(LOCAL_SERVER, &format!("    server: https://{name}:{port}\n{check}")))
}

/// The host of a Host header without its port; IPv6 addresses keep their brackets.
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
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let valid = name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.trim_end_matches('.').split('.').all(label));
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
        let names = ["localhost".to_string(), "kind".to_string(), "::1".to_string()];
        let file = render("Q0E=", "Q0VSVA==", "S0VZ");
        let as_asked_for = |file: &str, host, names: &[String]| super::as_asked_for(file, host, 8443, names);
        assert_eq!(as_asked_for(&file, None, &names).unwrap(), file);
        assert_eq!(as_asked_for(&file, Some("localhost:10080"), &names).unwrap(), file);
        let known = as_asked_for(&file, Some("KIND:10080"), &names).unwrap();
        assert!(known.contains("server: https://KIND:8443\n") && !known.contains("tls-server-name"), "{known}");
        let unknown = as_asked_for(&file, Some("service-1"), &names).unwrap();
        assert!(unknown.contains("    server: https://service-1:8443\n    tls-server-name: localhost\n"), "{unknown}");
        assert!(as_asked_for(&file, Some("[::1]"), &names).unwrap().contains("server: https://[::1]:8443\n    cert"));
        assert_eq!(as_asked_for(&file, Some("a b"), &names), None);
    }

    #[test]
    fn the_port_is_the_published_one() {
        let file = render("Q0E=", "Q0VSVA==", "S0VZ");
        for host in [None, Some("localhost:20080")] {
            assert!(as_asked_for(&file, host, 18443, &["localhost".into()]).unwrap().contains("server: https://localhost:18443\n    cert"));
        }
    }
}
