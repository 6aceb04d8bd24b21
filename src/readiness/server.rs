//! The file server on port 10080: serves the files under `/var/kind` from disk (`answer`) and nothing else, one request per
//! connection.
//!
//! | what a client could do | what it gets |
//! |---|---|
//! | connect when 512 others are connected | closed at once |
//! | send nothing, or a byte a second | closed after 5 s, however little is missing |
//! | send a head of more than 8 KiB | 431, closed |
//! | send a body, or another request | it is never read |
//! | wait for a file (`?wait=60`) | an answer then, or after that long, at most 600 s (`long_poll`) |
//! | wait when 256 others are waiting | answered at once, to leave room for clients that do not wait |
//! | not read its answer | closed after 5 s |
//!
//! So a client costs a thread, its head, and an answer of at most 64 KiB.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::listen::listen;
use crate::readiness::answer::{Answer, Files, Request, Rewrite};
use crate::readiness::long_poll;
use crate::readiness::target::{asked_wait, file_name, MAX_WAIT};
use crate::readiness::Readiness;
use crate::threads;

/// Concurrent clients; the connections of any more are closed at once. Each client costs a thread with `STACK` bytes, of
/// which it touches few.
const MAX_CLIENTS: usize = 512;
const STACK: usize = 256 * 1024;
/// How many of them may wait for a file.
const MAX_WAITING: usize = MAX_CLIENTS / 2;
/// Longest request head (bytes); browsers send about 1 KiB.
const MAX_HEAD: usize = 8 * 1024;
/// Time for a complete request to arrive, and again for its answer to be sent.
const CLIENT_LIMIT: Duration = Duration::from_secs(5);
/// After an error such as EMFILE: by then some connection has ended.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the clients' threads share.
struct Server {
    files: Files,
    readiness: Arc<Readiness>,
    clients: Arc<AtomicUsize>,
    waiting: Arc<AtomicUsize>,
}

/// Listens at once, so that a CI runner's port check passes from the first moment, and serves forever. `dir` has the files.
pub fn serve(config: &Config, readiness: &Arc<Readiness>, dir: PathBuf, rewrite: Rewrite) -> Result<()> {
    let address = config.files_address;
    let listener = listen(address).map_err(|cause| {
        Error::new(format!("the file server cannot listen on {address}: {cause}"))
            .advise("Stop what uses that port, or set KIND_LISTEN=ADDRESS:PORT")
    })?;
    let files = Files { dir, api_port: config.api_port, rewrite };
    let server = Arc::new(Server { files, readiness: readiness.clone(), clients: Arc::default(), waiting: Arc::default() });
    threads::start("clients", move || accept(&listener, &server))
}

fn accept(listener: &TcpListener, server: &Arc<Server>) {
    loop {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(ACCEPT_PAUSE);
            continue;
        };
        let Some(place) = Place::take(&server.clients, MAX_CLIENTS) else { continue };
        let server = server.clone();
        let serve = move || {
            let _place = place;
            // A client that has disconnected or was too slow needs no answer.
            let _ = server.serve(client);
        };
        // Without a name: see `logger`. If no thread can be started, the client's connection is closed.
        let _ = thread::Builder::new().stack_size(STACK).spawn(serve);
    }
}

/// One of a limited number of places, which is released however the client's thread ends.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>, places: usize) -> Option<Place> {
        let place = Place(taken.clone());
        (taken.fetch_add(1, Ordering::Relaxed) < places).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_write_timeout(Some(CLIENT_LIMIT))?;
        let Some(head) = read_head(&mut client)? else {
            return client.write_all(&Answer::text(431, "the request is too long\n").bytes(true));
        };
        let request = Request::parse(&head);
        let answer = match &request {
            Some(request) => self.answer(&client, request)?,
            None => Answer::text(400, "this is not an HTTP request\n"),
        };
        client.write_all(&answer.bytes(request.is_none_or(|request| request.method != "HEAD")))
    }

    fn answer(&self, client: &TcpStream, request: &Request) -> io::Result<Answer> {
        let ask = || self.files.answer(request);
        let limit = match asked_wait(&request.target) {
            Ok(Some(limit)) if file_name(&request.target).is_some() => limit,
            Err(()) => return Ok(Answer::text(400, format!("wait is a whole number of seconds up to {MAX_WAIT}\n"))),
            Ok(_) => return Ok(ask()),
        };
        let Some(_place) = Place::take(&self.waiting, MAX_WAITING) else { return Ok(ask()) };
        long_poll::answer(client, &self.readiness, limit, ask, || self.files.failure())
    }
}

/// Reads everything up to the empty line, or returns `None` if that is too long.
fn read_head(client: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let end = Instant::now() + CLIENT_LIMIT;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        client.set_read_timeout(Some(left))?;
        let length = client.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&buffer[..length]);
        if let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            head.truncate(end + 2);
            return Ok(Some(head));
        }
        if head.len() > MAX_HEAD {
            return Ok(None);
        }
    }
}
