//! The kubeconfig for a client: its server is the address that the client itself used.

use crate::node::names;
use crate::readiness::target::Asked;

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

/// The file with the server from the Host header and the port, and with the name.
///
/// If the API server shows no certificate for that host (`is_served`), the file has clients check it for `localhost`.
/// `None` if the header is not a host name or address.
pub fn as_asked_for(file: &str, asked: &Asked, is_served: impl FnOnce(&str) -> bool) -> Option<String> {
    let host = names::in_host_header(asked.host.unwrap_or("localhost"))?;
    let check = if is_served(host.trim_matches(['[', ']'])) { "" } else { "    tls-server-name: localhost\n" };
    let file = file.replace(LOCAL_SERVER, &format!("    server: https://{host}:{}\n{check}", asked.port));
    // In quotes: YAML takes 1 for a number and no for a boolean.
    Some(asked.name.map_or(file.clone(), |name| file.replace(": kind\n", &format!(": \"{name}\"\n"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_outside_the_certificate_is_checked_as_localhost() {
        let file = render("Q0E=", "Q0VSVA==", "S0VZ");
        let is_served = |name: &str| ["localhost", "KIND", "::1"].contains(&name);
        let as_asked_for = |file: &str, host| super::as_asked_for(file, &Asked { host, port: 8443, name: None }, is_served);
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
            let asked = Asked { host, port: 18443, name: None };
            assert!(as_asked_for(&file, &asked, |_| true).unwrap().contains("server: https://localhost:18443\n    cert"));
        }
    }

    #[test]
    fn cluster_user_and_context_have_the_name_that_was_asked_for() {
        let asked = |name| as_asked_for(&render("Q0E=", "Q0VSVA==", "S0VZ"), &Asked { host: None, port: 8443, name }, |_| true).unwrap();
        let parse = |text: &str| yaml_serde::from_str::<serde_json::Value>(text).unwrap();
        for (name, expected) in [(None, "kind"), (Some("staging"), "staging"), (Some("1"), "1"), (Some("no"), "no")] {
            let config = parse(&asked(name));
            let context = &config["contexts"][0];
            let names = [
                &config["current-context"],
                &config["clusters"][0]["name"],
                &config["users"][0]["name"],
                &context["name"],
                &context["context"]["cluster"],
                &context["context"]["user"],
            ];
            assert!(names.iter().all(|name| **name == expected), "{config}");
            assert_eq!(
                (&config["kind"], &config["clusters"][0]["cluster"]["server"]),
                (&"Config".into(), &"https://localhost:8443".into())
            );
        }
    }
}
