//! What a request for one of the files under `/var/kind` is answered. Only `/config` is rewritten before it is sent, by a
//! function that the caller provides.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::readiness::files::{CONFIG, FAILED};
use crate::readiness::target::{asked_port, file_name};

/// Renders a client's kubeconfig from the file, the Host header that the client sent, and the port
/// on which the API server is published. `None` if the header is neither a host name nor an address.
pub type Rewrite = Box<dyn Fn(&str, Option<&str>, u16) -> Option<String> + Send + Sync>;

/// What answers are made from.
pub struct Files {
    pub dir: PathBuf,
    pub api_port: u16,
    pub rewrite: Rewrite,
}

/// What matters of a request's head (RFC 9112, sections 3 and 5).
#[derive(Debug, PartialEq)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub host: Option<String>,
}

impl Request {
    /// `None` if it is not one of HTTP/1.
    pub fn parse(head: &[u8]) -> Option<Request> {
        let head = String::from_utf8_lossy(head);
        let mut lines = head.lines();
        let [method, target, version] = lines.next()?.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let headers = lines.filter_map(|line| line.split_once(':'));
        let host = headers.filter(|(name, _)| name.eq_ignore_ascii_case("host")).map(|(_, host)| host.trim().to_string()).next();
        version.starts_with("HTTP/1.").then(|| Request { method: method.into(), target: target.into(), host })
    }
}

pub struct Answer {
    pub status: u16,
    media_type: &'static str,
    body: Vec<u8>,
}

impl Answer {
    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status, media_type: "text/plain", body: body.into() }
    }

    /// As it is sent; to HEAD it has no body.
    pub fn bytes(&self, has_body: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed\r\nAllow: GET, HEAD",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let (status, media_type, length) = (self.status, self.media_type, self.body.len());
        let head =
            format!("HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n");
        [head.as_bytes(), if has_body { &self.body } else { b"" }].concat()
    }
}

impl Files {
    pub fn answer(&self, request: &Request) -> Answer {
        if !["GET", "HEAD"].contains(&request.method.as_str()) {
            return Answer::text(405, "only GET and HEAD\n");
        }
        let Some(name) = file_name(&request.target) else { return Answer::text(404, "no such file\n") };
        let Some(contents) = read_regular(&self.dir.join(name)) else { return Answer::text(404, "not yet\n") };
        if name != CONFIG {
            return Answer::text(200, contents);
        }
        let Some(port) = asked_port(&request.target, self.api_port) else {
            return Answer::text(400, "port is not a port number; an example: /config?port=18443\n");
        };
        match (self.rewrite)(&String::from_utf8_lossy(&contents), request.host.as_deref(), port) {
            Some(config) => Answer { media_type: "application/yaml", ..Answer::text(200, config) },
            None => Answer::text(400, "the Host header is neither a host name nor an address\n"),
        }
    }

    /// The answer to whoever waits, if kind has failed.
    pub fn failure(&self) -> Option<Answer> {
        read_regular(&self.dir.join(FAILED)).map(|why| Answer::text(503, why))
    }
}

/// The contents of a regular file, never through a symbolic link.
fn read_regular(path: &Path) -> Option<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    /// The largest file, a kubeconfig, has about 8 KiB.
    const LIMIT: u64 = 64 * 1024;
    let mut contents = Vec::new();
    file.take(LIMIT).read_to_end(&mut contents).ok()?;
    Some(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, target: &str) -> Request {
        Request { method: method.into(), target: target.into(), host: None }
    }

    #[test]
    fn a_link_out_of_the_directory_is_not_served() {
        let dir = std::env::temp_dir().join(format!("kind-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.join("failed")).unwrap();
        std::fs::write(dir.join("timeline"), "0.1 boot\n").unwrap();
        let files = Files { dir: dir.clone(), api_port: 8443, rewrite: Box::new(|_, _, _| None) };
        let status = |target| files.answer(&request("GET", target)).status;
        assert_eq!((status("/failed"), status("/timeline"), status("/docker-ready")), (404, 200, 404));
        assert_eq!(files.answer(&request("POST", "/timeline")).status, 405);
        assert!(files.failure().is_none());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_request_is_its_first_line_and_its_host() {
        let with_host = |host: &str| Some(Request { host: Some(host.into()), ..request("GET", "/config") });
        for (head, expected) in [
            ("GET /config HTTP/1.1\r\nHost: ci:10080\r\n", with_host("ci:10080")),
            ("GET /config HTTP/1.1\r\nX: host: y\r\nHOST:a\r\nHost: b\r\n", with_host("a")),
            ("GET /config HTTP/1.1\r\nno colon\r\nHost: a b\r\n", with_host("a b")),
            ("HEAD /config?port=1 HTTP/1.0\r\n", Some(request("HEAD", "/config?port=1"))),
            ("BREW / HTTP/1.1\r\n", Some(request("BREW", "/"))),
            ("GET /config HTTP/2\r\n", None),
            ("GET /config\r\n", None),
            ("GET  /config HTTP/1.1\r\n", None),
            ("\u{16}\u{3}\u{1}\r\n", None),
            ("\r\n", None),
            ("", None),
        ] {
            assert_eq!(Request::parse(head.as_bytes()), expected, "{head:?}");
        }
    }

    #[test]
    fn an_answer_says_that_it_is_the_last_and_how_long_it_is() {
        let text = |status, has_body| String::from_utf8(Answer::text(status, "x\n").bytes(has_body)).unwrap();
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n";
        assert_eq!((text(200, true), text(200, false)), (format!("{head}x\n"), head.into()));
        assert!(text(405, false).starts_with("HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD\r\n"));
    }
}
