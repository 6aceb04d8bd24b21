//! Answers DNS queries (RFC 1035) from the container's own /etc/hosts (hosts(5)), so that pods can resolve the
//! names of `docker run --add-host` and `--link` too.

use std::net::IpAddr;

const HEADER: usize = 12;
const LONGEST_LABEL: usize = 63;
const CLASS_IN: u16 = 1;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;
/// Seconds for which an answer may be cached: few, since the file may change while we run.
const TTL: u32 = 5;
/// This many IPv6 addresses fit into the 512 bytes that every client accepts, even with the longest name.
const MAX_ADDRESSES: usize = 8;

/// The one question of a query.
pub struct Question {
    /// In lower case, without the last dot.
    name: String,
    kind: u16,
    class: u16,
    /// Offset of its end in the message.
    end: usize,
}

impl Question {
    /// `None` for anything that is not a query with a single question.
    pub fn of(message: &[u8]) -> Option<Question> {
        let header = message.get(..HEADER)?;
        let is_query = header[2] & 0xf8 == 0 && header[4..6] == [0, 1];
        let (mut labels, mut at) = (vec![], HEADER);
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            match length {
                0 => break,
                // A pointer to an earlier name, but there is none before the first.
                length if length > LONGEST_LABEL => return None,
                length => labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_ascii_lowercase()),
            }
            at += length;
        }
        let word = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
        let question = Question { name: labels.join("."), kind: word(at)?, class: word(at + 2)?, end: at + 4 };
        is_query.then_some(question)
    }

    /// The answer from the text of a hosts file, or `None` if it does not have the name.
    pub fn answer_from(&self, hosts: &str, query: &[u8]) -> Option<Vec<u8>> {
        let addresses = look_up(hosts, &self.name);
        if self.class != CLASS_IN || addresses.is_empty() {
            return None;
        }
        // If the name has no address of this type, the answer is empty: "no such name" would stop the client
        // from asking for the other type.
        let wanted = addresses.into_iter().filter(|address| self.kind == if address.is_ipv4() { TYPE_A } else { TYPE_AAAA });
        let wanted: Vec<IpAddr> = wanted.take(MAX_ADDRESSES).collect();
        let mut answer = self.head(query, 0, wanted.len() as u8);
        for address in wanted {
            let data = match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            // A pointer to the name in the question.
            answer.extend([0xc0, HEADER as u8]);
            answer.extend([self.kind, CLASS_IN].iter().flat_map(|word| word.to_be_bytes()));
            answer.extend(TTL.to_be_bytes());
            answer.extend((data.len() as u16).to_be_bytes());
            answer.extend(data);
        }
        Some(answer)
    }

    /// The answer of a server that failed.
    pub fn failure(&self, query: &[u8]) -> Vec<u8> {
        self.head(query, SERVER_FAILURE, 0)
    }

    /// An answer's header and question.
    fn head(&self, query: &[u8], code: u8, answers: u8) -> Vec<u8> {
        let mut head = query[..self.end].to_vec();
        // A response, with "recursion desired" copied from the query, and "recursion available".
        (head[2], head[3]) = (0x80 | query[2] & 1, 0x80 | code);
        head[6..HEADER].copy_from_slice(&[0, answers, 0, 0, 0, 0]);
        head
    }
}

/// Whether an answer says that this server cannot or will not answer, so that another one might.
pub fn is_failure(answer: &[u8]) -> bool {
    const NOT_IMPLEMENTED: u8 = 4;
    const REFUSED: u8 = 5;
    answer.get(3).is_none_or(|flags| [SERVER_FAILURE, NOT_IMPLEMENTED, REFUSED].contains(&(flags & 0x0f)))
}

/// Whether an answer says that there is no such name (NXDOMAIN).
pub fn is_no_such_name(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|flags| flags & 0x0f == NO_SUCH_NAME)
}

/// A name's addresses, except loopback ones: with those a pod would connect to itself.
fn look_up(hosts: &str, name: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        (!address.is_loopback() && words.any(|word| word.eq_ignore_ascii_case(name))).then_some(address)
    };
    hosts.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n10.1.2.3\tdb.test DB # 10.9.9.9 not\n\
                         fd00::5 db.test\n#10.7.7.7 off.test\n172.17.0.2\t3d1f00aa\nnonsense db.test\n";

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0x20, 0, 1, 0, 0, 0, 0, 0, 1];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.bytes());
        }
        message.push(0);
        message.extend([kind, CLASS_IN].iter().flat_map(|word| word.to_be_bytes()));
        // We ignore what follows the question, here EDNS(0).
        message.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        message
    }

    fn answer(name: &str, kind: u16) -> Option<Vec<u8>> {
        let query = query(name, kind);
        Question::of(&query).unwrap().answer_from(HOSTS, &query)
    }

    #[test]
    fn names_of_the_file_have_their_addresses_whatever_the_case() {
        for name in ["db.test", "DB.Test", "db"] {
            let answer = answer(name, TYPE_A).unwrap();
            assert_eq!(answer[..HEADER], [0x12, 0x34, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0], "{name}");
            assert_eq!(answer[HEADER + name.len() + 6..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 1, 2, 3], "{name}");
        }
        let answer = answer("db.test", TYPE_AAAA).unwrap();
        assert_eq!((answer[7], &answer[answer.len() - 18..answer.len() - 14]), (1, &[0, 16, 0xfd, 0][..]));
    }

    #[test]
    fn a_known_name_has_an_empty_answer_for_other_types_and_an_unknown_one_has_none() {
        const MX: u16 = 15;
        for (name, kind, count) in [("3d1f00aa", TYPE_AAAA, Some(0)), ("db.test", MX, Some(0)), ("3d1f00aa", TYPE_A, Some(1))] {
            assert_eq!(answer(name, kind).map(|answer| answer[7]), count, "{name}");
        }
        for name in ["localhost", "off.test", "not", "test", "x.db.test", "10.1.2.3", "example.com"] {
            assert_eq!(answer(name, TYPE_A), None, "{name}");
        }
        let mut chaos = query("db.test", TYPE_A);
        chaos[HEADER + 12] = 3;
        assert!(Question::of(&chaos).unwrap().answer_from(HOSTS, &chaos).is_none());
    }

    #[test]
    fn what_is_no_query_with_one_whole_question_is_not_looked_at() {
        let whole = query("db.test", TYPE_A);
        let end = Question::of(&whole).unwrap().end;
        assert!((0..end).all(|length| Question::of(&whole[..length]).is_none()), "a part of one");
        for (at, byte) in [(2, 0x81), (2, 0x29), (5, 2), (5, 0), (HEADER, 0xc0)] {
            let mut other = whole.clone();
            other[at] = byte;
            assert!(Question::of(&other).is_none(), "{byte} at {at}");
        }
    }

    #[test]
    fn only_an_answer_that_another_server_may_better_is_a_failure() {
        let query = query("example.com", TYPE_A);
        let failure = Question::of(&query).unwrap().failure(&query);
        assert_eq!(failure[..HEADER], [0x12, 0x34, 0x81, 0x82, 0, 1, 0, 0, 0, 0, 0, 0]);
        for (code, expected) in [(0, false), (2, true), (3, false), (4, true), (5, true)] {
            assert_eq!(is_failure(&[0, 0, 0x81, 0x80 | code]), expected, "{code}");
        }
        assert!(is_failure(&[]));
    }
}
