//! Parses a request's target (RFC 9112, section 3.2): the name of a file, the port for a kubeconfig,
//! and how long the answer may take.

use std::time::Duration;

use crate::readiness::files::FILES;
use crate::readiness::state::Operation;

/// How long a client may have its request held (seconds).
pub const MAX_WAIT: u64 = 600;

/// The paths at which a request with POST resets the cluster, or saves it.
pub const RESET: &str = "/reset";
pub const SAVE: &str = "/save";
/// In the query of either: go back to the baked cluster, and end the container when it is saved.
pub const BAKED: &str = "baked";
pub const STOP: &str = "stop";

/// The path of everything that explains the node.
pub const LOGS: &str = "/logs.tar.gz";

/// The path of a request target, without the query.
pub fn path(target: &str) -> &str {
    target.split(['?', '#']).next().unwrap_or_default()
}

/// The operation that a request with POST for this target asks for.
pub fn operation(target: &str) -> Option<Operation> {
    let (plain, word, with_word) = parameters(target)?;
    Some(if asked(target, word) == Some("") { with_word } else { plain })
}

/// The operation at a path, the word that its query may have, and the operation with that word.
fn parameters(target: &str) -> Option<(Operation, &'static str, Operation)> {
    match path(target) {
        RESET => Some((Operation::Reset, BAKED, Operation::ResetToBaked)),
        SAVE => Some((Operation::Save, STOP, Operation::SaveAndStop)),
        _ => None,
    }
}

/// What an operation's target has in its query that means nothing there, and what would.
pub fn unknown_parameter(target: &str) -> Option<(&str, &'static str)> {
    let (_, known, _) = parameters(target)?;
    let (_, query) = target.split('#').next()?.split_once('?')?;
    let is_known = |parameter: &str| parameter.is_empty() || parameter == known || parameter.starts_with("wait=");
    query.split('&').find(|parameter| !is_known(parameter)).map(|parameter| (parameter, known))
}

/// The file that a request target names: only the known flat names, whatever the query.
pub fn file_name(target: &str) -> Option<&'static str> {
    let path = path(target).strip_prefix('/')?;
    FILES.into_iter().find(|name| *name == path)
}

/// What a client asks of its kubeconfig.
pub struct Asked<'a> {
    /// The Host header.
    pub host: Option<&'a str>,
    /// On which the API server is published.
    pub port: u16,
    /// Of the cluster, the user and the context.
    pub name: Option<&'a str>,
}

/// The port that a client wants in its kubeconfig: `?port=`, for when the engine chose the port only after it had
/// created the container.
pub fn asked_port(target: &str, default: u16) -> Option<u16> {
    match asked(target, "port=") {
        Some(port) => port.parse().ok().filter(|port| *port != 0),
        None => Some(default),
    }
}

/// The name that a client wants for the cluster in its kubeconfig: `?name=`, of letters, digits, dots, dashes and
/// underscores. The value is an error if it is anything else, or longer than 63 characters.
pub fn asked_name(target: &str) -> Result<Option<&str>, ()> {
    let Some(name) = asked(target, "name=") else { return Ok(None) };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(Some(name))
    } else {
        Err(())
    }
}

/// How long a client is willing to wait: `?wait=`, in whole seconds. The value is an error if it is not a number, or
/// more than `MAX_WAIT`.
pub fn asked_wait(target: &str) -> Result<Option<Duration>, ()> {
    let Some(seconds) = asked(target, "wait=") else { return Ok(None) };
    let is_number = !seconds.is_empty() && seconds.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = seconds.parse().ok().filter(|seconds| is_number && *seconds <= MAX_WAIT).ok_or(())?;
    Ok(Some(Duration::from_secs(seconds)))
}

/// The first value of a parameter, such as `port=`, in a target's query.
fn asked<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = target.split('#').next()?.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_say_how_long_it_waits() {
        let seconds = |seconds| Ok(Some(Duration::from_secs(seconds)));
        for (target, wait) in [
            ("/kubernetes-ready", Ok(None)),
            ("/kubernetes-ready?wait=60", seconds(60)),
            ("/config?port=1&wait=0", seconds(0)),
            ("/config?wait=600#wait=1", seconds(600)),
            ("/config#?wait=1", Ok(None)),
            ("/config?await=x", Ok(None)),
            ("/config?wait=601", Err(())),
            ("/config?wait=", Err(())),
            ("/config?wait=+1", Err(())),
            ("/config?wait=1.5", Err(())),
            ("/config?wait=18446744073709551616", Err(())),
        ] {
            assert_eq!(asked_wait(target), wait, "{target}");
        }
    }

    #[test]
    fn a_path_is_what_comes_before_the_query() {
        for (target, expected) in [
            ("/reset", Some(Operation::Reset)),
            ("/reset?wait=30", Some(Operation::Reset)),
            ("/reset#x", Some(Operation::Reset)),
            ("/reset?baked&wait=30", Some(Operation::ResetToBaked)),
            ("/save?wait=30", Some(Operation::Save)),
            ("/save?wait=30&stop", Some(Operation::SaveAndStop)),
            ("/save?stopped", Some(Operation::Save)),
            ("/reset/", None),
            ("reset", None),
            ("//reset", None),
            ("/saved", None),
        ] {
            assert_eq!(operation(target), expected, "{target}");
        }
    }

    #[test]
    fn a_mistyped_parameter_of_an_operation_is_found() {
        for (target, unknown) in [
            ("/reset", None),
            ("/reset?", None),
            ("/reset?baked&wait=30#waitt=1", None),
            ("/save?stop&", None),
            ("/config?waitt=30", None),
            ("/reset?waitt=30", Some(("waitt=30", BAKED))),
            ("/reset?wait=30&baked=1", Some(("baked=1", BAKED))),
            ("/save?baked", Some(("baked", STOP))),
        ] {
            assert_eq!(unknown_parameter(target), unknown, "{target}");
        }
    }

    #[test]
    fn only_the_known_names_are_files() {
        for name in FILES {
            assert_eq!(file_name(&format!("/{name}")), Some(name));
            assert_eq!(file_name(&format!("/{name}?wait=1")), Some(name));
        }
        for target in [
            "",
            "/",
            "config",
            "//config",
            "/../config",
            "/./config",
            "/config/",
            "/%63onfig",
            "/.config.new",
            "/etc/passwd",
            "http://h/config",
            "*",
        ] {
            assert_eq!(file_name(target), None, "{target}");
        }
    }

    /// A request target made of pieces that have fooled other servers, chosen with xorshift64 (Marsaglia 2003).
    fn target(state: &mut u64) -> String {
        let mut next = |count: usize| {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            (*state % count as u64) as usize
        };
        let pieces = ["/", "..", ".", "%2e", "%2F", "%00", "\\", "?", "#", "//", "http://h", " ", "\0", "é", "secret", ".new", ";x", "&"];
        let mut target = if next(4) > 0 { "/".to_string() } else { String::new() };
        for _ in 0..next(4) {
            match next(3) {
                0 => target.push_str(FILES[next(FILES.len())]),
                1 => target.push_str(pieces[next(pieces.len())]),
                _ => {
                    // A name with one character added, removed or changed.
                    let mut name: Vec<char> = FILES[next(FILES.len())].chars().collect();
                    let at = next(name.len());
                    match next(3) {
                        0 => drop(name.remove(at)),
                        1 => name.insert(at, char::from(next(128) as u8)),
                        _ => name[at] = name[at].to_ascii_uppercase(),
                    }
                    target.extend(name);
                }
            }
        }
        target
    }

    /// How many of `count` targets name a file, and for how many a function gives the wrong result.
    fn named_and_wrong(count: usize, function: impl Fn(&str) -> Option<&'static str>) -> (usize, usize) {
        let (mut state, mut named, mut wrong) = (0x9e37_79b9_7f4a_7c15, 0, 0);
        for _ in 0..count {
            let target = target(&mut state);
            let is_named = |name: &&str| {
                let rest = target.strip_prefix('/').and_then(|rest| rest.strip_prefix(name));
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['?', '#']))
            };
            let expected = FILES.into_iter().find(is_named);
            named += usize::from(expected.is_some());
            wrong += usize::from(function(&target) != expected);
        }
        (named, wrong)
    }

    #[test]
    fn a_million_targets_give_a_file_exactly_where_one_is_named() {
        let (named, wrong) = named_and_wrong(1_000_000, file_name);
        assert!(named > 10_000, "the targets name files often enough: {named}");
        assert_eq!(wrong, 0);
    }

    /// The negative control: mistakes that servers have made are found, with far fewer targets.
    #[test]
    fn careless_functions_are_noticed() {
        let by = |found: fn(&str, &str) -> bool| named_and_wrong(20_000, |target| FILES.into_iter().find(|name| found(target, name))).1;
        assert!(by(|target, name| target.ends_with(name)) > 0, "the last part of a path");
        assert!(by(|target, name| target.trim_matches('/') == name) > 0, "slashes that do not matter");
        assert!(by(|target, name| target.to_lowercase().split(['?', '#']).next() == Some(&format!("/{name}"))) > 0, "upper case");
        assert!(by(|target, name| target.split(['?', '#', '\0']).next() == Some(&format!("/{name}"))) > 0, "a zero byte");
    }

    #[test]
    fn the_name_in_the_kubeconfig_may_be_asked_for() {
        for (target, name) in [
            ("/config", Ok(None)),
            ("/config?name=staging", Ok(Some("staging"))),
            ("/config?port=1&name=a_b-c.1#name=d", Ok(Some("a_b-c.1"))),
            ("/config?username=x", Ok(None)),
            ("/config?name=", Err(())),
            ("/config?name=a%20b", Err(())),
            ("/config?name=a\"b", Err(())),
            (&format!("/config?name={}", "a".repeat(64)), Err(())),
        ] {
            assert_eq!(asked_name(target), name, "{target}");
        }
    }

    #[test]
    fn the_port_of_the_kubeconfig_may_be_asked_for() {
        for (target, port) in [
            ("/config", Some(8443)),
            ("/config?port=18443", Some(18443)),
            ("/config?a=b&port=1#port=2", Some(1)),
            ("/config?support=1", Some(8443)),
            ("/config?port=", None),
            ("/config?port=0", None),
            ("/config?port=70000", None),
            ("/config?port=1%0aserver", None),
        ] {
            assert_eq!(asked_port(target, 8443), port, "{target}");
        }
    }
}
