//! Looks for a secret wherever it may have been kept, as it is and in base64.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::process::{run, run_with_input};

/// For a gigabyte that is not in the page cache.
const LIMIT: Duration = Duration::from_secs(120);

/// Where the files below a path hold a password, in any form, as lines for a person.
pub fn found_in(path: &Path, user: &str, password: &str) -> Vec<String> {
    let forms = forms(user, password);
    let found = |(what, form): &(String, String)| holds(path, form).then(|| what.clone());
    forms.iter().filter_map(found).collect()
}

/// A login is kept as base64 of `user:password`; base64 of anything longer that holds the password has
/// it at one of three offsets, where all but the characters at its ends are always the same.
fn forms(user: &str, password: &str) -> Vec<(String, String)> {
    let mut forms =
        vec![("as it is".to_string(), password.to_string()), ("a login in base64".into(), base64(&format!("{user}:{password}")))];
    for offset in 0..3 {
        let whole = base64(&format!("{}{password}", &"xx"[..offset]));
        let (first, last) = ([0, 2, 3][offset], (offset + password.len()) * 8 / 6);
        forms.push((format!("in base64, from offset {offset}"), whole[first..last].to_string()));
    }
    forms
}

fn base64(text: &str) -> String {
    run_with_input(Command::new("base64").arg("--wrap=0"), text, LIMIT).ok()
}

/// Whether a file, or any file below a directory, holds this text.
pub fn holds(path: &Path, wanted: &str) -> bool {
    // Lines end at NUL, of which such files have many: without line breaks they would be whole files.
    let options = ["--recursive", "--text", "--null-data", "--fixed-strings", "--quiet", "-e", wanted];
    let outcome = run(Command::new("grep").args(options).arg(path), LIMIT);
    assert!(outcome.status.code().is_some_and(|code| code < 2), "{outcome}");
    outcome.succeeded()
}

#[test]
fn a_password_is_found_in_every_form() {
    let (user, password) = ("e2e", "pass-1234-word");
    assert_eq!(base64("e2e:pass-1234-word"), "ZTJlOnBhc3MtMTIzNC13b3Jk");
    let dir = std::env::temp_dir().join(format!("kind-secrets-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("below")).unwrap();
    let file = dir.join("below/file");
    for (text, forms) in [
        (password.to_string(), 1),
        (base64(&format!("{user}:{password}")), 2),
        (base64(&format!("{{{password}}}")), 1),
        (base64(&format!("{{{{{password}}}}}")), 1),
        (base64(&format!("{{{{{{{password}}}}}}}")), 1),
        ("pass-1234".to_string(), 0),
    ] {
        std::fs::write(&file, format!("{}{text} and more", "p".repeat((1 << 20) - 7))).unwrap();
        let found = found_in(&dir, user, password);
        assert_eq!(found.len(), forms, "{text}: {found:?}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
