//! Long polling: a request with `?wait=SECONDS` is answered as soon as the file or `failed` exists, or when the time
//! is over. The client's own thread sleeps meanwhile, and wakes only when a file appears or disappears or the
//! client disconnects.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::http;
use crate::readiness::files::FAILED;
use crate::readiness::Readiness;

/// The client has closed its side; nix has no name for it.
const POLLRDHUP: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);
/// Added because poll(2) counts whole milliseconds: rounded down, the last one would be spent busy-looping.
const MILLISECOND: Duration = Duration::from_millis(1);

/// Asks until the answer is not 404, for at most `limit`. If kind has failed, waiting is pointless, and the answer is
/// 503 with the reason.
///
/// # Errors
/// The client went away.
pub fn answer(
    client: &TcpStream,
    readiness: &Readiness,
    limit: Duration,
    ask: impl Fn() -> io::Result<Vec<u8>>,
    ask_for: impl Fn(&str) -> io::Result<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    let end = Instant::now() + limit;
    loop {
        // Before asking, so that no change is missed.
        let change = readiness.next_change()?;
        let answer = ask()?;
        if http::status(&answer) != Some("404") {
            return Ok(answer);
        }
        let failed = ask_for(FAILED)?;
        if http::status(&failed) == Some("200") {
            // All our other answers have a body.
            return Ok(unavailable(&failed, http::body(&answer).is_empty()));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(answer);
        }
        sleep(client, &change, left)?;
    }
}

/// Sleeps until a file appears or disappears, or the time is over. An error means that the client has disconnected.
pub fn sleep(client: &TcpStream, change: &OwnedFd, time: Duration) -> io::Result<()> {
    let timeout = PollTimeout::try_from(time + MILLISECOND).unwrap_or(PollTimeout::MAX);
    // We never read what a client sends after its request; POLLRDHUP reports its end without reading.
    let mut polled = [PollFd::new(client.as_fd(), POLLRDHUP), PollFd::new(change.as_fd(), PollFlags::empty())];
    match poll(&mut polled, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(cause) => return Err(cause.into()),
    }
    // `None` is an event that nix has no name for.
    if polled[0].revents() != Some(PollFlags::empty()) {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    Ok(())
}

/// 503 with the reason from the response for `failed`. An answer to HEAD has no body.
fn unavailable(failed: &[u8], is_head: bool) -> Vec<u8> {
    let reason = http::body(failed);
    let head = http::head_of_text("503 Service Unavailable", reason.len());
    [head.as_slice(), if is_head { &[] } else { reason }].concat()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;
    use crate::readiness::files::KUBERNETES_READY;

    const LONG: Duration = Duration::from_secs(30);
    const MISSING: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nnot yet\n";
    const READY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nready\n";

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn readiness(test: &str) -> Readiness {
        let readiness = Readiness::new(std::env::temp_dir().join(format!("kind-hold-{}-{test}", std::process::id())));
        readiness.clear().unwrap();
        readiness
    }

    #[test]
    fn it_sleeps_until_files_come_and_asks_only_then() {
        let (readiness, (_client, server)) = (readiness("sleeps"), connection());
        let (asked, questions) = channel();
        thread::scope(|scope| {
            let held = scope.spawn(|| {
                let ask = || {
                    asked.send(()).unwrap();
                    let is_there = readiness.has_reached("there");
                    Ok(if is_there { READY } else { MISSING }.to_vec())
                };
                answer(&server, &readiness, LONG, ask, |_| Ok(MISSING.to_vec()))
            });
            questions.recv_timeout(LONG).unwrap();
            // A milestone changes a file, but neither adds nor removes one.
            readiness.publish("timeline", b"1");
            questions.recv_timeout(LONG).unwrap();
            readiness.publish("timeline", b"2");
            assert!(questions.recv_timeout(Duration::from_millis(300)).is_err(), "it asks although nothing came or went");
            readiness.milestone("there");
            readiness.publish(KUBERNETES_READY, b"ready\n");
            assert_eq!(held.join().unwrap().unwrap(), READY);
        });
    }

    #[test]
    fn a_client_that_went_away_is_not_held() {
        let (readiness, (client, server)) = (readiness("away"), connection());
        thread::scope(|scope| {
            let held = scope.spawn(|| answer(&server, &readiness, LONG, || Ok(MISSING.to_vec()), |_| Ok(MISSING.to_vec())));
            drop(client);
            assert_eq!(held.join().unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        });
    }

    #[test]
    fn the_end_of_the_time_and_a_failure_are_told_apart() {
        let (readiness, (_client, server)) = (readiness("end"), connection());
        let failed = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\ndockerd is out of order\n";
        let held = |limit, missing: &[u8], failed: &[u8]| {
            String::from_utf8(answer(&server, &readiness, limit, || Ok(missing.to_vec()), |_| Ok(failed.to_vec())).unwrap()).unwrap()
        };
        assert_eq!(held(Duration::from_millis(50), MISSING, MISSING).as_bytes(), MISSING);
        let reason = held(LONG, MISSING, failed);
        assert!(reason.starts_with("HTTP/1.1 503 ") && reason.ends_with("Content-Length: 24\r\n\r\ndockerd is out of order\n"), "{reason}");
        let to_head = held(LONG, b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\n", failed);
        assert!(to_head.ends_with("Content-Length: 24\r\n\r\n"), "{to_head}");
    }
}
