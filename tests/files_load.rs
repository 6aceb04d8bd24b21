//! The file server under many, slow and vanishing clients: it answers, stays small, and loses no thread.
// No reaper runs in this process, so std's own wait calls steal nothing.
#![allow(clippy::disallowed_methods)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::dockerd::{Dockerd, Fault};
use common::node::{Container, Running, FILES_PORT};
use common::{parse_answer, raw, request, wait_for, LIMIT};
use nix::sys::socket::{setsockopt, sockopt};

const CLIENTS: usize = 200;
const REQUESTS: usize = 10_000;
/// The threads that accept clients: one for each address that the file server listens on.
const ACCEPTING: usize = 2;
/// Of the whole init, in KiB.
const MEMORY_LIMIT: u64 = 32 * 1024;
const REQUEST: &str = "GET /docker-ready HTTP/1.1\r\nHost: h\r\n\r\n";

/// A file server with a `docker-ready`. The container comes first, and so ends last.
fn serving() -> Option<(Container, Running)> {
    let container = Container::new()?;
    let kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 404);
    container.root.write("var/kind/docker-ready", "ready\n");
    Some((container, kind))
}

/// The most memory that a process has had, in KiB (`VmHWM` of proc_pid_status(5)).
fn memory_peak(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The threads that serve a client. They have their name from the one that accepts clients; the boot's threads, which
/// come and go meanwhile, have others.
fn serving_threads(pid: i32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    let count = names.filter(|name| name == "clients\n").count();
    count.checked_sub(ACCEPTING).expect("no thread accepts clients")
}

fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).unwrap()
}

/// How long one request takes; panics unless it is answered with 200.
fn timed(port: u16) -> Duration {
    let began = Instant::now();
    assert_eq!(request(port, "GET", "/docker-ready").unwrap().0, 200);
    began.elapsed()
}

#[test]
fn two_hundred_clients_that_send_a_byte_a_second_hold_up_nobody() {
    let Some((_container, mut kind)) = serving() else { return };
    let mut slow: Vec<TcpStream> = (0..CLIENTS).map(|_| connect(FILES_PORT)).collect();
    let mut answers = vec![];
    // Longer than the limit for a whole request, so that each is closed once and comes back.
    let mut closed = 0;
    for second in 0..8 {
        let began = Instant::now();
        for client in &mut slow {
            if client.write_all(&REQUEST.as_bytes()[second..=second]).is_err() || is_closed(client) {
                closed += 1;
                *client = connect(FILES_PORT);
            }
        }
        while began.elapsed() < Duration::from_secs(1) {
            answers.push(timed(FILES_PORT));
        }
    }
    answers.sort();
    let slowest = [answers.len() / 2, answers.len() * 99 / 100, answers.len() - 1].map(|at| answers[at].as_secs_f64());
    println!("{} answers beside {CLIENTS} slow clients ({closed} closed): half, 99 % and all within {slowest:.3?} s", answers.len());
    println!("memory {} KiB", memory_peak(kind.pid()));
    assert!(closed >= CLIENTS, "a client that takes too long is closed: {closed}");
    assert!(memory_peak(kind.pid()) < MEMORY_LIMIT);
    assert!(kind.still_runs());
}

/// An answer has arrived, and is not read.
fn is_answered(client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let peeked = client.peek(&mut [0]);
    client.set_nonblocking(false).unwrap();
    peeked.is_ok_and(|length| length > 0)
}

fn is_closed(mut client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let read = client.read(&mut [0]);
    client.set_nonblocking(false).unwrap();
    !read.is_err_and(|cause| cause.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn ten_thousand_requests_at_two_hundred_at_a_time_are_all_answered() {
    let Some((container, kind)) = serving() else { return };
    let began = Instant::now();
    let client = || {
        let ask = |_| raw(FILES_PORT, REQUEST).is_ok_and(|answer| parse_answer(&answer) == (200, "ready\n".into()));
        (0..REQUESTS / CLIENTS).filter(|number| ask(*number)).count()
    };
    let clients: Vec<_> = (0..CLIENTS).map(|_| thread::spawn(client)).collect();
    let answered: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    println!("{answered} requests in {:.1} s, memory {} KiB", began.elapsed().as_secs_f64(), memory_peak(kind.pid()));
    assert_eq!(answered, REQUESTS);
    assert_eq!(container.get("docker-ready").0, 200);
    assert!(memory_peak(kind.pid()) < MEMORY_LIMIT);
    wait_for("the threads of the clients are gone", LIMIT, || (serving_threads(kind.pid()) == 0).then_some(()));
}

/// Closes a connection with a reset instead of an end.
fn vanish(client: TcpStream) {
    setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

#[test]
fn a_client_that_vanishes_costs_no_thread() {
    let Some((container, mut kind)) = serving() else { return };
    assert_eq!(container.get("docker-ready").0, 200);
    for _ in 0..500 {
        for length in [0, 1, 20, REQUEST.len() - 1, REQUEST.len()] {
            let mut client = connect(FILES_PORT);
            client.write_all(&REQUEST.as_bytes()[..length]).unwrap();
            vanish(client);
        }
        let mut client = connect(FILES_PORT);
        client.write_all(REQUEST.as_bytes()).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.read_exact(&mut [0]).unwrap();
        vanish(client);
    }
    wait_for("the threads of the clients are gone", LIMIT, || (serving_threads(kind.pid()) == 0).then_some(()));
    assert_eq!(container.get("docker-ready").0, 200);
    assert!(kind.still_runs() && !kind.stderr().contains("internal error"), "{}", kind.stderr());
}

#[test]
fn more_clients_than_there_is_room_for_are_closed_and_not_kept_waiting() {
    let Some((container, kind)) = serving() else { return };
    let silent: Vec<TcpStream> = (0..600).map(|_| connect(FILES_PORT)).collect();
    let refused =
        wait_for("some are closed", LIMIT, || Some(silent.iter().filter(|client| is_closed(client)).count()).filter(|count| *count > 0));
    println!("{refused} of 600 silent clients were closed at once, memory {} KiB", memory_peak(kind.pid()));
    // The others are closed when they have said nothing for too long, and then there is room again.
    wait_for("an answer", LIMIT, || container.get_now("docker-ready").filter(|(status, _)| *status == 200));
    assert!(memory_peak(kind.pid()) < MEMORY_LIMIT);
}

/// Not a test: what the script `dockerd` of the test below becomes.
#[test]
#[ignore = "the stand-in for dockerd, which the other test starts"]
fn the_stand_in_for_dockerd() {
    common::dockerd::run_if_asked();
}

/// More than may be held, and fewer than there is room for.
const WAITING: usize = 300;
const MAX_HELD: usize = 256;

fn cpu_ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn clients_that_are_held_cost_nothing_and_leave_room_for_others() {
    let Some(container) = Container::new() else { return };
    let dockerd = Dockerd::install(&container);
    dockerd.tell(Fault::Held);
    let kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 404);
    let wait = || {
        let mut client = connect(FILES_PORT);
        client.write_all(b"GET /docker-ready?wait=600 HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        client
    };
    // Those that vanish are not held for ten minutes.
    (0..WAITING).map(|_| wait()).collect::<Vec<_>>().into_iter().enumerate().for_each(|(number, client)| {
        if number % 2 == 0 {
            vanish(client);
        }
    });
    wait_for("the threads of the clients are gone", LIMIT, || (serving_threads(kind.pid()) == 0).then_some(()));

    let mut clients: Vec<TcpStream> = (0..WAITING).map(|_| wait()).collect();
    let answered = || clients.iter().filter(|client| is_answered(client)).count();
    wait_for("the others are answered at once", LIMIT, || (answered() == WAITING - MAX_HELD).then_some(()));
    assert_eq!(request(FILES_PORT, "GET", "/docker-ready").unwrap().0, 404);
    let ticks = cpu_ticks(kind.pid());
    thread::sleep(Duration::from_secs(3));
    let ticks = cpu_ticks(kind.pid()) - ticks;
    println!("{MAX_HELD} held clients: {ticks} ticks of the processor in 3 s, memory {} KiB", memory_peak(kind.pid()));
    assert!(ticks <= 10, "{ticks} ticks");
    assert_eq!((answered(), serving_threads(kind.pid())), (WAITING - MAX_HELD, MAX_HELD));

    dockerd.mend(Fault::Held);
    let answers = clients.iter_mut().map(|client| {
        client.set_read_timeout(Some(LIMIT)).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        parse_answer(&answer).0
    });
    let answers: Vec<u16> = answers.collect();
    let count = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((count(200), count(404)), (MAX_HELD, WAITING - MAX_HELD));
    assert!(memory_peak(kind.pid()) < MEMORY_LIMIT);
}

/// The negative control of this file: a server that serves one client after the other is held up.
#[test]
fn a_server_without_bounds_is_noticed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if client.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                head.push(byte[0]);
            }
            let _ = client.write_all(b"HTTP/1.1 200 OK\r\n\r\nready\n");
        }
    });
    timed(port);
    let mut slow = connect(port);
    slow.write_all(b"G").unwrap();
    let mut held_up = connect(port);
    held_up.write_all(REQUEST.as_bytes()).unwrap();
    held_up.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(held_up.read(&mut [0]).is_err(), "it was answered beside a slow client");
}
