//! As much of gRPC over HTTP/2 (RFC 9113) as a request to containerd needs: one connection, one request.
//!
//! A client library would bring an asynchronous runtime with it, and `ctr` takes 23 MB and 60 ms for each
//! request. We write headers without compression (RFC 7541, 6.2.2) and never read them: a response contains a
//! message if the request succeeded, and none if it failed.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::config::{CONTAINERD_SOCKET, NAMESPACE};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first stream that a client may open, and our only one.
const STREAM: u32 = 1;
/// A frame's header: length, type, flags, stream.
const FRAME_HEADER: usize = 9;
/// The longest frame payload that the other side may send by default (bytes).
const LONGEST_FRAME: usize = 1 << 14;
/// A message's header: whether it is compressed, length.
const MESSAGE_HEADER: usize = 5;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
/// On settings and pings: this frame acknowledges one.
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The namespace that pods and Docker share. The CRI plugin has no other, whatever it is asked for.
const METADATA: (&str, &str) = ("containerd-namespace", NAMESPACE);

/// Sends containerd one message to a method such as `/package.Service/Method` and returns the response, or `None` if it
/// refuses.
pub fn ask(method: &str, request: &[u8], limit: Duration) -> io::Result<Option<Vec<u8>>> {
    Call::open(method, request, limit)?.next()
}

/// A request that was sent, and what has been received so far.
pub struct Call {
    stream: UnixStream,
    /// Bytes that are not a complete frame yet.
    frames: Vec<u8>,
    /// Bytes that are not a complete message yet.
    messages: Vec<u8>,
    ended: bool,
}

impl Call {
    /// Sends containerd a request whose response may have several messages.
    pub fn open(method: &str, request: &[u8], limit: Duration) -> io::Result<Call> {
        Call::open_on(Path::new(CONTAINERD_SOCKET), method, request, limit)
    }

    fn open_on(socket: &Path, method: &str, request: &[u8], limit: Duration) -> io::Result<Call> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_read_timeout(Some(limit))?;
        let mut headers = vec![];
        let fixed = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "localhost")];
        for (name, value) in fixed.into_iter().chain([("content-type", "application/grpc"), ("te", "trailers"), METADATA]) {
            add_header(&mut headers, name, value);
        }
        let mut body = vec![0];
        body.extend((request.len() as u32).to_be_bytes());
        body.extend(request);
        let mut bytes = PREFACE.to_vec();
        add_frame(&mut bytes, SETTINGS, 0, 0, &[]);
        add_frame(&mut bytes, HEADERS, END_HEADERS, STREAM, &headers);
        add_frame(&mut bytes, DATA, END_STREAM, STREAM, &body);
        stream.write_all(&bytes)?;
        Ok(Call { stream, frames: vec![], messages: vec![], ended: false })
    }

    /// How long `next` waits from now on; without a limit, forever.
    pub fn set_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(limit)
    }

    /// The next message, or `None` at the end of the response.
    ///
    /// # Errors
    /// `WouldBlock` when the limit has passed, after which `next` can be called again; any other error is final.
    pub fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(message) = take_message(&mut self.messages) {
                return Ok(Some(message));
            }
            if self.ended {
                return Ok(None);
            }
            match take_frame(&mut self.frames)? {
                Some(frame) => self.receive(frame)?,
                None => self.read()?,
            }
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes)? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
            count => {
                self.frames.extend(&bytes[..count]);
                Ok(())
            }
        }
    }

    fn receive(&mut self, frame: Frame) -> io::Result<()> {
        let mut answer = vec![];
        match frame.kind {
            DATA => {
                // Let the other side send as many bytes again, on the connection and on the stream.
                let count = (frame.payload.len() as u32).to_be_bytes();
                if !frame.payload.is_empty() {
                    add_frame(&mut answer, WINDOW_UPDATE, 0, 0, &count);
                    add_frame(&mut answer, WINDOW_UPDATE, 0, STREAM, &count);
                }
                self.messages.extend(&frame.payload);
                self.ended = frame.flags & END_STREAM != 0;
            }
            HEADERS => self.ended = frame.flags & END_STREAM != 0,
            SETTINGS if frame.flags & ACK == 0 => add_frame(&mut answer, SETTINGS, ACK, 0, &[]),
            // The other side closes a connection that does not answer pings for two hours.
            PING if frame.flags & ACK == 0 => add_frame(&mut answer, PING, ACK, 0, &frame.payload),
            RST_STREAM | GOAWAY => return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the request was ended")),
            _ => {}
        }
        self.stream.write_all(&answer)
    }
}

struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

fn add_frame(to: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    // 24 bits.
    to.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    to.extend([kind, flags]);
    to.extend(stream.to_be_bytes());
    to.extend(payload);
}

fn take_frame(bytes: &mut Vec<u8>) -> io::Result<Option<Frame>> {
    let Some(&[a, b, c, kind, flags, ..]) = bytes.get(..FRAME_HEADER) else { return Ok(None) };
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    if length > LONGEST_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not HTTP/2"));
    }
    Ok(take(bytes, FRAME_HEADER, length).map(|payload| Frame { kind, flags, payload }))
}

fn take_message(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let &[_, a, b, c, d] = bytes.get(..MESSAGE_HEADER)? else { return None };
    take(bytes, MESSAGE_HEADER, u32::from_be_bytes([a, b, c, d]) as usize)
}

/// Removes a header and the `length` bytes after it, once all of them are there, and returns those bytes.
fn take(bytes: &mut Vec<u8>, header: usize, length: usize) -> Option<Vec<u8>> {
    let end = header + length;
    if bytes.len() < end {
        return None;
    }
    let payload = bytes[header..end].to_vec();
    bytes.drain(..end);
    Some(payload)
}

/// Adds a literal header that is not added to the compression table.
fn add_header(to: &mut Vec<u8>, name: &str, value: &str) {
    to.push(0);
    for text in [name, value] {
        // The length has seven bits here; longer strings would need more bytes.
        debug_assert!(text.len() < 127, "{text}");
        to.push(text.len() as u8);
        to.extend(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    const LIMIT: Duration = Duration::from_secs(20);

    type Messages = Vec<io::Result<Option<Vec<u8>>>>;

    /// Sends `answer` to a call byte by byte, and returns the call's results and all that it sent.
    fn answered(answer: Vec<u8>) -> (Messages, Vec<u8>) {
        let socket = std::env::temp_dir().join(format!("kind-grpc-{}-{}", std::process::id(), answer.len()));
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // A call that has seen an error no longer reads the rest.
            let _ = answer.iter().try_for_each(|byte| stream.write_all(&[*byte]));
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut sent = vec![];
            let _ = stream.read_to_end(&mut sent);
            sent
        });
        let mut call = Call::open_on(&socket, "/s/M", b"question", LIMIT).unwrap();
        let mut seen = vec![];
        while !matches!(seen.last(), Some(Ok(None) | Err(_))) {
            seen.push(call.next());
        }
        drop(call);
        std::fs::remove_file(&socket).unwrap();
        (seen, server.join().unwrap())
    }

    fn message(text: &str) -> Vec<u8> {
        [&[0, 0, 0, 0, text.len() as u8], text.as_bytes()].concat()
    }

    #[test]
    fn messages_come_whole_however_they_were_cut() {
        let both = [message("one"), message("two")].concat();
        let mut answer = vec![];
        add_frame(&mut answer, SETTINGS, 0, 0, &[]);
        add_frame(&mut answer, PING, 0, 0, b"12345678");
        add_frame(&mut answer, HEADERS, END_HEADERS, STREAM, b"status");
        add_frame(&mut answer, DATA, 0, STREAM, &both[..6]);
        add_frame(&mut answer, DATA, 0, STREAM, &both[6..]);
        add_frame(&mut answer, HEADERS, END_HEADERS | END_STREAM, STREAM, b"trailers");
        let (seen, sent) = answered(answer);
        let seen: Vec<_> = seen.into_iter().map(|seen| seen.unwrap()).collect();
        assert_eq!(seen, [Some(b"one".to_vec()), Some(b"two".to_vec()), None]);

        let mut frames = sent.strip_prefix(PREFACE).unwrap().to_vec();
        let mut got = vec![];
        while let Some(frame) = take_frame(&mut frames).unwrap() {
            got.push((frame.kind, frame.flags, frame.payload));
        }
        let headers = [&[0, 7][..], b":method", &[4], b"POST"].concat();
        assert_eq!((got[0].0, got[1].0, &got[1].2[..headers.len()]), (SETTINGS, HEADERS, &headers[..]));
        assert_eq!(got[2], (DATA, END_STREAM, message("question")));
        assert_eq!(got[3..5], [(SETTINGS, ACK, vec![]), (PING, ACK, b"12345678".to_vec())]);
        let counts: Vec<_> = got[5..].iter().map(|(kind, _, payload)| (*kind, payload[3])).collect();
        let rest = (both.len() - 6) as u8;
        assert_eq!(counts, [(WINDOW_UPDATE, 6), (WINDOW_UPDATE, 6), (WINDOW_UPDATE, rest), (WINDOW_UPDATE, rest)]);
    }

    #[test]
    fn a_refusal_has_no_message() {
        let mut answer = vec![];
        add_frame(&mut answer, HEADERS, END_HEADERS | END_STREAM, STREAM, b"trailers alone");
        assert!(matches!(answered(answer).0[..], [Ok(None)]));
    }

    #[test]
    fn what_is_cut_off_or_no_answer_is_an_error() {
        let mut cut = vec![];
        add_frame(&mut cut, DATA, 0, STREAM, &message("one")[..7]);
        let mut ended = vec![];
        add_frame(&mut ended, GOAWAY, 0, 0, &[0; 8]);
        for (answer, kind) in [
            (cut, io::ErrorKind::UnexpectedEof),
            (ended, io::ErrorKind::ConnectionReset),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), io::ErrorKind::InvalidData),
        ] {
            let (seen, _) = answered(answer);
            assert_eq!(seen.last().unwrap().as_ref().unwrap_err().kind(), kind);
        }
    }
}
