//! The file server on ports 10080 and 10081: serves the files under `/var/kind` from disk, and a page that shows them (`page`).
//! Only `/config` is rewritten before it is sent, by a function that the caller provides. What may be done to the cluster is
//! in `operations`.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tiny_http::{Header, Method, Request, Response, Server};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::readiness::client_limits::{self, Clients};
use crate::readiness::files::{CONFIG, STATUS};
use crate::readiness::page;
use crate::readiness::target::{asked_name, asked_port, file_name, path, Asked};
use crate::readiness::Readiness;
use crate::threads;

type Answer = Response<std::io::Cursor<Vec<u8>>>;

/// Renders a client's kubeconfig from the file and what the client asks for. `None` if the Host header is neither a host
/// name nor an address.
pub type Rewrite = Box<dyn Fn(&str, &Asked) -> Option<String> + Send>;

/// What is not answered from a file, or not always.
pub struct Answers {
    pub config: Rewrite,
    pub clients: Clients,
}

/// What responses are made from.
struct Files {
    dir: PathBuf,
    api_port: u16,
    rewrite: Rewrite,
}

/// Listens at once, so that a CI runner's port check passes from the first moment, and serves forever.
pub fn serve(config: &Config, readiness: &Arc<Readiness>, dir: PathBuf, answers: Answers) -> Result<()> {
    let listener = client_limits::open(&config.files_addresses, readiness.clone(), answers.clients, &dir)?;
    let server = Server::from_listener(listener, None).map_err(|cause| Error::new(format!("cannot start the file server: {cause}")))?;
    let files = Files { dir, api_port: config.api_port, rewrite: answers.config };
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
    let response = files.respond(request.method(), request.url(), |name| header(&request, name));
    // A client that has disconnected needs no answer.
    let _ = request.respond(response);
}

fn header(request: &Request, name: &'static str) -> Option<String> {
    request.headers().iter().find(|header| header.field.equiv(name)).map(|header| header.value.to_string())
}

impl Files {
    fn respond(&self, method: &Method, target: &str, header: impl Fn(&'static str) -> Option<String>) -> Answer {
        if ![Method::Get, Method::Head].contains(method) {
            return text(405, "only GET and HEAD\n").with_header(field("Allow", "GET, HEAD"));
        }
        let is_page = path(target) == "/";
        let name = if is_page { Some(STATUS) } else { file_name(target) };
        let Some(name) = name else { return text(404, "no such file\n") };
        let Some(contents) = read_regular(&self.dir.join(name)) else { return text(404, "not yet\n") };
        if is_page {
            let (body, fields) = page::answer(&contents, header("Accept").as_deref());
            return fields.into_iter().fold(Response::from_string(body), |page, (name, value)| page.with_header(field(name, &value)));
        }
        if name != CONFIG {
            return Response::from_data(contents).with_header(field("Content-Type", "text/plain"));
        }
        let Some(port) = asked_port(target, self.api_port) else {
            return text(400, "port is not a port number; an example: /config?port=18443\n");
        };
        let Ok(name) = asked_name(target) else {
            return text(400, "name is 1 to 63 letters, digits, dots, dashes and underscores; an example: /config?name=staging\n");
        };
        let host = header("Host");
        match (self.rewrite)(&String::from_utf8_lossy(&contents), &Asked { host: host.as_deref(), port, name }) {
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
    /// `status.json` may have so much (`state`), a kubeconfig has about 8 KiB.
    const LIMIT: u64 = 128 * 1024;
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
    fn a_link_out_of_the_directory_is_not_served() {
        let dir = std::env::temp_dir().join(format!("kind-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.join("failed")).unwrap();
        std::fs::write(dir.join("timeline"), "0.1 boot\n").unwrap();
        let files = Files { dir: dir.clone(), api_port: 8443, rewrite: Box::new(|_, _| None) };
        let status = |target| files.respond(&Method::Get, target, |_| None).status_code().0;
        assert_eq!((status("/failed"), status("/timeline"), status("/docker-ready")), (404, 200, 404));
        assert_eq!(files.respond(&Method::Post, "/timeline", |_| None).status_code().0, 405);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
