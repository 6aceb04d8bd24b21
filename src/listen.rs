//! Listens as docker:dind does: on every IPv6 and IPv4 address, or on IPv4 alone if the kernel has no IPv6.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, setsockopt, sockopt, AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6};

use crate::threads::Places;

/// After an error that may stay, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections waiting to be accepted; the same as std's.
const BACKLOG: i32 = 128;

/// Every address, on this port.
pub fn everywhere(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

/// Listens on an address. `[::]` means every address, including IPv4.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match address {
        SocketAddr::V6(all) if all.ip().is_unspecified() => everywhere_by(all, on_both),
        _ => TcpListener::bind(address),
    }
}

/// Listens on every address, also IPv4's, of a port on which another process of this user may begin to listen, if both set
/// SO_REUSEPORT. An error without IPv6.
pub fn listen_beside(port: u16) -> io::Result<TcpListener> {
    let socket = socket_for_both()?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    Ok(listen_on(socket, SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0))?)
}

/// Serves each client that connects (`TcpListener::incoming`) in a thread of its own. The connection of one for whom there is
/// no place is closed at once.
pub fn accept(clients: impl Iterator<Item = io::Result<TcpStream>>, places: &Places, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
    for client in clients {
        let Ok(client) = client else {
            thread::sleep(ACCEPT_PAUSE);
            continue;
        };
        let serve = serve.clone();
        places.run(move || serve(client));
    }
}

/// Whether a port is free on every address. It is bound for a moment, but nobody can connect to it.
pub fn check_free(port: u16) -> io::Result<()> {
    let socket = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    Ok(socket::bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?)
}

fn everywhere_by(all: SocketAddrV6, on_both: impl FnOnce(SocketAddrV6) -> nix::Result<TcpListener>) -> io::Result<TcpListener> {
    match on_both(all) {
        // With ipv6.disable=1 the kernel has no such socket; without the module, no such address.
        Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, all.port())),
        both => Ok(both?),
    }
}

fn on_both(address: SocketAddrV6) -> nix::Result<TcpListener> {
    listen_on(socket_for_both()?, address)
}

/// A socket for IPv6 and IPv4 whatever net.ipv6.bindv6only says, unlike std's.
fn socket_for_both() -> nix::Result<OwnedFd> {
    let socket = socket::socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    Ok(socket)
}

fn listen_on(socket: OwnedFd, address: SocketAddrV6) -> nix::Result<TcpListener> {
    socket::bind(socket.as_raw_fd(), &SockaddrIn6::from(address))?;
    socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::SMALL_STACK;

    const ALL: SocketAddrV6 = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0);

    #[test]
    fn an_error_that_stays_is_not_met_again_at_once() {
        let errors = std::iter::repeat_with(|| Err(io::Error::from_raw_os_error(libc::EMFILE))).take(3);
        let begin = std::time::Instant::now();
        accept(errors, &Places::new(1, SMALL_STACK), drop);
        assert!(begin.elapsed() >= 3 * ACCEPT_PAUSE);
    }

    #[test]
    fn as_many_clients_are_served_at_once_as_there_are_places_and_each_place_is_given_back() {
        let places = Places::new(2, SMALL_STACK);
        let (ends, end) = std::sync::mpsc::channel::<()>();
        let end = std::sync::Arc::new(std::sync::Mutex::new(end));
        let (tell, served) = std::sync::mpsc::channel();
        let run = || {
            let (tell, end) = (tell.clone(), end.clone());
            places.run(move || {
                tell.send(()).unwrap();
                end.lock().unwrap().recv().unwrap();
                tell.send(()).unwrap();
            });
        };
        let limit = Duration::from_secs(10);
        run();
        run();
        served.recv_timeout(limit).unwrap();
        served.recv_timeout(limit).unwrap();
        run();
        assert!(served.recv_timeout(Duration::from_millis(100)).is_err(), "there are two places only");
        ends.send(()).unwrap();
        served.recv_timeout(limit).unwrap();
        // The place is given back a moment after the last word.
        let again = crate::supervisor::reaper::poll(Duration::from_millis(5), limit, || {
            run();
            served.recv_timeout(Duration::from_millis(50)).ok()
        });
        assert!(again.is_some(), "a place that was given back is taken again");
    }

    #[test]
    fn every_address_is_ipv4s_too_with_and_without_ipv6() {
        let missing = [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL].map(|errno| everywhere_by(ALL, |_| Err(errno)).unwrap());
        for listener in [listen(everywhere(0)).unwrap()].iter().chain(&missing) {
            TcpStream::connect((Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port())).unwrap();
        }
        assert!(missing.iter().all(|listener| listener.local_addr().unwrap().is_ipv4()));
    }

    #[test]
    fn a_port_that_is_taken_is_an_error_and_another_address_is_taken_as_it_is() {
        let taken = TcpListener::bind("0.0.0.0:0").unwrap();
        let error = listen(everywhere(taken.local_addr().unwrap().port())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(check_free(taken.local_addr().unwrap().port()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let on_both = listen(everywhere(0)).unwrap();
        assert!(check_free(on_both.local_addr().unwrap().port()).is_err() && check_free(0).is_ok());
        let one = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_eq!(one.local_addr().unwrap().ip(), Ipv4Addr::LOCALHOST);
    }
}
