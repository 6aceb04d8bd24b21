//! Long polling: a request with `?wait=SECONDS` is answered as soon as the file or `failed` exists, or when the time
//! is over. The client's own thread sleeps meanwhile, and wakes only when a file appears or disappears or the
//! client disconnects.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::readiness::answer::Answer;
use crate::readiness::Readiness;

/// The client has closed its side; nix has no name for it.
const POLLRDHUP: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);
/// Added because poll(2) counts whole milliseconds: rounded down, the last one would be spent busy-looping.
const MILLISECOND: Duration = Duration::from_millis(1);

/// Asks until the answer is not 404, for at most `limit`. If kind has failed, waiting is pointless, and the answer is
/// that of `failure`.
///
/// # Errors
/// The client went away.
pub fn answer(
    client: &TcpStream,
    readiness: &Readiness,
    limit: Duration,
    ask: impl Fn() -> Answer,
    failure: impl Fn() -> Option<Answer>,
) -> io::Result<Answer> {
    let end = Instant::now() + limit;
    loop {
        // Before asking, so that no change is missed.
        let change = readiness.next_change()?;
        let answer = ask();
        if answer.status != 404 {
            return Ok(answer);
        }
        if let Some(failure) = failure() {
            return Ok(failure);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(answer);
        }
        sleep(client, &change, left)?;
    }
}

/// Sleeps until a file appears or disappears, or the time is over. An error means that the client has disconnected.
fn sleep(client: &TcpStream, change: &OwnedFd, time: Duration) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;
    use crate::readiness::files::KUBERNETES_READY;

    const LONG: Duration = Duration::from_secs(30);

    fn missing() -> Answer {
        Answer::text(404, "not yet\n")
    }

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
                    Answer::text(if is_there { 200 } else { 404 }, "")
                };
                answer(&server, &readiness, LONG, ask, || None)
            });
            questions.recv_timeout(LONG).unwrap();
            // A milestone changes a file, but neither adds nor removes one.
            readiness.publish("timeline", b"1");
            questions.recv_timeout(LONG).unwrap();
            readiness.publish("timeline", b"2");
            assert!(questions.recv_timeout(Duration::from_millis(300)).is_err(), "it asks although nothing came or went");
            readiness.milestone("there");
            readiness.publish(KUBERNETES_READY, b"ready\n");
            assert_eq!(held.join().unwrap().unwrap().status, 200);
        });
    }

    #[test]
    fn a_client_that_went_away_is_not_held() {
        let (readiness, (client, server)) = (readiness("away"), connection());
        thread::scope(|scope| {
            let held = scope.spawn(|| answer(&server, &readiness, LONG, missing, || None));
            drop(client);
            assert_eq!(held.join().unwrap().err().map(|cause| cause.kind()), Some(io::ErrorKind::ConnectionAborted));
        });
    }

    #[test]
    fn the_end_of_the_time_and_a_failure_are_told_apart() {
        let (readiness, (_client, server)) = (readiness("end"), connection());
        let held = |limit, failure: fn() -> Option<Answer>| answer(&server, &readiness, limit, missing, failure).unwrap().status;
        assert_eq!(held(Duration::from_millis(50), || None), 404);
        assert_eq!(held(LONG, || Some(Answer::text(503, "dockerd is out of order\n"))), 503);
    }
}
