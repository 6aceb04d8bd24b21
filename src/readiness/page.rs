//! What `/` answers: a page for people where a browser asks, and text for everybody else.

use base64::prelude::{Engine, BASE64_STANDARD};
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;

use crate::readiness::document::Document;
use crate::readiness::files::FILES;
use crate::readiness::target::{LOGS, RESET};

/// All of the page: it takes nothing from elsewhere, and reads `status.json`.
const PAGE: &str = include_str!("page.html");

/// The body and the headers, from the contents of `status.json` and a client's `Accept` header.
pub fn answer(status: &[u8], accept: Option<&str>) -> (String, [(&'static str, String); 5]) {
    let (body, content_type) = if accept.is_some_and(|types| types.contains("text/html")) {
        (PAGE.to_string(), "text/html; charset=utf-8")
    } else {
        (text(status), "text/plain; charset=utf-8")
    };
    let fields = [
        ("Content-Type", content_type.into()),
        ("Content-Security-Policy", policy()),
        ("Referrer-Policy", "no-referrer".into()),
        ("Vary", "Accept".into()),
        ("X-Content-Type-Options", "nosniff".into()),
    ];
    (body, fields)
}

fn text(status: &[u8]) -> String {
    let states =
        serde_json::from_slice(status).map_or_else(|_| String::from_utf8_lossy(status).into(), |status: Document| status.to_text());
    let files = FILES.map(|name| format!("/{name}")).join(" ");
    format!("{states}\nhere: {files} {LOGS} and, by POST, {RESET}; in a browser, a page\n")
}

/// Nothing runs and nothing styles the page but what is in it, it talks to nobody else, and nobody frames its button.
fn policy() -> String {
    let [style, script] = ["style", "script"].map(|tag| {
        let text = PAGE.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once(&format!("</{tag}>"))).map(|(text, _)| text);
        format!("'sha256-{}'", BASE64_STANDARD.encode(sha256(text.unwrap_or_default().as_bytes())))
    });
    format!("default-src 'none'; style-src {style}; script-src {script}; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
}

/// As TLS has it anyway.
fn sha256(data: &[u8]) -> Vec<u8> {
    TLS13_AES_128_GCM_SHA256.tls13().map(|suite| suite.common.hash_provider.hash(data).as_ref().to_vec()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::readiness::operations::GUARD;
    use crate::readiness::state::State;

    #[test]
    fn the_hash_is_sha256() {
        // FIPS 180-2, appendix B.1.
        let hex: String = sha256(b"abc").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    /// The names that follow `prefix` in the page.
    fn named(prefix: &str) -> BTreeSet<&'static str> {
        PAGE.split(prefix)
            .skip(1)
            .map(|rest| rest.split(|c: char| !(c.is_ascii_alphanumeric() || ".-".contains(c))).next().unwrap())
            .collect()
    }

    /// The page's script is not compiled: a field that is renamed would only be missing there.
    #[test]
    fn every_field_and_file_that_the_page_reads_exists() {
        let status: serde_json::Value = serde_json::from_str(&Document::new(&State::default(), &[]).to_json()).unwrap();
        let fields: BTreeSet<&str> =
            named("status.").into_iter().map(|name| name.split('.').next().unwrap()).filter(|name| *name != "json").collect();
        assert_eq!(fields.len(), status.as_object().unwrap().len(), "{fields:?}");
        assert!(fields.iter().all(|name| status.get(name).is_some()), "{fields:?}");
        let held = PAGE.split("?wait=").map(|before| before.rsplit(['\'', '/']).next().unwrap());
        let files: BTreeSet<&str> = held.take(5).chain(named("href=\"")).chain(named("fetch('")).filter(|name| *name != "data").collect();
        assert!(files.len() > 7, "{files:?}");
        assert!(files.iter().all(|name| FILES.contains(name) || [LOGS, RESET].contains(&format!("/{name}").as_str())), "{files:?}");
    }

    #[test]
    fn its_button_sends_what_a_reset_requires() {
        assert!(PAGE.contains(&format!("fetch('{}', {{method: 'POST', headers: {{'{GUARD}': 'reset'}}}})", RESET.trim_start_matches('/'))));
    }

    #[test]
    fn the_page_takes_nothing_from_elsewhere() {
        for elsewhere in ["http://", "https://", "src=", "url(", "@import", "style=\"", "onclick=\"", "innerHTML"] {
            assert!(!PAGE.contains(elsewhere), "{elsewhere}");
        }
    }
}
