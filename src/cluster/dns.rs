//! Whether the cluster's DNS answers queries over UDP (RFC 1035).

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

const PORT: u16 = 53;
/// Every cluster has this Service.
const NAME: &str = "kubernetes.default.svc.cluster.local";
const HEADER: usize = 12;
/// kube-proxy's, in its mode `ipvs`, in which a Service is a hop.
const IPVS_DEVICE: &str = "/sys/class/net/kube-ipvs0";
/// The time between two queries: first, for as many as that, and then.
const FIRST_INTERVAL: Duration = Duration::from_millis(50);
const FIRST_QUERIES: u32 = 200;
const INTERVAL: Duration = Duration::from_secs(1);
/// How long the answer to a query may take on a starved machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Queries for the address of the API server's Service. They are lost until kube-proxy has made its rules, so
/// instead of waiting for one answer we keep sending new ones.
pub struct Queries {
    server: SocketAddr,
    /// They are no hop away. A query that no rule of kube-proxy's sends there yet leaves the node: in a pod of another cluster
    /// that one's DNS, which has the same address, would answer it, unless it may make no hop.
    pods_are_here: bool,
    sent: u32,
    /// With the time of its query.
    sockets: VecDeque<(Instant, UdpSocket)>,
}

impl Queries {
    /// `pods_are_here`: whether they are on our own bridge.
    pub fn new(server: Ipv4Addr, pods_are_here: bool) -> Queries {
        Queries { server: (server, PORT).into(), pods_are_here, sent: 0, sockets: VecDeque::new() }
    }

    /// Sends another query, and gives up those that are too old.
    pub fn send(&mut self) {
        self.sockets.retain(|(sent, _)| sent.elapsed() < ANSWER_LIMIT);
        self.sent += 1;
        // A new socket, since conntrack would keep routing an old one as before kube-proxy's rules.
        let send = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_nonblocking(true)?;
            if self.pods_are_here && !Path::new(IPVS_DEVICE).exists() {
                socket.set_ttl(1)?;
            }
            socket.connect(self.server)?;
            socket.send(&query(id(), NAME)).map(|_| socket)
        };
        if let Ok::<_, std::io::Error>(socket) = send() {
            self.sockets.push_back((Instant::now(), socket));
        }
    }

    /// Waits for an answer to any query until the next one is due.
    pub fn wait_for_answer(&mut self) -> bool {
        let end = Instant::now() + if self.sent <= FIRST_QUERIES { FIRST_INTERVAL } else { INTERVAL };
        loop {
            let mut reply = [0; 512];
            let mut answered = |socket: &UdpSocket| socket.recv(&mut reply).is_ok_and(|length| has_answer(id(), &reply[..length]));
            if self.sockets.iter().any(|(_, socket)| answered(socket)) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let mut fds: Vec<PollFd> = self.sockets.iter().map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
            // Rounded up: with less than a millisecond left it would not wait at all.
            let _ = poll(&mut fds, PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO));
        }
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

    fn queries(server: &UdpSocket) -> Queries {
        Queries { server: server.local_addr().unwrap(), pods_are_here: true, sent: 0, sockets: VecDeque::new() }
    }

    #[test]
    fn a_late_answer_to_an_earlier_query_counts() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut queries = queries(&server);
        for _ in 0..2 {
            queries.send();
            assert!(!queries.wait_for_answer(), "nobody has answered");
        }
        assert!(queries.sockets.iter().all(|(_, socket)| socket.ttl().unwrap() == 1), "a query may leave the node");
        let mut message = [0; 512];
        // The first query is answered before the third is sent.
        let (length, asker) = server.recv_from(&mut message).unwrap();
        (message[2], message[7]) = (0x84, 1);
        server.send_to(&message[..length], asker).unwrap();
        queries.send();
        assert!(queries.wait_for_answer());
    }

    #[test]
    fn a_silent_server_is_asked_seldom_after_a_while_and_keeps_nobody_awake() {
        use nix::sys::resource::{getrusage, UsageWho};
        let wakeups = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().voluntary_context_switches();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut queries = queries(&server);
        let (before, began) = (wakeups(), Instant::now());
        for _ in 0..20 {
            queries.send();
            assert!(!queries.wait_for_answer());
        }
        assert!(wakeups() - before <= 2 * 20, "{}", wakeups() - before);
        assert!(began.elapsed() >= 20 * FIRST_INTERVAL);
        (queries.sent, queries.sockets) = (FIRST_QUERIES, VecDeque::new());
        let began = Instant::now();
        for _ in 0..4 {
            queries.send();
            assert!(!queries.wait_for_answer());
        }
        assert!(began.elapsed() >= 4 * INTERVAL && queries.sockets.len() <= 2);
    }

    /// The kernel reports it at the socket, again and again unless it is read.
    #[test]
    fn a_refused_query_is_waited_for_as_any_other() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut queries = queries(&server);
        drop(server);
        queries.send();
        let began = Instant::now();
        assert!(!queries.wait_for_answer());
        assert!(began.elapsed() >= FIRST_INTERVAL);
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
