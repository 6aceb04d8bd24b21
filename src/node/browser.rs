//! What a page in a browser may ask. Browsers refuse to connect to port 10080, one of the "bad ports" of the Fetch
//! standard, so the same files are served on other ports too. There a stranger's page can connect under a name of
//! its own that resolves to this container (DNS rebinding), and its browser would let it read the answers. The Host header
//! that the browser sends then is that name, so a name that can be anybody's is refused.

use std::net::IpAddr;

use crate::node::names;

/// Whether a request with this Host header may be answered where browsers connect.
pub fn may_ask(host: &str, certificate_names: &[String]) -> bool {
    let Some(name) = names::in_host_header(host) else { return false };
    let name = name.to_ascii_lowercase();
    if name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() || !name.contains('.') {
        return true;
    }
    let name = name.trim_end_matches('.');
    let is_ours = |known: &str| matches(&known.to_ascii_lowercase(), name);
    certificate_names.iter().any(|known| is_ours(known)) || names::own().unwrap_or_default().iter().any(|own| is_ours(own))
}

/// Whether a name of a certificate, which may begin with `*.`, is for `name`.
fn matches(known: &str, name: &str) -> bool {
    match known.strip_prefix("*.") {
        Some(domain) => name.split_once('.').is_some_and(|(_, rest)| rest == domain),
        None => known == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_can_be_anybodys_may_not_ask() {
        let certificate = ["*.ci.example", "kind.example", "kubernetes.default.svc"].map(String::from);
        for (host, expected) in [
            ("localhost:10081", true),
            ("127.0.0.1:10081", true),
            ("172.17.0.2", true),
            ("[::1]:10081", true),
            ("kind:10081", true),
            ("my_alias", true),
            ("KIND.example:80", true),
            ("kind.example.", true),
            ("build-7.ci.example", true),
            ("kubernetes.default.svc", true),
            ("evil.example", false),
            ("evil.example:10081", false),
            ("kind.example.evil.example", false),
            ("evilkind.example", false),
            ("a.b.ci.example", false),
            ("ci.example", false),
            ("127.0.0.1.evil.example", false),
            ("evil.", false),
            ("", false),
            ("evil.example@localhost", false),
        ] {
            assert_eq!(may_ask(host, &certificate), expected, "{host}");
        }
    }
}
