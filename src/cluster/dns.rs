//! Whether the cluster's DNS answers, asked over UDP (RFC 1035).

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

const PORT: u16 = 53;
/// Every cluster has this Service.
const NAME: &str = "kubernetes.default.svc.cluster.local";
const HEADER: usize = 12;

/// Asks once for the address of the API server's Service, and waits no longer than `limit`.
pub fn answers(server: Ipv4Addr, limit: Duration) -> bool {
    let ask = || {
        // A new socket for each question: conntrack would keep an old one on the way without kube-proxy.
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(limit))?;
        socket.connect((server, PORT))?;
        let id = std::process::id() as u16;
        socket.send(&question(id, NAME))?;
        let mut reply = [0; 512];
        let length = socket.recv(&mut reply)?;
        std::io::Result::Ok(has_answer(id, &reply[..length]))
    };
    ask().unwrap_or(false)
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
