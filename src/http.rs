//! The little of HTTP/1.1 (RFC 9112) that is spoken here beside tiny_http and ureq: one request on a connection, of which the
//! head alone is read, and one answer.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Longest request head (bytes); browsers send about 1 KiB.
const MAX_HEAD: usize = 8 * 1024;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// Reads a request's head, without the empty line that ends it; `None` if it is too long.
///
/// # Errors
/// The client has disconnected, or has not sent all of it within `limit`.
pub fn read_head(client: &mut TcpStream, limit: Duration) -> io::Result<Option<Vec<u8>>> {
    let end = Instant::now() + limit;
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
        if let Some(end) = end_of_head(&head) {
            head.truncate(end - 2);
            return Ok(Some(head));
        }
        if head.len() > MAX_HEAD {
            return Ok(None);
        }
    }
}

/// The length of a head with its empty line.
fn end_of_head(message: &[u8]) -> Option<usize> {
    message.windows(END_OF_HEAD.len()).position(|bytes| bytes == END_OF_HEAD).map(|at| at + END_OF_HEAD.len())
}

/// The values of all headers of this name.
pub fn values<'a>(head: &'a [u8], wanted: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    let headers = head.split(|byte| *byte == b'\n').skip(1).filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((line[..colon].trim_ascii(), line[colon + 1..].trim_ascii()))
    });
    headers.filter(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes())).map(|(_, value)| String::from_utf8_lossy(value))
}

/// The method and the target of a request.
pub fn request_line(head: &[u8]) -> (Cow<'_, str>, Cow<'_, str>) {
    let mut words = head.split(u8::is_ascii_whitespace).map(String::from_utf8_lossy);
    (words.next().unwrap_or_default(), words.next().unwrap_or_default())
}

/// The head of an answer.
pub fn head(status: &str, headers: &[(&str, &dyn Display)]) -> Vec<u8> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n").into_bytes()
}

/// The head of an answer that is text.
pub fn head_of_text(status: &str, length: usize) -> Vec<u8> {
    head(status, &[("Content-Type", &"text/plain"), ("Content-Length", &length)])
}

pub fn text(status: &str, body: &str) -> Vec<u8> {
    [&head_of_text(status, body.len()), body.as_bytes()].concat()
}

/// The status of an answer, such as `404`.
pub fn status(answer: &[u8]) -> Option<&str> {
    std::str::from_utf8(answer.split(|byte| *byte == b' ').nth(1)?).ok()
}

/// Empty in an answer to HEAD.
pub fn body(answer: &[u8]) -> &[u8] {
    &answer[end_of_head(answer).unwrap_or(answer.len())..]
}

/// Asks for a path on an open connection, and reads the whole answer.
pub fn get(mut server: impl Read + Write, path: &str) -> io::Result<Vec<u8>> {
    // In one piece: a server may answer what it has read.
    server.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = vec![];
    server.read_to_end(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_line_and_headers() {
        let head = b"GET /config?wait=1 HTTP/1.1\r\nHost:  a:1 \r\nX-Kind:reset\r\nhost: b\r\n";
        assert_eq!(request_line(head), ("GET".into(), "/config?wait=1".into()));
        assert_eq!(values(head, "Host").collect::<Vec<_>>(), ["a:1", "b"]);
        assert_eq!(values(head, "x-kind").collect::<Vec<_>>(), ["reset"]);
        for broken in [&b""[..], b"GET", b"\r\n", b"GET /\xff HTTP/1.1"] {
            assert!(values(broken, "Host").next().is_none(), "{broken:?}");
            let _ = request_line(broken);
        }
    }

    #[test]
    fn an_answer_says_how_long_it_is_and_that_it_is_the_last() {
        let answer = text("404 Not Found", "no\n");
        assert_eq!(answer, b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nno\n");
        assert_eq!((status(&answer), body(&answer)), (Some("404"), &b"no\n"[..]));
        assert_eq!(head("200 OK", &[]), b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        assert!(status(b"").is_none() && body(b"HTTP/1.1 200 OK\r\n").is_empty());
    }
}
