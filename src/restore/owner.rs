//! Looks after the restored programs, in one thread that sleeps until something happens: a program ends, a container's
//! stand-in claims its program, wants to signal it, or goes away.
//!
//! | what happens | what follows |
//! |---|---|
//! | a stand-in claims a program that runs, with the arguments that it has | it stands for it until either ends |
//! | a stand-in asks for anything else | the restored program, if it runs, is ended; the stand-in becomes the program |
//! | a program ends | its stand-in ends with the same status; the next one becomes the program |
//! | a stand-in is told to stop | the signal goes to the program; while the container stops, etcd's waits for the others |
//! | a stand-in is killed | the program is killed, so that it holds no port |
//!
//! Whoever cannot reach this socket becomes the program, so without an owner everything is as in a plain start.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::config::{NODE_NAME, POLL, RESTORED_DIR};
use crate::error::{Error, Result};
use crate::readiness::Pods;
use crate::restore::saved::{Program, Saved};
use crate::restore::tree::Process;
use crate::restore::ETCD;
use crate::supervisor::Init;

const SOCKET: &str = "socket";
/// A stand-in says at once what it wants.
const REQUEST_LIMIT: Duration = Duration::from_secs(1);
/// How long a program that has to go may take after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long the stop lets the other programs write to etcd before it is told to end.
const ETCD_WAITS: Duration = Duration::from_millis(1500);

/// What a stand-in asks, in one line of JSON.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub enum Request {
    Claim { name: String, argv: Vec<String> },
    Signal(i32),
}

/// What it is answered.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub enum Answer {
    /// Become the program.
    Plain,
    /// Stand for it; its log is new from this offset on.
    Restored {
        log_from: u64,
    },
    Ended {
        status: i32,
    },
}

pub fn socket() -> PathBuf {
    Path::new(RESTORED_DIR).join(SOCKET)
}

/// The static pod of a program.
fn pod_of(name: &str) -> String {
    format!("kube-system/{name}-{NODE_NAME}")
}

/// A line to send.
pub fn line(message: &impl Serialize) -> String {
    serde_json::to_string(message).expect("strings and numbers can always be written as JSON") + "\n"
}

struct Owned {
    program: Program,
    process: Process,
    /// `None` once it has ended, or has been told to.
    runs: bool,
    stand_in: Option<BufReader<UnixStream>>,
}

struct Owner {
    init: Arc<Init>,
    owned: Vec<Owned>,
    /// When etcd is to end, once the container stops.
    etcd_ends: Option<Instant>,
}

/// Stand-ins that ask from now on wait for an answer, or until the socket is closed.
pub fn listen() -> Result<UnixListener> {
    let path = socket();
    UnixListener::bind(&path).map_err(|cause| Error::io("listen on", &path, cause))
}

/// Starts the thread, which answers those that ask on `stand_ins`.
pub fn start(init: &Arc<Init>, stand_ins: &UnixListener, saved: &Saved, processes: Vec<Process>) -> Result<()> {
    let listener = stand_ins.try_clone().map_err(|cause| Error::io("use", socket(), cause))?;
    let own = |(program, process): (&Program, Process)| Owned { program: program.clone(), process, runs: true, stand_in: None };
    let owned = saved.programs.iter().zip(processes).map(own).collect();
    let mut owner = Owner { init: init.clone(), owned, etcd_ends: None };
    init.readiness.update(|state| state.restored = saved.programs.iter().map(|program| pod_of(&program.name)).collect());
    let started = thread::Builder::new().name("restored".into()).spawn(move || owner.run(&listener));
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the thread of the restored programs: {cause}")))
}

/// What the thread wakes up for.
enum Event {
    Asked,
    Ended(usize),
    Said(usize),
    /// The others have had their time to write to etcd (`ETCD_WAITS`).
    EtcdMayEnd,
}

impl Owner {
    fn run(&mut self, listener: &UnixListener) {
        while self.owned.iter().any(|owned| owned.runs) {
            match self.wait(listener.as_fd()) {
                Event::Asked => {
                    if let Ok((stream, _)) = listener.accept() {
                        self.answer(stream);
                    }
                }
                Event::Ended(index) => self.ended(index),
                Event::Said(index) => self.said(index),
                Event::EtcdMayEnd => self.end_etcd(),
            }
        }
        // Whoever asks from now on finds no socket, and becomes the program.
        let _ = std::fs::remove_file(socket());
    }

    fn wait(&self, listener: BorrowedFd) -> Event {
        loop {
            let mut fds = vec![(listener, Event::Asked)];
            for (index, owned) in self.owned.iter().enumerate().filter(|(_, owned)| owned.runs) {
                fds.push((owned.process.fd.as_fd(), Event::Ended(index)));
                fds.extend(owned.stand_in.iter().map(|stand_in| (stand_in.get_ref().as_fd(), Event::Said(index))));
            }
            let timeout = match self.etcd_ends {
                Some(at) => PollTimeout::try_from(at.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO),
                None => PollTimeout::NONE,
            };
            let mut polled: Vec<PollFd> = fds.iter().map(|(fd, _)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
            match poll(&mut polled, timeout) {
                Ok(0) => return Event::EtcdMayEnd,
                Ok(_) => {
                    if let Some(ready) = polled.iter().position(|fd| fd.any().unwrap_or_default()) {
                        return fds.swap_remove(ready).1;
                    }
                }
                // A signal that this thread has taken for the init: poll(2) is never resumed after one.
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    /// Answers a stand-in that has just connected.
    fn answer(&mut self, stream: UnixStream) {
        let _ = stream.set_read_timeout(Some(REQUEST_LIMIT));
        let _ = stream.set_write_timeout(Some(REQUEST_LIMIT));
        let mut reader = BufReader::new(stream);
        let Some(Request::Claim { name, argv }) = read_request(&mut reader) else { return };
        let Some(index) = self.owned.iter().position(|owned| owned.program.name == name) else {
            return say(&reader, &Answer::Plain);
        };
        let owned = &mut self.owned[index];
        if owned.runs && owned.stand_in.is_none() && owned.program.argv == argv {
            say(&reader, &Answer::Restored { log_from: owned.program.logged });
            owned.stand_in = Some(reader);
            return;
        }
        if owned.runs {
            log::info!(target: "restore", "{name} has other arguments now: it is started the plain way");
            owned.end();
            self.ended(index);
        }
        say(&reader, &Answer::Plain);
    }

    fn said(&mut self, index: usize) {
        let stopping = self.init.shutdown.stopping();
        let owned = &mut self.owned[index];
        let Some(stand_in) = &mut owned.stand_in else { return };
        match read_request(stand_in) {
            Some(Request::Signal(_)) if stopping && owned.program.name == ETCD && self.etcd_ends.is_none() => {
                self.etcd_ends = Some(Instant::now() + ETCD_WAITS);
            }
            Some(Request::Signal(signal)) => owned.process.signal(signal),
            Some(Request::Claim { .. }) => {}
            // It was killed.
            None => {
                owned.stand_in = None;
                owned.process.signal(Signal::SIGKILL as i32);
            }
        }
    }

    /// The stop: etcd gets its signal when the others have ended, or have had their time.
    fn end_etcd(&mut self) {
        self.etcd_ends = None;
        self.owned.iter().filter(|owned| owned.runs && owned.program.name == ETCD).for_each(|owned| {
            owned.process.signal(Signal::SIGTERM as i32);
        });
    }

    fn ended(&mut self, index: usize) {
        let owned = &mut self.owned[index];
        owned.runs = false;
        let status = owned.process.status();
        if let Some(stand_in) = owned.stand_in.take() {
            say(&stand_in, &Answer::Ended { status });
        }
        let pod = pod_of(&owned.program.name);
        self.init.readiness.update(|state| {
            // It counted as Ready because it ran.
            if state.restored.remove(&pod) && state.pods == Pods::Ready {
                state.pods = Pods::Waiting(vec![format!("{pod}: its program has ended")]);
            }
        });
        if !self.init.shutdown.stopping() {
            log::warn!(target: "restore", "{} has ended with status {status}; it is started the plain way from now on", owned.program.name);
        }
        let others = self.owned.iter().any(|owned| owned.runs && owned.program.name != ETCD);
        if !others && self.etcd_ends.is_some() {
            self.end_etcd();
        }
    }
}

impl Owned {
    /// Ends the program, and waits until it has ended: its ports must be free for the next one.
    fn end(&self) {
        self.process.signal(Signal::SIGTERM as i32);
        if !self.ends_within(END_LIMIT) {
            self.process.signal(Signal::SIGKILL as i32);
            self.ends_within(END_LIMIT);
        }
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
        poll(&mut [PollFd::new(self.process.fd.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|ready| ready > 0)
    }
}

fn read_request(reader: &mut BufReader<UnixStream>) -> Option<Request> {
    let mut text = String::new();
    reader.read_line(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// A stand-in that has gone is found by the next wait.
fn say(reader: &BufReader<UnixStream>, answer: &Answer) {
    let _ = reader.get_ref().write_all(line(answer).as_bytes());
}
