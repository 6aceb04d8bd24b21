//! Name servers that pods can reach.
//!
//! On a user-defined network Docker's own DNS listens on 127.0.0.11, which is the node's loopback:
//! pods would ask themselves, and CoreDNS stops when it finds itself in that loop. Then a small
//! forwarder on the static address passes queries on, over UDP and TCP.
//!
//! In a pod of another cluster with kubeadm's defaults the name server is 10.96.0.10, and so is the one
//! of the cluster in here: kube-proxy would send the forwarder's own packets back to ourselves. They
//! bear a mark by which connection tracking, and with it all rewriting, leaves them alone.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{connect, setsockopt, socket, sockopt, AddressFamily, SockFlag, SockType, SockaddrIn};
use nix::sys::time::TimeVal;

use crate::config::{subnets_overlap, RESOLV_CONF, RUN_DIR, SERVICE_SUBNET};
use crate::error::{Error, Result};
use crate::node::mounts;
use crate::supervisor::reaper;

const PORT: u16 = 53;
const SYSTEM_RESOLV_CONF: &str = "/etc/resolv.conf";
/// A resolver gives up on an answer after 5 s by itself (resolv.conf(5)).
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Queries under way at once; one more is dropped and asked again by its client.
const MAX_QUERIES: usize = 128;
/// Datagrams may be this long with EDNS(0) (RFC 6891 recommends 4096).
const MAX_DATAGRAM: usize = 4096;
/// Of packets to a name server that has an address of this cluster's own Services: none of kube-proxy's
/// bits (0x4000, 0x8000).
const PAST_SERVICES: u32 = 0x100_0000;
/// A forwarding thread holds one datagram and little else.
const STACK: usize = 64 * 1024;

/// Writes the resolv.conf that kubelet gives to pods, and starts the forwarder where one is needed.
/// Returns the forwarder's address when there is one.
pub fn prepare(static_ip: Ipv4Addr) -> Result<Option<Ipv4Addr>> {
    let system = fs::read_to_string(SYSTEM_RESOLV_CONF).unwrap_or_default();
    let (text, upstream) = for_pods(&system, static_ip);
    mounts::make_dir(RUN_DIR)?;
    fs::write(Path::new(RESOLV_CONF), text).map_err(|cause| Error::io("write", RESOLV_CONF, cause))?;
    let Some(upstream) = upstream else { return Ok(None) };
    let upstream = Upstream { address: SocketAddr::new(upstream, PORT), is_shadowed: is_shadowed(&upstream) };
    if upstream.is_shadowed {
        let mark = PAST_SERVICES.to_string();
        let rule = ["--wait", "--table", "raw", "--insert", "OUTPUT", "--match", "mark", "--mark", &mark, "--jump", "CT", "--notrack"];
        reaper::run(Command::new("iptables").args(rule))?;
    }
    let fail = |cause: io::Error| Error::new(format!("cannot listen on {static_ip}:{PORT} to forward DNS queries: {cause}"));
    let udp = Arc::new(UdpSocket::bind((static_ip, PORT)).map_err(fail)?);
    let tcp = TcpListener::bind((static_ip, PORT)).map_err(fail)?;
    let queries = Arc::new(AtomicUsize::new(0));
    let (counter, spawn_fail) = (queries.clone(), |cause| Error::new(format!("cannot start the DNS forwarder: {cause}")));
    thread::Builder::new().name("dns-udp".into()).spawn(move || serve_udp(&udp, upstream, &counter)).map_err(spawn_fail)?;
    thread::Builder::new().name("dns-tcp".into()).spawn(move || serve_tcp(&tcp, upstream, &queries)).map_err(spawn_fail)?;
    log::info!(target: "network", "pods ask for names at {static_ip}, which forwards to {}", upstream.address);
    Ok(Some(static_ip))
}

/// Where queries are forwarded to.
#[derive(Clone, Copy)]
struct Upstream {
    address: SocketAddr,
    /// Whether it has an address of this cluster's own Services.
    is_shadowed: bool,
}

impl Upstream {
    fn udp(self) -> io::Result<UdpSocket> {
        let own = UdpSocket::bind("0.0.0.0:0")?;
        if self.is_shadowed {
            setsockopt(&own, sockopt::Mark, &PAST_SERVICES)?;
        }
        own.set_read_timeout(Some(ANSWER_LIMIT))?;
        own.connect(self.address)?;
        Ok(own)
    }

    fn tcp(self) -> io::Result<TcpStream> {
        let SocketAddr::V4(address) = self.address else { return TcpStream::connect_timeout(&self.address, ANSWER_LIMIT) };
        if !self.is_shadowed {
            return TcpStream::connect_timeout(&self.address, ANSWER_LIMIT);
        }
        // std connects at once, and the mark has to be there before.
        let own = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&own, sockopt::Mark, &PAST_SERVICES)?;
        setsockopt(&own, sockopt::SendTimeout, &TimeVal::new(ANSWER_LIMIT.as_secs() as i64, 0))?;
        connect(own.as_raw_fd(), &SockaddrIn::from(address))?;
        Ok(own.into())
    }
}

fn is_shadowed(server: &IpAddr) -> bool {
    matches!(server, IpAddr::V4(server) if subnets_overlap(SERVICE_SUBNET, *server, u32::MAX))
}

/// The text for pods, and the server out of their reach that has to be forwarded to, if any.
fn for_pods(system: &str, static_ip: Ipv4Addr) -> (String, Option<IpAddr>) {
    let server = |line: &str| line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok();
    let servers: Vec<IpAddr> = system.lines().filter_map(server).collect();
    let reachable: Vec<&IpAddr> = servers.iter().filter(|server| !server.is_loopback() && !is_shadowed(server)).collect();
    let others = system.lines().filter(|line| ["search", "options"].iter().any(|word| line.starts_with(word)));
    let mut text: String = others.map(|line| format!("{line}\n")).collect();
    if reachable.is_empty() {
        // Without any server CoreDNS does not start: this one at least refuses at once.
        text.push_str(&format!("nameserver {static_ip}\n"));
        return (text, servers.first().copied());
    }
    text.extend(reachable.iter().map(|server| format!("nameserver {server}\n")));
    (text, None)
}

fn serve_udp(socket: &Arc<UdpSocket>, upstream: Upstream, queries: &Arc<AtomicUsize>) {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let (query, socket) = (buffer[..length].to_vec(), socket.clone());
        in_background(queries, move || {
            let own = upstream.udp()?;
            own.send(&query)?;
            let mut answer = vec![0; MAX_DATAGRAM];
            let length = own.recv(&mut answer)?;
            socket.send_to(&answer[..length], client).map(drop)
        });
    }
}

fn serve_tcp(listener: &TcpListener, upstream: Upstream, queries: &Arc<AtomicUsize>) {
    for client in listener.incoming().flatten() {
        in_background(queries, move || {
            let server = upstream.tcp()?;
            for stream in [&client, &server] {
                stream.set_read_timeout(Some(ANSWER_LIMIT))?;
                stream.set_write_timeout(Some(ANSWER_LIMIT))?;
            }
            let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
            let up = thread::Builder::new().stack_size(STACK).spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            })?;
            let (mut from, mut to) = (&server, &client);
            let _ = io::copy(&mut from, &mut to);
            let _ = client.shutdown(Shutdown::Both);
            let _ = up.join();
            Ok(())
        });
    }
}

/// Runs one query in a thread of its own, up to a number at once. A failed one is the client's to repeat.
fn in_background(queries: &Arc<AtomicUsize>, body: impl FnOnce() -> io::Result<()> + Send + 'static) {
    if queries.fetch_add(1, Ordering::Relaxed) >= MAX_QUERIES {
        queries.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let counter = queries.clone();
    let started = thread::Builder::new().stack_size(STACK).spawn(move || {
        let _ = body();
        counter.fetch_sub(1, Ordering::Relaxed);
    });
    if started.is_err() {
        queries.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATIC: Ipv4Addr = Ipv4Addr::new(172, 99, 99, 1);

    #[test]
    fn servers_that_pods_reach_are_left_alone() {
        let system = "# made by Docker\nsearch ci.example\nnameserver 10.0.0.2\nnameserver 127.0.0.53\noptions ndots:0\n";
        assert_eq!(for_pods(system, STATIC), ("search ci.example\noptions ndots:0\nnameserver 10.0.0.2\n".into(), None));
    }

    #[test]
    fn dockers_own_server_is_forwarded_to() {
        let expected = ("options ndots:0\nnameserver 172.99.99.1\n".to_string(), Some("127.0.0.11".parse().unwrap()));
        assert_eq!(for_pods("nameserver 127.0.0.11\noptions ndots:0\n", STATIC), expected);
    }

    #[test]
    fn a_server_that_our_own_services_hide_is_forwarded_to() {
        let outer = "search default.svc.cluster.local\nnameserver 10.96.0.10\n";
        let expected = "search default.svc.cluster.local\nnameserver 172.99.99.1\n";
        assert_eq!(for_pods(outer, STATIC), (expected.into(), Some("10.96.0.10".parse().unwrap())));
        assert!(is_shadowed(&"10.96.0.10".parse().unwrap()) && !is_shadowed(&"10.0.0.10".parse().unwrap()));
    }

    #[test]
    fn without_any_server_pods_get_one_that_refuses() {
        assert_eq!(for_pods("", STATIC), ("nameserver 172.99.99.1\n".into(), None));
    }

    #[test]
    fn queries_are_forwarded_over_udp_and_tcp() {
        use std::io::{Read, Write};
        // A port that is free for UDP may be taken for TCP.
        let (upstream_udp, upstream_tcp) = std::iter::repeat_with(|| UdpSocket::bind("127.0.0.1:0").unwrap())
            .find_map(|udp| TcpListener::bind(udp.local_addr().unwrap()).ok().map(|tcp| (udp, tcp)))
            .unwrap();
        let upstream = Upstream { address: upstream_udp.local_addr().unwrap(), is_shadowed: false };
        thread::spawn(move || {
            let mut buffer = [0; 64];
            let (length, from) = upstream_udp.recv_from(&mut buffer).unwrap();
            upstream_udp.send_to(&buffer[..length], from).unwrap();
        });
        thread::spawn(move || {
            let (mut stream, _) = upstream_tcp.accept().unwrap();
            let mut buffer = [0; 3];
            stream.read_exact(&mut buffer).unwrap();
            stream.write_all(&buffer).unwrap();
        });
        let (udp, tcp) = (Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap()), TcpListener::bind("127.0.0.1:0").unwrap());
        let (udp_address, tcp_address) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let queries = Arc::new(AtomicUsize::new(0));
        let counter = queries.clone();
        thread::spawn(move || serve_udp(&udp, upstream, &counter));
        thread::spawn(move || serve_tcp(&tcp, upstream, &queries));

        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(ANSWER_LIMIT)).unwrap();
        client.send_to(b"udp", udp_address).unwrap();
        let mut answer = [0; 3];
        client.recv(&mut answer).unwrap();
        assert_eq!(&answer, b"udp");
        let mut client = TcpStream::connect(tcp_address).unwrap();
        client.write_all(b"tcp").unwrap();
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"tcp");
    }
}
