//! Whether the cluster's DNS answers, asked over UDP (RFC 1035).

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::readiness::{Pods, Readiness};

const PORT: u16 = 53;
/// Every cluster has this Service.
const NAME: &str = "kubernetes.default.svc.cluster.local";
const HEADER: usize = 12;
/// How often a question is asked again, and how many of them an answer is still waited for: two
/// seconds' worth, which a starved machine may need.
const INTERVAL: Duration = Duration::from_millis(50);
const OUTSTANDING: usize = 40;
/// How often the sockets are looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Asks in a thread of its own whenever the pods have become ready, until there is an answer. So whoever
/// follows the pods is never kept from seeing one of them die meanwhile.
pub fn follow(readiness: &Arc<Readiness>, server: Ipv4Addr) -> Result<()> {
    let readiness = readiness.clone();
    let body = move || {
        while readiness.wait_until(|state| state.pods == Pods::Ready && !state.dns) {
            ask_until_answered(&readiness, server);
        }
    };
    let started = thread::Builder::new().name("dns".into()).spawn(body);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the thread that asks the DNS: {cause}")))
}

/// Returns when there is an answer, or no need for one any more.
fn ask_until_answered(readiness: &Readiness, server: Ipv4Addr) {
    let outages = readiness.state().outages;
    let mut questions = Questions::new(server);
    while !questions.ask() {
        let state = readiness.state();
        if state.ending || state.outages != outages {
            return;
        }
    }
    readiness.milestone("dns");
    // An answer from before an outage says nothing of what came after it.
    readiness.update(|state| state.dns |= state.pods == Pods::Ready && state.outages == outages);
}

/// Questions for the address of the API server's Service. Until kube-proxy has made its rules they are
/// lost, and with them whatever waits for an answer: so each is soon followed by another.
pub struct Questions {
    server: SocketAddr,
    sockets: VecDeque<UdpSocket>,
}

impl Questions {
    pub fn new(server: Ipv4Addr) -> Questions {
        Questions { server: (server, PORT).into(), sockets: VecDeque::new() }
    }

    /// Asks once more, and waits for a moment for an answer to this question or an earlier one.
    pub fn ask(&mut self) -> bool {
        if let Ok(socket) = self.send() {
            self.sockets.push_back(socket);
        }
        if self.sockets.len() > OUTSTANDING {
            self.sockets.pop_front();
        }
        let end = Instant::now() + INTERVAL;
        while Instant::now() < end {
            let mut reply = [0; 512];
            let mut answered = |socket: &UdpSocket| socket.recv(&mut reply).is_ok_and(|length| has_answer(id(), &reply[..length]));
            if self.sockets.iter().any(&mut answered) {
                return true;
            }
            thread::sleep(LOOK);
        }
        false
    }

    /// Each from a socket of its own: conntrack would keep an old one on the way without kube-proxy.
    fn send(&self) -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_nonblocking(true)?;
        socket.connect(self.server)?;
        socket.send(&question(id(), NAME))?;
        Ok(socket)
    }
}

fn id() -> u16 {
    std::process::id() as u16
}

/// A query for the A record of `name`, recursion desired.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    // The root label, type A, class IN.
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// Whether the message is a response to `id` without an error and with at least one record.
fn has_answer(id: u16, message: &[u8]) -> bool {
    message.len() > HEADER
        && message[..2] == id.to_be_bytes()
        && message[2] & 0x80 != 0
        && message[3] & 0x0f == 0
        && u16::from_be_bytes([message[6], message[7]]) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_laid_out_as_the_rfc_has_it() {
        let message = question(0x1234, "a.bc");
        assert_eq!(message, [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1]);
    }

    #[test]
    fn a_question_that_is_lost_is_followed_by_another_and_a_late_answer_counts() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut questions = Questions { server: server.local_addr().unwrap(), sockets: VecDeque::new() };
        assert!(!questions.ask(), "nobody has answered");
        assert!(!questions.ask(), "nobody has answered");
        let mut message = [0; 512];
        // The first is answered when the third is asked.
        let (length, asker) = server.recv_from(&mut message).unwrap();
        (message[2], message[7]) = (0x84, 1);
        server.send_to(&message[..length], asker).unwrap();
        assert!(questions.ask());
    }

    #[test]
    fn only_a_record_in_answer_to_our_question_counts() {
        let reply = |id: u16, flags: u8, code: u8, count: u8| {
            let mut message = question(id, NAME);
            (message[2], message[3], message[7]) = (flags, code, count);
            message
        };
        assert!(has_answer(7, &reply(7, 0x84, 0, 1)));
        for wrong in [reply(8, 0x84, 0, 1), reply(7, 0x04, 0, 1), reply(7, 0x84, 3, 1), reply(7, 0x84, 0, 0), vec![0; 12], vec![]] {
            assert!(!has_answer(7, &wrong));
        }
    }
}
