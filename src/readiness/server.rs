//! The file server on port 10080: serves the files under `/var/kind` from disk, and resets the cluster when asked to
//! (`POST /reset`). Only `/config` is rewritten before it is sent, by a function that the caller provides.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tiny_http::{Header, Method, Request, Response, Server};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::readiness::files::CONFIG;
use crate::readiness::target::{asked_port, file_name, is_reset};
use crate::readiness::{client_limits, Readiness};
use crate::threads;

type Answer = Response<std::io::Cursor<Vec<u8>>>;

/// Renders a client's kubeconfig from the file, the Host header that the client sent, and the port
/// on which the API server is published. `None` if the header is neither a host name nor an address.
pub type Rewrite = Box<dyn Fn(&str, Option<&str>, u16) -> Option<String> + Send>;

/// The header that a request for a reset must have, and its value. No form or link of a web page can send it.
pub const GUARD: (&str, &str) = ("X-Kind", "reset");
/// What a browser adds to every POST of a page's, even to the page's own host, and nobody else does.
const ORIGIN: &str = "Origin";

/// What responses are made from.
struct Files {
    readiness: Arc<Readiness>,
    dir: PathBuf,
    api_port: u16,
    rewrite: Rewrite,
}

/// Listens at once, so that a CI runner's port check passes from the first moment, and serves forever.
pub fn serve(config: &Config, readiness: &Arc<Readiness>, dir: PathBuf, rewrite: Rewrite) -> Result<()> {
    let listener = client_limits::open(config.files_address, readiness.clone(), &dir)?;
    let server = Server::from_listener(listener, None).map_err(|cause| Error::new(format!("cannot start the file server: {cause}")))?;
    let files = Files { readiness: readiness.clone(), dir, api_port: config.api_port, rewrite };
    let serve = move || {
        // Only `client_limits` connects, and sends only complete requests, so an error means that the server has ended.
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
    threads::start("http", serve)
}

fn answer(request: Request, files: &Files) {
    let response = if is_reset(request.url()) {
        files.reset(request.method(), |name| header(&request, name))
    } else {
        files.respond(request.method(), request.url(), header(&request, "Host").as_deref())
    };
    // A client that has disconnected needs no answer.
    let _ = request.respond(response);
}

fn header(request: &Request, name: &'static str) -> Option<String> {
    request.headers().iter().find(|header| header.field.equiv(name)).map(|header| header.value.to_string())
}

impl Files {
    fn reset(&self, method: &Method, header: impl Fn(&'static str) -> Option<String>) -> Answer {
        let (name, value) = GUARD;
        if *method != Method::Post {
            return text(405, "a reset is requested with POST\n").with_header(field("Allow", "POST"));
        }
        if header(name).is_none_or(|sent| sent != value) {
            return text(
                403,
                &format!("a reset needs the header {name}: {value}, for example: curl -X POST -H '{name}: {value}' .../reset\n"),
            );
        }
        if header(ORIGIN).is_some() {
            return text(403, "web pages may not reset the cluster\n");
        }
        match self.readiness.request_reset() {
            Ok(()) => text(202, "the cluster begins again: wait for kubernetes-ready\n"),
            Err(why) => text(409, &format!("the cluster cannot be reset: {why}\n")),
        }
    }

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
    fn a_reset_needs_a_header_that_no_page_can_send() {
        let dir = std::env::temp_dir().join(format!("kind-reset-{}", std::process::id()));
        let files = Files { readiness: Arc::new(Readiness::new(dir)), dir: "/".into(), api_port: 8443, rewrite: Box::new(|_, _, _| None) };
        for (method, headers, status) in [
            (Method::Get, &[("X-Kind", "reset")][..], 405),
            (Method::Options, &[], 405),
            (Method::Post, &[], 403),
            (Method::Post, &[("X-Kind", "save")], 403),
            (Method::Post, &[("X-Kind", "reset"), ("Origin", "http://localhost:10080")], 403),
            (Method::Post, &[("X-Kind", "reset"), ("Origin", "null")], 403),
            // It may, but there is no cluster.
            (Method::Post, &[("X-Kind", "reset")], 409),
        ] {
            let header = |wanted: &str| headers.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.to_string());
            assert_eq!(files.reset(&method, header).status_code().0, status, "{method} {headers:?}");
        }
    }

    #[test]
    fn a_link_out_of_the_directory_is_not_served() {
        let dir = std::env::temp_dir().join(format!("kind-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.join("failed")).unwrap();
        std::fs::write(dir.join("timeline"), "0.1 boot\n").unwrap();
        let files =
            Files { readiness: Arc::new(Readiness::new(dir.clone())), dir: dir.clone(), api_port: 8443, rewrite: Box::new(|_, _, _| None) };
        let status = |target| files.respond(&Method::Get, target, None).status_code().0;
        assert_eq!((status("/failed"), status("/timeline"), status("/docker-ready")), (404, 200, 404));
        assert_eq!(files.respond(&Method::Post, "/timeline", None).status_code().0, 405);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
