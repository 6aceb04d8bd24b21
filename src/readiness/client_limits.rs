//! Limits what a client of the file server can do, before tiny_http sees the request.
//!
//! tiny_http 0.12 has no time limits, bounds neither heads nor connections, lets new connections queue
//! behind silent ones, and stops accepting for good on an error. So it listens on a socket of which only this process
//! knows (`inner_socket`), and this module sends it only complete request heads, one per connection.
//!
//! | what a client could do | what it gets |
//! |---|---|
//! | connect when 512 others are connected | closed at once |
//! | ask under a name that is not the container's, where browsers connect, or from a page | 403 (`node::browser`) |
//! | send nothing, or a byte a second | closed after 5 s, however little is missing |
//! | send a head of more than 8 KiB | 431, closed |
//! | send a body | it is never read |
//! | send another request on the same connection | closed after the first answer |
//! | wait for a file, a reset or a save (`?wait=60`) | an answer then, or after that long, at most 600 s (`long_poll`) |
//! | wait when 256 others are waiting | answered at once, to leave room for clients that do not wait |
//! | ask for `/logs.tar.gz` | what `logs` collects, for one client at a time |
//! | not read its answer | closed after 5 s |
//! | vanish | its thread ends; tiny_http does not notice |
//!
//! So a client costs a thread with 64 KiB of stack, its head, and an answer of at most 128 KiB (`server`).

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::{FilesAddress, FILES_PORT};
use crate::error::{Error, Result};
use crate::http;
use crate::listen::{self, listen};
use crate::readiness::files::KUBERNETES_READY;
use crate::readiness::long_poll;
use crate::readiness::operations::ORIGIN;
use crate::readiness::target::{asked_wait, file_name, operation, path, unknown_parameter, LOGS, MAX_WAIT};
use crate::readiness::{operations, Operation, Readiness};
use crate::threads::{self, Place, Places, SMALL_STACK};

/// Concurrent clients; the connections of any more are closed at once. Each client costs a thread with `SMALL_STACK` bytes.
const MAX_CLIENTS: usize = 512;
/// How many of them may wait for a file.
const MAX_WAITING: usize = MAX_CLIENTS / 2;
/// Time for a complete request to arrive, and again for its answer to be sent.
const CLIENT_LIMIT: Duration = Duration::from_secs(5);
/// How long a save waits until everything is Ready, which is how long `kubectl wait` does.
const FIT_LIMIT: Duration = Duration::from_secs(30);
const FIT_POLL: Duration = Duration::from_millis(250);
/// A tmpfs in every container, which can be written to even if nothing else can (shm_overview(7)).
const SHARED_MEMORY: &str = "/dev/shm";
/// Headers that we drop, because there is one request per connection, and no body.
const DROPPED: [&str; 6] = ["connection", "keep-alive", "content-length", "transfer-encoding", "expect", "upgrade"];

/// What is decided or answered for clients elsewhere.
pub struct Clients {
    /// Whether a request with this Host header is answered where browsers connect.
    pub may_ask: Box<dyn Fn(&str) -> bool + Send + Sync>,
    /// Answers a request for `/logs.tar.gz`; the second argument is whether the head of the answer is all of it.
    pub send_logs: fn(&mut TcpStream, bool) -> io::Result<()>,
    /// Why the cluster must not be saved now, if so.
    pub unfit: fn() -> Option<String>,
}

/// Listens on `addresses`; returns the listener that the file server itself is to use. `dir` is where the served files are.
pub fn open(addresses: &[FilesAddress], readiness: Arc<Readiness>, others: Clients, dir: &Path) -> Result<UnixListener> {
    let mut listeners = vec![];
    for files in addresses {
        let FilesAddress { address, is_needed } = files;
        match listen(*address) {
            Ok(listener) => listeners.push((listener, files.is_for_browsers())),
            Err(cause) => {
                let error = Error::new(format!("the file server cannot listen on {address}: {cause}"))
                    .advise("Stop what uses that port, or set KIND_LISTEN=ADDRESS:PORT");
                if *is_needed {
                    return Err(error);
                }
                log::warn!(target: "files", "{error}");
            }
        }
    }
    let (listener, inner) =
        inner_socket(dir).map_err(|cause| Error::new(format!("cannot open the file server's inner socket: {cause}")))?;
    let gate = Arc::new(Gate { inner, readiness, others, waiting: Arc::default() });
    let places = Places::new(MAX_CLIENTS, SMALL_STACK);
    for (listener, is_for_browsers) in listeners {
        let (gate, places) = (gate.clone(), places.clone());
        let serve = move |client| {
            // A client that has disconnected or was too slow needs no answer.
            let _ = gate.serve(client, is_for_browsers);
        };
        threads::start("clients", move || listen::accept(listener.incoming(), &places, serve))?;
    }
    Ok(listener)
}

/// A socket without a name: it is removed as soon as it is bound, and reached through a descriptor of its inode
/// (`O_PATH`, open(2)). Its name could be found by others who share the directory, and an abstract one by everybody in
/// the network namespace, such as a pod with `hostNetwork`; they would get past these limits.
fn inner_socket(dir: &Path) -> io::Result<(UnixListener, File)> {
    let bind = |dir: &Path| {
        let path = dir.join(format!(".files-{}", std::process::id()));
        // Of a process that was killed at this point and had the same pid.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let inode = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&path);
        fs::remove_file(&path)?;
        Ok((listener, inode?))
    };
    // Not on a disk that may be full; nor can a file system be made read-only (`mount -o remount,ro`) as long as
    // something on it is open and removed.
    bind(Path::new(SHARED_MEMORY)).or_else(|_| bind(dir))
}

/// What the clients' threads share.
struct Gate {
    inner: File,
    readiness: Arc<Readiness>,
    others: Clients,
    waiting: Arc<AtomicUsize>,
}

impl Gate {
    fn serve(&self, mut client: TcpStream, is_for_browsers: bool) -> io::Result<()> {
        client.set_write_timeout(Some(CLIENT_LIMIT))?;
        let Some(head) = http::read_head(&mut client, CLIENT_LIMIT)? else {
            return client.write_all(&http::text("431 Request Header Fields Too Large", ""));
        };
        // Nobody but a page in a browser sends an origin: wherever it has come in, it must name this container.
        let is_from_browser = is_for_browsers || http::values(&head, ORIGIN).next().is_some();
        if let Some(host) = http::values(&head, "Host").find(|host| is_from_browser && !(self.others.may_ask)(host)) {
            let why = format!(
                "{host} is not a name of this container's, and may be a stranger's page. Ask on port {FILES_PORT} or by address, or build the image with KIND_SANS={}\n",
                host.split(':').next().unwrap_or_default()
            );
            return client.write_all(&http::text("403 Forbidden", &why));
        }
        let (method, target) = http::request_line(&head);
        if path(&target) == LOGS && (method == "GET" || method == "HEAD") {
            return (self.others.send_logs)(&mut client, method == "HEAD");
        }
        client.write_all(&self.answer(&client, &head, &target)?)
    }

    fn answer(&self, client: &TcpStream, head: &[u8], target: &str) -> io::Result<Vec<u8>> {
        if let Some((parameter, known)) = unknown_parameter(target) {
            let why = format!("unknown parameter {parameter}: {} takes wait=SECONDS and {known}, without a value\n", path(target));
            return Ok(http::text("400 Bad Request", &why));
        }
        let operation = operation(target);
        let ask = || match operation {
            Some(operation) => self.begin(client, operation, head),
            None => ask(&self.inner, &one_request(head)),
        };
        let limit = match asked_wait(target) {
            Ok(Some(limit)) if operation.is_some() || file_name(target).is_some() => limit,
            Err(()) => return Ok(http::text("400 Bad Request", &format!("wait is a whole number of seconds up to {MAX_WAIT}\n"))),
            Ok(_) => return ask(),
        };
        let Some(_place) = Place::take(&self.waiting, MAX_WAITING) else { return ask() };
        let ask_for = |file: &str| self::ask(&self.inner, &one_request(format!("GET /{file} HTTP/1.0\r\n").as_bytes()));
        let Some(operation) = operation else { return long_poll::answer(client, &self.readiness, limit, ask, ask_for) };
        let answer = ask()?;
        if http::status(&answer) != Some("202") {
            return Ok(answer);
        }
        // Nothing of the earlier cluster is ready any more.
        let ready = long_poll::answer(client, &self.readiness, limit, || ask_for(KUBERNETES_READY), ask_for)?;
        Ok(if http::status(&ready) == Some("404") {
            http::text("504 Gateway Timeout", &format!("the {} goes on: wait for kubernetes-ready\n", operation.name()))
        } else {
            ready
        })
    }

    /// Requests the operation that a client has asked for. A save is not refused for what becomes Ready a moment later.
    fn begin(&self, client: &TcpStream, operation: Operation, head: &[u8]) -> io::Result<Vec<u8>> {
        let header = |name: &str| http::values(head, name).next().map(Cow::into_owned);
        if let Some((status, why)) = operations::forbids(operation, http::request_line(head).0 == "POST", header) {
            return Ok(http::text(status, &why));
        }
        let end = Instant::now() + FIT_LIMIT;
        let unfit = loop {
            if !operation.saves() || !self.readiness.would_begin(operation) {
                break None;
            }
            let change = self.readiness.next_change()?;
            // In a thread of its own: TLS needs more than `SMALL_STACK`.
            let check = threads::start_for("save", self.others.unfit).map(|check| check.join().unwrap_or_default());
            let unfit = check.unwrap_or_else(|error| Some(error.to_string()));
            if unfit.is_none() || Instant::now() >= end {
                break unfit;
            }
            long_poll::sleep(client, &change, FIT_POLL)?;
        };
        let refused = unfit.or_else(|| self.readiness.request(operation).err().map(str::to_string));
        let (status, text) = operations::answer(operation, refused);
        Ok(http::text(status, &text))
    }
}

/// Has tiny_http answer, one request at a time: for each connection beyond its four it would start
/// a thread, and panic if it cannot.
fn ask(inner: &File, request: &[u8]) -> io::Result<Vec<u8>> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut server = UnixStream::connect(format!("/proc/self/fd/{}", inner.as_raw_fd())).inspect_err(|cause| {
        if cause.kind() == io::ErrorKind::ConnectionRefused {
            log::error!(target: "files", "the file server has ended, so clients could no longer see any state");
            std::process::exit(1);
        }
    })?;
    server.set_read_timeout(Some(CLIENT_LIMIT))?;
    server.write_all(request)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(one_answer(answer))
}

/// The head as the file server gets it: without a body, and with `Connection: close`.
fn one_request(head: &[u8]) -> Vec<u8> {
    let mut request = Vec::with_capacity(head.len() + 32);
    for (number, line) in head.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default().trim_ascii();
        if number == 0 || !DROPPED.iter().any(|dropped| name.eq_ignore_ascii_case(dropped.as_bytes())) {
            request.extend_from_slice(line);
        }
    }
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    request
}

/// The answer, with `Connection: close` for the client.
fn one_answer(answer: Vec<u8>) -> Vec<u8> {
    match answer.windows(2).position(|bytes| bytes == b"\r\n") {
        Some(end) => [&answer[..end], b"\r\nConnection: close", &answer[end..]].concat(),
        None => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_passes_without_body_and_keep_alive() {
        let head =
            b"POST /connection:x HTTP/1.1\r\nHost: h\r\nCONNECTION: keep-alive\r\nContent-Length : 9\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(one_request(head), b"POST /connection:x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    }

    #[test]
    fn an_answer_says_that_it_is_the_last() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx".to_vec();
        assert_eq!(one_answer(answer), b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx");
    }
}
