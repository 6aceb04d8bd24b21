//! The name server for pods and Docker's containers, on the static address, over UDP and TCP. It resolves
//! what the container itself can resolve, from /etc/hosts and with the servers in /etc/resolv.conf, and the names that
//! Docker has for the machine of a container: here that is the node, unless those know another.
//!
//! Pods and containers could not ask those servers themselves. Docker's server listens on 127.0.0.11, a loopback
//! address of the node: CoreDNS would detect a loop and stop. A server may have an IPv6 address, which
//! pods cannot reach. And both files may change, when Docker connects the container to another network.
//!
//! In a pod of another cluster with kubeadm's defaults the name server is 10.96.0.10, which is also the address of
//! the inner cluster's DNS: kube-proxy would redirect the forwarder's queries to the inner cluster. So they carry a
//! mark that exempts them from connection tracking, and therefore from NAT.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{connect, setsockopt, socket, sockopt, AddressFamily, SockFlag, SockType, SockaddrIn};
use nix::sys::time::TimeVal;

use crate::config::{RESOLV_CONF, RUN_DIR};
use crate::error::{Error, Result};
use crate::files;
use crate::node::cluster_network::ClusterNetwork;
use crate::node::hosts::{self, Question};
use crate::node::iptables::Iptables;
use crate::supervisor::reaper;
use crate::threads::{self, Places, SMALL_STACK};
use crate::{listen, subnet};

const PORT: u16 = 53;
const SYSTEM_RESOLV_CONF: &str = "/etc/resolv.conf";
const SYSTEM_HOSTS: &str = "/etc/hosts";
const NAMES_OF_NODE: &str = "host.docker.internal gateway.docker.internal";
/// A resolver gives up after 5 s by default (resolv.conf(5)).
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// After this long we try the next server: CoreDNS asks again after 2 s.
const NEXT_SERVER: Duration = Duration::from_millis(1500);
/// Concurrent queries over UDP, and connections over TCP, of which idle ones count too. Any more are dropped, and their
/// clients ask again.
const MAX_QUERIES: usize = 128;
const MAX_CONNECTIONS: usize = 64;
/// After an error that may stay, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest datagram with EDNS(0), in bytes (RFC 6891 recommends 4096).
const MAX_DATAGRAM: usize = 4096;
/// Mark of packets to a name server whose address is in this cluster's Service subnet: none of kube-proxy's
/// bits (0x4000, 0x8000).
const PAST_SERVICES: u32 = 0x100_0000;

/// Writes the resolv.conf that kubelet gives to pods, and starts the forwarder. Returns its address, or `None` if it
/// cannot be started and pods have to use the servers that they can reach themselves.
pub fn prepare(static_ip: Ipv4Addr, cluster: &ClusterNetwork, iptables: &Iptables) -> Result<Option<Ipv4Addr>> {
    let system = fs::read_to_string(SYSTEM_RESOLV_CONF).unwrap_or_default();
    let services = &cluster.service_subnet;
    let servers = servers(&system);
    let forwarder = Forwarder::new(SYSTEM_RESOLV_CONF, SYSTEM_HOSTS, PORT, services, static_ip);
    let has_shadowed = servers.iter().any(|server| is_shadowed(server, services));
    let past_services = if has_shadowed { do_not_track_marked(iptables) } else { Ok(()) };
    let own = match past_services.and_then(|()| start(forwarder, (static_ip, PORT).into())) {
        Ok(()) => Some(static_ip),
        Err(error) if servers.iter().any(|server| is_reachable(server, services)) => {
            log::warn!(target: "network", "{error}: pods and containers ask the servers of {SYSTEM_RESOLV_CONF} themselves, and do not know the names of {SYSTEM_HOSTS}");
            None
        }
        Err(error) => return Err(error),
    };
    files::make_dir(RUN_DIR)?;
    files::write(RESOLV_CONF, for_pods(&system, own, services))?;
    Ok(own)
}

fn do_not_track_marked(iptables: &Iptables) -> Result<()> {
    let mark = PAST_SERVICES.to_string();
    let rule = ["--wait", "--table", "raw", "--insert", "OUTPUT", "--match", "mark", "--mark", &mark, "--jump", "CT", "--notrack"];
    reaper::run(iptables.command("iptables").args(rule)).map(drop)
}

fn start(forwarder: Forwarder, address: SocketAddr) -> Result<()> {
    let fail = |cause: io::Error| Error::new(format!("cannot listen on {address} to answer DNS queries: {cause}"));
    let (udp, tcp) = (UdpSocket::bind(address).map_err(fail)?, TcpListener::bind(address).map_err(fail)?);
    let (forwarder, udp) = (Arc::new(forwarder), Arc::new(udp));
    let other = forwarder.clone();
    threads::start("dns-udp", move || serve_udp(&udp, &other))?;
    threads::start("dns-tcp", move || serve_tcp(&tcp, forwarder))
}

/// The servers that a resolv.conf(5) names. The C library, too, ignores what follows an address.
fn servers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf.lines().filter_map(|line| line.strip_prefix("nameserver")?.split_whitespace().next()?.parse().ok()).collect()
}

/// Whether the cluster's Services have a server's address too.
fn is_shadowed(server: &IpAddr, services: &str) -> bool {
    matches!(server, IpAddr::V4(server) if subnet::overlap(services, *server, u32::MAX))
}

/// Whether a pod can reach a server.
fn is_reachable(server: &IpAddr, services: &str) -> bool {
    server.is_ipv4() && !server.is_loopback() && !is_shadowed(server, services)
}

/// The resolv.conf for pods: with the forwarder as their server, or else with the servers that they can reach.
fn for_pods(system: &str, own: Option<Ipv4Addr>, services: &str) -> String {
    let servers = own
        .map_or_else(|| servers(system).into_iter().filter(|server| is_reachable(server, services)).collect(), |own| vec![IpAddr::V4(own)]);
    let others = system.lines().filter(|line| ["search", "options"].iter().any(|word| line.starts_with(word))).map(str::to_string);
    others.chain(servers.iter().map(|server| format!("nameserver {server}"))).map(|line| line + "\n").collect()
}

/// Answers queries.
struct Forwarder {
    resolv_conf: PathBuf,
    hosts: PathBuf,
    /// The servers' port.
    port: u16,
    /// The subnet of the cluster's Services.
    services: String,
    /// Names that nobody else may know, as hosts(5) has them.
    last_resort: String,
    /// Which server is asked first: the last one that answered.
    preferred: AtomicUsize,
}

impl Forwarder {
    fn new(resolv_conf: impl Into<PathBuf>, hosts: impl Into<PathBuf>, port: u16, services: &str, node: Ipv4Addr) -> Forwarder {
        let (services, last_resort) = (services.into(), format!("{node} {NAMES_OF_NODE}\n"));
        Forwarder { resolv_conf: resolv_conf.into(), hosts: hosts.into(), port, services, last_resort, preferred: 0.into() }
    }

    /// The answer to a query; `ask` asks a server, over UDP or TCP, with or without the mark. `None` if the message is not a query.
    fn answer(&self, query: &[u8], ask: impl Fn(SocketAddr, bool, &[u8], Duration) -> io::Result<Vec<u8>>) -> Option<Vec<u8>> {
        let question = Question::of(query)?;
        // Both files are short, and Docker may rewrite them at any time.
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        if let Some(answer) = question.answer_from(&read(&self.hosts), query) {
            return Some(answer);
        }
        let servers = servers(&read(&self.resolv_conf));
        let (count, first) = (servers.len(), self.preferred.load(Ordering::Relaxed));
        let ours = question.answer_from(&self.last_resort, query);
        let is_final = |answer: &[u8]| !hosts::is_failure(answer) && (ours.is_none() || !hosts::is_no_such_name(answer));
        let mut failure = None;
        for turn in 0..count {
            let number = (first + turn) % count;
            let server = servers[number];
            let limit = if turn + 1 == count && ours.is_none() { ANSWER_LIMIT } else { NEXT_SERVER };
            match ask((server, self.port).into(), is_shadowed(&server, &self.services), query, limit) {
                Ok(answer) if is_final(&answer) => {
                    self.preferred.store(number, Ordering::Relaxed);
                    return Some(answer);
                }
                Ok(answer) => failure = Some(answer),
                Err(_) => {}
            }
        }
        ours.or(failure).or_else(|| Some(question.failure(query)))
    }
}

fn serve_udp(socket: &Arc<UdpSocket>, forwarder: &Arc<Forwarder>) {
    let (mut buffer, places) = ([0; MAX_DATAGRAM], Places::new(MAX_QUERIES, SMALL_STACK));
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            thread::sleep(PAUSE);
            continue;
        };
        let (query, socket, forwarder) = (buffer[..length].to_vec(), socket.clone(), forwarder.clone());
        places.run(move || {
            if let Some(answer) = forwarder.answer(&query, ask_by_udp) {
                // A client without an answer asks again.
                let _ = socket.send_to(&answer, client);
            }
        });
    }
}

fn serve_tcp(listener: &TcpListener, forwarder: Arc<Forwarder>) {
    let serve = move |mut client| {
        // A client that has disconnected or was too slow needs no answer.
        let _ = answer_by_tcp(&mut client, &forwarder);
    };
    listen::accept(listener.incoming(), &Places::new(MAX_CONNECTIONS, SMALL_STACK), serve);
}

fn answer_by_tcp(client: &mut TcpStream, forwarder: &Forwarder) -> io::Result<()> {
    set_limit(client, ANSWER_LIMIT)?;
    loop {
        let query = read_message(client)?;
        let Some(answer) = forwarder.answer(&query, ask_by_tcp) else { return Ok(()) };
        write_message(client, &answer)?;
    }
}

fn ask_by_udp(server: SocketAddr, marked: bool, query: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let own = UdpSocket::bind((any, 0))?;
    if marked {
        setsockopt(&own, sockopt::Mark, &PAST_SERVICES)?;
    }
    own.set_read_timeout(Some(limit))?;
    own.connect(server)?;
    own.send(query)?;
    let mut answer = vec![0; MAX_DATAGRAM];
    let length = own.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn ask_by_tcp(server: SocketAddr, marked: bool, query: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let mut own = connect_tcp(server, marked, limit)?;
    set_limit(&own, limit)?;
    write_message(&mut own, query)?;
    read_message(&mut own)
}

fn connect_tcp(server: SocketAddr, marked: bool, limit: Duration) -> io::Result<TcpStream> {
    let SocketAddr::V4(address) = server else { return TcpStream::connect_timeout(&server, limit) };
    if !marked {
        return TcpStream::connect_timeout(&server, limit);
    }
    // std connects at once, but the mark has to be set before that.
    let own = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&own, sockopt::Mark, &PAST_SERVICES)?;
    setsockopt(&own, sockopt::SendTimeout, &TimeVal::new(limit.as_secs() as i64, limit.subsec_micros().into()))?;
    connect(own.as_raw_fd(), &SockaddrIn::from(address))?;
    Ok(own.into())
}

fn set_limit(stream: &TcpStream, limit: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))
}

/// Over TCP, each message is preceded by its length (RFC 1035, 4.2.2).
fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SERVICE_SUBNET;

    const NODE: Ipv4Addr = Ipv4Addr::new(172, 99, 99, 1);
    const STATIC: Ipv4Addr = Ipv4Addr::new(172, 99, 99, 1);
    const DEAD: &str = "127.0.0.2";
    const LIVING: &str = "127.0.0.3";

    #[test]
    fn pods_ask_the_forwarder_whatever_the_container_asks() {
        for servers in ["nameserver 127.0.0.11\n", "nameserver fd00::53\nnameserver 1.1.1.1\n", "nameserver 10.96.0.10\n", ""] {
            let system = format!("# made by Docker\nsearch ci.example\n{servers}options ndots:0\n");
            assert_eq!(for_pods(&system, Some(STATIC), SERVICE_SUBNET), "search ci.example\noptions ndots:0\nnameserver 172.99.99.1\n");
        }
    }

    #[test]
    fn without_the_forwarder_pods_get_the_servers_that_they_reach() {
        let system = "nameserver fd00::53\nnameserver 10.0.0.2\nnameserver 127.0.0.53\nnameserver 10.96.0.10\noptions ndots:0\n";
        assert_eq!(for_pods(system, None, SERVICE_SUBNET), "options ndots:0\nnameserver 10.0.0.2\n");
        assert_eq!(servers(system).iter().filter(|server| is_shadowed(server, SERVICE_SUBNET)).count(), 1);
    }

    #[test]
    fn a_comment_after_a_server_is_ignored() {
        let both: [IpAddr; 2] = ["10.0.0.2".parse().unwrap(), "fd00::53".parse().unwrap()];
        assert_eq!(servers("nameserver 10.0.0.2 # ours\nnameserver\tfd00::53\n# nameserver 10.0.0.3\nnameserver\n"), both);
    }

    #[test]
    fn the_rule_for_marked_queries_is_made_with_the_chosen_iptables() {
        let directory = std::env::temp_dir().join(format!("kind-dns-iptables-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (program, made) = (directory.join("iptables"), directory.join("made"));
        files::replace(program, format!("#!/bin/sh\necho \"$*\" >{}\n", made.display()), 0o755).unwrap();
        do_not_track_marked(&Iptables::legacy_in(directory.clone())).unwrap();
        let rule = fs::read_to_string(made).unwrap();
        assert!(rule.contains("--table raw --insert OUTPUT") && rule.contains("--mark 16777216"), "{rule}");
        fs::remove_dir_all(directory).unwrap();
    }

    /// A query for `name.test`, and where a marker byte of the answer lies.
    const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04name\x04test\0\0\x01\0\x01";

    fn forwarder(servers: &[&str], hosts: &str, port: u16) -> Forwarder {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("kind-dns-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        fs::write(dir.join("resolv.conf"), lines).unwrap();
        fs::write(dir.join("hosts"), hosts).unwrap();
        Forwarder::new(dir.join("resolv.conf"), dir.join("hosts"), port, SERVICE_SUBNET, NODE)
    }

    /// One port of both; one that is free for UDP may be taken for TCP.
    fn both(ip: &str) -> (UdpSocket, TcpListener) {
        std::iter::repeat_with(|| UdpSocket::bind((ip, 0)).unwrap())
            .find_map(|udp| TcpListener::bind(udp.local_addr().unwrap()).ok().map(|tcp| (udp, tcp)))
            .unwrap()
    }

    /// A server over UDP and TCP that answers each query with itself and the word after it.
    fn server(ip: &str) -> u16 {
        let (udp, tcp) = both(ip);
        let port = udp.local_addr().unwrap().port();
        thread::spawn(move || loop {
            let mut buffer = [0; 64];
            let (length, from) = udp.recv_from(&mut buffer).unwrap();
            udp.send_to(&[&buffer[..length], b"udp"].concat(), from).unwrap();
        });
        thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let query = read_message(&mut stream).unwrap();
                write_message(&mut stream, &[&query[..], b"tcp"].concat()).unwrap();
            }
        });
        port
    }

    /// Starts a forwarder over UDP and TCP on a port of its own.
    fn serve(forwarder: Forwarder) -> SocketAddr {
        let (udp, tcp) = both("127.0.0.1");
        let (at, udp, forwarder) = (udp.local_addr().unwrap(), Arc::new(udp), Arc::new(forwarder));
        let other = forwarder.clone();
        thread::spawn(move || serve_udp(&udp, &other));
        thread::spawn(move || serve_tcp(&tcp, forwarder));
        at
    }

    #[test]
    fn clients_that_only_connect_do_not_take_the_place_of_those_that_ask_over_udp() {
        let port = server(LIVING);
        let at = serve(forwarder(&[LIVING], "", port));
        let _idle: Vec<TcpStream> = (0..2 * MAX_QUERIES).map(|_| TcpStream::connect(at).unwrap()).collect();
        assert!(ask_by_udp(at, false, QUERY, ANSWER_LIMIT).unwrap().ends_with(b"udp"));
    }

    #[test]
    fn queries_are_forwarded_over_udp_and_tcp_and_names_of_the_hosts_file_are_not() {
        let port = server(LIVING);
        let forwarder = forwarder(&[LIVING], "10.1.2.3 known.test\n", port);
        let at = serve(forwarder);
        let known = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x05known\x04test\0\0\x01\0\x01";
        for (query, by_udp, by_tcp) in [(QUERY, &b"udp"[..], &b"tcp"[..]), (known, &[10, 1, 2, 3], &[10, 1, 2, 3])] {
            let answer = ask_by_udp(at, false, query, ANSWER_LIMIT).unwrap();
            assert_eq!((&answer[..2], answer.ends_with(by_udp)), (&query[..2], true), "{answer:?}");
            let answer = ask_by_tcp(at, false, query, ANSWER_LIMIT).unwrap();
            assert_eq!((&answer[..2], answer.ends_with(by_tcp)), (&query[..2], true), "{answer:?}");
        }
        // Over one connection, one after the other.
        let mut client = TcpStream::connect(at).unwrap();
        for _ in 0..2 {
            write_message(&mut client, QUERY).unwrap();
            assert!(read_message(&mut client).unwrap().ends_with(b"tcp"));
        }
    }

    #[test]
    fn a_server_that_does_not_answer_is_left_for_the_next_and_asked_last_from_then_on() {
        let port = server(LIVING);
        // It receives queries and never answers.
        let _dead = UdpSocket::bind((DEAD, port)).unwrap();
        let forwarder = forwarder(&["fd00:dead::53", DEAD, LIVING], "", port);
        for _ in 0..2 {
            assert!(forwarder.answer(QUERY, ask_by_udp).unwrap().ends_with(b"udp"));
            assert_eq!(forwarder.preferred.load(Ordering::Relaxed), 2);
        }
    }

    #[test]
    fn the_name_of_the_machine_is_that_of_the_node_unless_somebody_else_knows_it() {
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04host\x06docker\x08internal\0\0\x01\0\x01";
        let says = |code: u8, end: &'static [u8]| {
            move |_: SocketAddr, _: bool, query: &[u8], _: Duration| Ok([&query[..2], &[0x81, 0x80 | code], end].concat())
        };
        let (unknown, known) = (says(3, b"no such name"), says(0, b"known"));
        let nobody = |_: SocketAddr, _: bool, _: &[u8], _: Duration| Err(io::ErrorKind::ConnectionRefused.into());
        let with = |hosts: &str| forwarder(&[LIVING], hosts, 1);
        assert!(with("").answer(query, unknown).unwrap().ends_with(&NODE.octets()));
        assert!(with("").answer(query, nobody).unwrap().ends_with(&NODE.octets()));
        assert!(with("").answer(query, known).unwrap().ends_with(b"known"));
        assert!(with("10.1.2.3 host.docker.internal\n").answer(query, unknown).unwrap().ends_with(&[10, 1, 2, 3]));
        assert!(with("").answer(QUERY, unknown).unwrap().ends_with(b"no such name"), "of any other name");
    }

    #[test]
    fn a_failure_is_an_answer_only_where_no_other_server_has_one() {
        let refused = |server: SocketAddr, _: bool, query: &[u8], _: Duration| match server.ip().to_string().as_str() {
            DEAD => Ok([&query[..2], b"\x81\x85 refused"].concat()),
            _ => Ok([&query[..2], b"\x81\x83 no such name"].concat()),
        };
        assert!(forwarder(&[DEAD, LIVING], "", 1).answer(QUERY, refused).unwrap().ends_with(b"name"));
        assert!(forwarder(&[DEAD], "", 1).answer(QUERY, refused).unwrap().ends_with(b"refused"));
        let nobody = |_: SocketAddr, _: bool, _: &[u8], _: Duration| Err(io::ErrorKind::ConnectionRefused.into());
        for servers in [&[][..], &[LIVING]] {
            let answer = forwarder(servers, "", 1).answer(QUERY, nobody).unwrap();
            assert!(hosts::is_failure(&answer), "{answer:?}");
        }
        assert!(forwarder(&[LIVING], "", 1).answer(b"nonsense", nobody).is_none());
    }
}
