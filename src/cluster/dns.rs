//! Whether the cluster's DNS answers queries over UDP (RFC 1035).

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
/// The time between two queries, and the number of queries whose answers still count: those of the last two
/// seconds, which an answer may take on a starved machine.
const INTERVAL: Duration = Duration::from_millis(50);
const OUTSTANDING: usize = 40;
/// How often to check the sockets for an answer.
const CHECK: Duration = Duration::from_millis(5);

/// Queries the DNS whenever the pods have become ready, until there is an answer. It does so in a thread of its
/// own, so that meanwhile the watch on pods goes on.
pub fn follow(readiness: &Arc<Readiness>, server: Ipv4Addr) -> Result<()> {
    let readiness = readiness.clone();
    let body = move || {
        while readiness.wait_until(|state| state.pods == Pods::Ready && !state.dns) {
            query_until_answered(&readiness, server);
        }
    };
    let started = thread::Builder::new().name("dns".into()).spawn(body);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the thread that queries the DNS: {cause}")))
}

/// Returns when there is an answer, or when none is needed any more.
fn query_until_answered(readiness: &Readiness, server: Ipv4Addr) {
    let outages = readiness.state().outages;
    let mut queries = Queries::new(server);
    while !queries.send_and_check() {
        let state = readiness.state();
        if state.ending || state.outages != outages {
            return;
        }
    }
    readiness.milestone("dns");
    // An answer from before an outage of the pods does not count.
    readiness.update(|state| state.dns |= state.pods == Pods::Ready && state.outages == outages);
}

/// Queries for the address of the API server's Service. They are lost until kube-proxy has made its rules, so
/// instead of waiting for one answer we keep sending new ones.
struct Queries {
    server: SocketAddr,
    sockets: VecDeque<UdpSocket>,
}

impl Queries {
    fn new(server: Ipv4Addr) -> Queries {
        Queries { server: (server, PORT).into(), sockets: VecDeque::new() }
    }

    /// Sends another query, and waits for `INTERVAL` for an answer to any of them.
    fn send_and_check(&mut self) -> bool {
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
            thread::sleep(CHECK);
        }
        false
    }

    /// Uses a new socket, since conntrack would keep routing an old one as before kube-proxy's rules.
    fn send(&self) -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_nonblocking(true)?;
        socket.connect(self.server)?;
        socket.send(&query(id(), NAME))?;
        Ok(socket)
    }
}

fn id() -> u16 {
    std::process::id() as u16
}

/// A query for the A record of `name`, recursion desired.
fn query(id: u16, name: &str) -> Vec<u8> {
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

/// Whether a message answers query `id` without an error and with at least one record.
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
    fn a_query_has_the_format_of_the_rfc() {
        let message = query(0x1234, "a.bc");
        assert_eq!(message, [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1]);
    }

    #[test]
    fn a_late_answer_to_an_earlier_query_counts() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut queries = Queries { server: server.local_addr().unwrap(), sockets: VecDeque::new() };
        assert!(!queries.send_and_check(), "nobody has answered");
        assert!(!queries.send_and_check(), "nobody has answered");
        let mut message = [0; 512];
        // The first query is answered before the third is sent.
        let (length, asker) = server.recv_from(&mut message).unwrap();
        (message[2], message[7]) = (0x84, 1);
        server.send_to(&message[..length], asker).unwrap();
        assert!(queries.send_and_check());
    }

    #[test]
    fn only_an_answer_to_our_query_with_a_record_counts() {
        let reply = |id: u16, flags: u8, code: u8, count: u8| {
            let mut message = query(id, NAME);
            (message[2], message[3], message[7]) = (flags, code, count);
            message
        };
        assert!(has_answer(7, &reply(7, 0x84, 0, 1)));
        for wrong in [reply(8, 0x84, 0, 1), reply(7, 0x04, 0, 1), reply(7, 0x84, 3, 1), reply(7, 0x84, 0, 0), vec![0; 12], vec![]] {
            assert!(!has_answer(7, &wrong));
        }
    }
}
