//! The file server on port 10080: serves the files under `/var/kind` from disk and knows nothing else.
//! Only `/config` is rewritten on its way, by a function that the caller hands over.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use tiny_http::{Header, Method, Request, Response, Server};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::readiness::client_limits;
use crate::readiness::files::{CONFIG, FILES};

type Answer = Response<std::io::Cursor<Vec<u8>>>;

/// Makes the kubeconfig for a client out of the file, the Host header that the client sent, and the port
/// on which the API server is published. `None` when the header is neither a host name nor an address.
pub type Rewrite = Box<dyn Fn(&str, Option<&str>, u16) -> Option<String> + Send>;

/// What a request is answered from.
struct Files {
    dir: PathBuf,
    api_port: u16,
    rewrite: Rewrite,
}

/// Listens at once, so that a CI runner's port check passes from the first moment, and serves for ever.
pub fn serve(config: &Config, dir: PathBuf, rewrite: Rewrite) -> Result<()> {
    let listener = client_limits::open(config.files_address)?;
    let server = Server::from_listener(listener, None).map_err(|cause| Error::new(format!("cannot start the file server: {cause}")))?;
    let files = Files { dir, api_port: config.api_port, rewrite };
    let serve = move || {
        // Only `client_limits` connects, with whole requests: an error here is one of this connection.
        loop {
            match server.recv() {
                Ok(request) => answer(request, &files),
                Err(cause) => {
                    log::error!(target: "files", "the file server has ended: {cause}");
                    std::process::exit(1);
                }
            }
        }
    };
    let started = thread::Builder::new().name("http".into()).spawn(serve);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the file server's thread: {cause}")))
}

fn answer(request: Request, files: &Files) {
    let host = header(&request, "Host");
    let response = files.respond(request.method(), request.url(), host.as_deref());
    // A client that went away needs no answer.
    let _ = request.respond(response);
}

fn header(request: &Request, name: &'static str) -> Option<String> {
    request.headers().iter().find(|header| header.field.equiv(name)).map(|header| header.value.to_string())
}

impl Files {
    fn respond(&self, method: &Method, target: &str, host: Option<&str>) -> Answer {
        if ![Method::Get, Method::Head].contains(method) {
            return text(405, "only GET and HEAD\n").with_header(field("Allow", "GET, HEAD"));
        }
        let Some(name) = file_name(target) else { return text(404, "no such file\n") };
        let Some(contents) = read_regular(&self.dir.join(name)) else { return text(404, "not yet\n") };
        if name != CONFIG {
            return Response::from_data(contents).with_header(field("Content-Type", "text/plain"));
        }
        let Some(port) = asked_port(target, self.api_port) else {
            return text(400, "port is not a port number; an example: /config?port=18443\n");
        };
        match (self.rewrite)(&String::from_utf8_lossy(&contents), host, port) {
            Some(config) => Response::from_string(config).with_header(field("Content-Type", "application/yaml")),
            None => text(400, "the Host header is neither a host name nor an address\n"),
        }
    }
}

/// Which file a request target names: only the known flat names, whatever the query.
fn file_name(target: &str) -> Option<&'static str> {
    let path = target.split(['?', '#']).next()?.strip_prefix('/')?;
    FILES.into_iter().find(|name| *name == path)
}

/// The port that a client wants in its kubeconfig: with `?port=`, where the engine chose it only when
/// the container was there.
fn asked_port(target: &str, default: u16) -> Option<u16> {
    let query = target.split('#').next()?.split_once('?').map_or("", |(_, query)| query);
    match query.split('&').find_map(|pair| pair.strip_prefix("port=")) {
        Some(port) => port.parse().ok().filter(|port| *port != 0),
        None => Some(default),
    }
}

/// The contents of a regular file, never through a symbolic link.
fn read_regular(path: &Path) -> Option<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    /// The largest, a kubeconfig, has about 8 KiB.
    const LIMIT: u64 = 64 * 1024;
    let mut contents = Vec::new();
    file.take(LIMIT).read_to_end(&mut contents).ok()?;
    Some(contents)
}

fn text(status: u16, body: &str) -> Answer {
    Response::from_string(body).with_status_code(status)
}

fn field(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("the names and values are constants without line breaks")
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// A request target out of pieces that have fooled other servers, by xorshift64 (Marsaglia 2003).
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
                    // A name with one character too many, too few, or another one.
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

    /// How many of `count` targets name a file, and for how many a function gives another one, or none.
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

    /// The negative control: mistakes that servers have made are found out, with far fewer targets.
    #[test]
    fn careless_functions_are_noticed() {
        let by = |found: fn(&str, &str) -> bool| named_and_wrong(20_000, |target| FILES.into_iter().find(|name| found(target, name))).1;
        assert!(by(|target, name| target.ends_with(name)) > 0, "the last part of a path");
        assert!(by(|target, name| target.trim_matches('/') == name) > 0, "slashes that do not matter");
        assert!(by(|target, name| target.to_lowercase().split(['?', '#']).next() == Some(&format!("/{name}"))) > 0, "upper case");
        assert!(by(|target, name| target.split(['?', '#', '\0']).next() == Some(&format!("/{name}"))) > 0, "a zero byte");
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

    #[test]
    fn a_link_out_of_the_directory_is_not_served() {
        let dir = std::env::temp_dir().join(format!("kind-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.join("failed")).unwrap();
        std::fs::write(dir.join("timeline"), "0.1 boot\n").unwrap();
        let files = Files { dir: dir.clone(), api_port: 8443, rewrite: Box::new(|_, _, _| None) };
        let status = |target| files.respond(&Method::Get, target, None).status_code().0;
        assert_eq!((status("/failed"), status("/timeline"), status("/docker-ready")), (404, 200, 404));
        assert_eq!(files.respond(&Method::Post, "/timeline", None).status_code().0, 405);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
