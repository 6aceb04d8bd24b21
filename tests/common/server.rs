//! An HTTP server on loopback that can fail in many ways.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Clone, Copy)]
pub enum Fault {
    Status(u16),
    /// One byte is wrong.
    Corrupt,
    /// Sends half of the body, then stalls.
    Stall,
    /// Sends half of the body, then closes the connection.
    Close,
    /// Ignores range requests and sends the whole file.
    NoRanges,
}

#[derive(Default)]
pub struct State {
    pub files: HashMap<String, Vec<u8>>,
    /// The faults of the next requests for a path.
    faults: HashMap<String, Vec<Fault>>,
    /// The path of each request, and the start of its range.
    pub requests: Vec<(String, Option<usize>)>,
    /// Whether requests are held, as kind's file server does: until a file is there, or `/failed` is, or the
    /// seconds of `wait=` are over.
    pub holds: bool,
}

/// Serves published files, with the faults given to `spoil`.
pub struct Server {
    pub port: u16,
    pub state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server { port: listener.local_addr().unwrap().port(), state: Arc::default() };
        let state = server.state.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = state.clone();
                thread::spawn(move || answer(stream.unwrap(), &state));
            }
        });
        server
    }

    /// Adds a file, and its checksum as PATH.sha256.
    pub fn publish(&self, path: &str, contents: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.files.insert(format!("{path}.sha256"), format!("{}\n", sha256(contents)).into_bytes());
        state.files.insert(path.into(), contents.into());
    }

    pub fn spoil(&self, path: &str, faults: &[Fault]) {
        self.state.lock().unwrap().faults.insert(path.into(), faults.to_vec());
    }

    /// Holds requests from now on.
    pub fn hold(&self) {
        self.state.lock().unwrap().holds = true;
    }

    /// The start of the range of each request for a path.
    pub fn requests(&self, path: &str) -> Vec<Option<usize>> {
        self.state.lock().unwrap().requests.iter().filter(|(asked, _)| asked == path).map(|(_, range)| *range).collect()
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let (path, wait) = without_wait(request.split(' ').nth(1).unwrap());
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    // As tiny_http does.
    if head.iter().any(|line| !line.contains(':')) {
        let _ = write!(stream, "HTTP/1.1 400 said\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    let range = head.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    state.lock().unwrap().requests.push((path.clone(), range));
    if request.starts_with("POST ") {
        let status = post(&path, &head, &mut state.lock().unwrap());
        let _ = write!(stream, "HTTP/1.1 {status} said\r\nConnection: close\r\nContent-Length: 5\r\n\r\nsaid\n");
        return;
    }
    let end = Instant::now() + wait;
    let is_held = || {
        let state = state.lock().unwrap();
        state.holds && Instant::now() < end && !state.files.contains_key(&path) && !state.files.contains_key("/failed")
    };
    while is_held() {
        thread::sleep(Duration::from_millis(10));
    }
    let (contents, fault) = {
        let mut state = state.lock().unwrap();
        let faults = state.faults.entry(path.clone()).or_default();
        let fault = if faults.is_empty() { None } else { Some(faults.remove(0)) };
        (state.files.get(&path).cloned(), fault)
    };
    let mut status = 200;
    let mut body = contents.unwrap_or_else(|| {
        status = 404;
        b"not here".to_vec()
    });
    match fault {
        Some(Fault::Status(other)) => (status, body) = (other, b"an error".to_vec()),
        Some(Fault::Corrupt) => body[7] ^= 1,
        _ => {}
    }
    let start = range.unwrap_or(0);
    let mut more = String::new();
    if status == 200 && start > 0 && !matches!(fault, Some(Fault::NoRanges)) {
        if start >= body.len() {
            (status, body) = (416, vec![]);
        } else {
            more = format!("Content-Range: bytes {start}-{}/{}\r\n", body.len() - 1, body.len());
            (status, body) = (206, body[start..].to_vec());
        }
    }
    let head = format!("HTTP/1.1 {status} said\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n", body.len());
    let shown = if matches!(fault, Some(Fault::Stall | Fault::Close)) { body.len() / 2 } else { body.len() };
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..shown]));
    if matches!(fault, Some(Fault::Stall)) {
        // Wait until the client gives up.
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    }
}

/// A request for a reset, as kind's file server answers it: it is granted once `/reset` is published.
fn post(path: &str, head: &[String], state: &mut State) -> u16 {
    if !head.iter().any(|line| line == "X-Kind: reset") {
        return 403;
    }
    if !state.files.contains_key(path) {
        return 409;
    }
    state.files.remove("/kubernetes-ready");
    202
}

/// A target without what says how long it may take, and that.
fn without_wait(target: &str) -> (String, Duration) {
    let Some((path, query)) = target.split_once('?') else { return (target.into(), Duration::ZERO) };
    let (waits, others): (Vec<&str>, Vec<&str>) = query.split('&').partition(|pair| pair.starts_with("wait="));
    let seconds = waits.first().map_or(0, |wait| wait["wait=".len()..].parse().unwrap());
    let path = if others.is_empty() { path.into() } else { format!("{path}?{}", others.join("&")) };
    (path, Duration::from_secs(seconds))
}

pub fn sha256(contents: &[u8]) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(contents).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_string()
}
