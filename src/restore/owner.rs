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
//! Whoever cannot reach this socket becomes the program, so without an owner everything is as in a cold start.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cluster::ETCD;
use crate::config::{NODE_NAME, POLL, RESTORED_DIR};
use crate::error::{Error, Result};
use crate::restore::saved::{Program, Saved};
use crate::restore::tree::Process;
use crate::supervisor::Init;
use crate::{sys, threads};

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

/// Sends a message. If the other side has gone, whoever reads from it notices.
pub fn send(to: &BufReader<UnixStream>, message: &impl Serialize) {
    let _ = to.get_ref().write_all(line(message).as_bytes());
}

fn line(message: &impl Serialize) -> String {
    serde_json::to_string(message).expect("strings and numbers can always be written as JSON") + "\n"
}

/// The next message. `None` if the other side has gone, or says something else.
pub fn receive<T: DeserializeOwned>(from: &mut BufReader<UnixStream>) -> Option<T> {
    let mut text = String::new();
    from.read_line(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

struct Owned {
    program: Program,
    process: Process,
    /// False once it has ended, or has been told to.
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
    init.readiness.update(|state| state.restored_pods = saved.programs.iter().map(|program| pod_of(&program.name)).collect());
    threads::start("restored", move || owner.run(&listener))
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
                Event::Asked => match listener.accept() {
                    Ok((stream, _)) => self.answer(stream),
                    // Such as EMFILE: whoever asks stays where it is, and wakes us again at once.
                    Err(_) => thread::sleep(POLL),
                },
                Event::Ended(index) => self.ended(index),
                Event::Said(index) => self.said(index),
                Event::EtcdMayEnd => self.end_etcd(),
            }
        }
        // Whoever asks from now on finds no socket, and becomes the program. Another cluster has one of its own there.
        if !self.init.readiness.is_over() {
            let _ = std::fs::remove_file(socket());
        }
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
        let Some(Request::Claim { name, argv }) = receive(&mut reader) else { return };
        let Some(index) = self.owned.iter().position(|owned| owned.program.name == name) else {
            return send(&reader, &Answer::Plain);
        };
        let is_over = self.init.readiness.is_over();
        let owned = &mut self.owned[index];
        if owned.runs && owned.stand_in.is_none() && owned.program.start.argv == argv && !is_over {
            send(&reader, &Answer::Restored { log_from: owned.program.logged });
            owned.stand_in = Some(reader);
            return;
        }
        if owned.runs {
            log::info!(target: "restore", "{name} has other arguments now, or a second container: its container takes over from the restored process");
            owned.end();
            self.ended(index);
        }
        send(&reader, &Answer::Plain);
    }

    fn said(&mut self, index: usize) {
        let etcd_ends = Instant::now() + if self.others_run() { ETCD_WAITS } else { Duration::ZERO };
        let owned = &mut self.owned[index];
        while let Some(stand_in) = &mut owned.stand_in {
            match receive(stand_in) {
                Some(Request::Signal(_)) if owned.program.name == ETCD && self.init.readiness.is_over() => {
                    self.etcd_ends.get_or_insert(etcd_ends);
                }
                Some(Request::Signal(signal)) => owned.process.signal(signal),
                Some(Request::Claim { .. }) => {}
                // It was killed.
                None => {
                    owned.stand_in = None;
                    return owned.process.signal(Signal::SIGKILL as i32);
                }
            }
            // What was read already wakes nobody again.
            if stand_in.buffer().is_empty() {
                return;
            }
        }
    }

    /// Whether programs run that write to etcd.
    fn others_run(&self) -> bool {
        self.owned.iter().any(|owned| owned.runs && owned.program.name != ETCD)
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
            send(&stand_in, &Answer::Ended { status });
        }
        let pod = pod_of(&owned.program.name);
        self.init.readiness.update(|state| state.program_ended(&pod));
        if !self.init.readiness.is_over() {
            log::warn!(target: "restore", "{} has ended with status {status}; its container runs the program itself from now on", owned.program.name);
        }
        if self.etcd_ends.is_some() && !self.others_run() {
            self.end_etcd();
        }
    }
}

impl Owned {
    /// Ends the program, and waits until it has ended: its ports must be free for the next one.
    fn end(&self) {
        self.process.signal(Signal::SIGTERM as i32);
        if !sys::ends_within(&self.process.fd, END_LIMIT) {
            self.process.signal(Signal::SIGKILL as i32);
            sys::ends_within(&self.process.fd, END_LIMIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::cluster::{API_SERVER, CONTROLLERS};
    use crate::restore::saved::Start;
    use crate::supervisor::reaper::{self, Child};
    use crate::sys;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A thread that owns programs, each of which is a `sleep`. No parent reports how one ends, so it counts as killed.
    struct Test {
        init: Arc<Init>,
        socket: PathBuf,
        programs: Vec<Child>,
    }

    impl Test {
        fn start(test: &str, names: &[&str]) -> Test {
            let init = Arc::new(Init::of_test(&format!("owner-{test}")));
            let socket = init.config.path("/socket");
            let listener = UnixListener::bind(&socket).unwrap();
            let programs: Vec<Child> = names.iter().map(|_| reaper::spawn(Command::new("sleep").arg("60")).unwrap()).collect();
            let own = |(name, child): (&&str, &Child)| {
                let program = program_of_test(name, 7);
                let process = Process::of_test(sys::open_process(child.handle().pid()).unwrap());
                Owned { program, process, runs: true, stand_in: None }
            };
            let owned = names.iter().zip(&programs).map(own).collect();
            let mut owner = Owner { init: init.clone(), owned, etcd_ends: None };
            thread::spawn(move || owner.run(&listener));
            Test { init, socket, programs }
        }

        /// A new stand-in, and what it is answered when it claims a program.
        fn claim(&self, name: &str, argument: &str) -> (BufReader<UnixStream>, Answer) {
            let stream = UnixStream::connect(&self.socket).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let mut stand_in = BufReader::new(stream);
            send(&stand_in, &Request::Claim { name: name.into(), argv: vec![argument.into()] });
            let answer = receive(&mut stand_in).unwrap();
            (stand_in, answer)
        }

        fn runs(&self, index: usize) -> bool {
            reaper::drain_ours();
            self.programs[index].wait_timeout(Duration::ZERO).is_none()
        }

        fn wait_for_end(&self, index: usize) {
            assert!(reaper::poll(POLL, LIMIT, || (!self.runs(index)).then_some(())).is_some(), "program {index} does not end");
        }
    }

    impl Drop for Test {
        fn drop(&mut self) {
            self.programs.iter().for_each(|program| program.handle().kill_group());
            reaper::drain_ours();
            let _ = fs::remove_dir_all(self.init.config.path("/"));
        }
    }

    fn send_at_once(stand_in: &BufReader<UnixStream>, requests: &[Request]) {
        stand_in.get_ref().write_all(requests.iter().map(line).collect::<String>().as_bytes()).unwrap();
    }

    const STANDS: Answer = Answer::Restored { log_from: 7 };
    const ENDED: Answer = Answer::Ended { status: 137 };
    const TERM: Request = Request::Signal(Signal::SIGTERM as i32);

    fn program_of_test(name: &str, logged: u64) -> Program {
        let start = Start { name: name.to_string(), executable: PathBuf::new(), argv: vec![name.to_string()], environment: vec![] };
        Program { name: name.to_string(), pid: 0, start, logged }
    }

    #[test]
    fn a_stand_in_stands_for_a_program_once_and_with_its_arguments_alone() {
        for (test, claims, answers, runs) in [
            ("once", &[(API_SERVER, API_SERVER)][..], &[STANDS][..], true),
            // Its arguments have changed.
            ("argv", &[(API_SERVER, "--v=4")], &[Answer::Plain], false),
            // kubelet starts it anew, and the first one is still there.
            ("twice", &[(API_SERVER, API_SERVER), (API_SERVER, API_SERVER)], &[STANDS, Answer::Plain], false),
            ("unknown", &[("kube-proxy", "kube-proxy")], &[Answer::Plain], true),
        ] {
            let owner = Test::start(test, &[API_SERVER, ETCD]);
            let claimed: Vec<_> = claims.iter().map(|(name, argument)| owner.claim(name, argument)).collect();
            assert!(claimed.iter().map(|(_, answer)| answer).eq(answers), "{test}: {claimed:?}");
            assert_eq!(owner.runs(0), runs, "{test}");
        }
    }

    #[test]
    fn a_stand_in_and_its_program_end_together() {
        let owner = Test::start("together", &[API_SERVER, CONTROLLERS[0], CONTROLLERS[1]]);
        owner.init.readiness.update(|state| state.restored_pods = [pod_of(API_SERVER)].into());
        let (mut first, _) = owner.claim(API_SERVER, API_SERVER);
        owner.programs[0].handle().signal(Signal::SIGKILL);
        assert_eq!(receive(&mut first), Some(ENDED));
        assert!(owner.init.readiness.wait_until(|state| state.restored_pods.is_empty()));
        assert_eq!(owner.claim(API_SERVER, API_SERVER).1, Answer::Plain, "its container is started again");
        drop(owner.claim(CONTROLLERS[0], CONTROLLERS[0]).0);
        owner.wait_for_end(1);
        assert!(owner.runs(2));
    }

    #[test]
    fn signals_that_arrive_together_are_all_passed_on() {
        let owner = Test::start("signals", &[API_SERVER]);
        let (mut stand_in, _) = owner.claim(API_SERVER, API_SERVER);
        send_at_once(&stand_in, &[Request::Signal(Signal::SIGCONT as i32), TERM]);
        assert_eq!(receive(&mut stand_in), Some(ENDED));
    }

    #[test]
    fn in_a_stop_etcd_waits_for_the_others_however_often_it_is_signalled() {
        let owner = Test::start("etcd", &[ETCD, API_SERVER]);
        let (mut etcd, _) = owner.claim(ETCD, ETCD);
        let (api_server, _) = owner.claim(API_SERVER, API_SERVER);
        owner.init.readiness.end();
        let began = Instant::now();
        send(&etcd, &TERM);
        thread::sleep(ETCD_WAITS / 5);
        send(&etcd, &TERM);
        thread::sleep(ETCD_WAITS / 5);
        assert!(owner.runs(0) || began.elapsed() > ETCD_WAITS);
        send(&api_server, &TERM);
        assert_eq!(receive(&mut etcd), Some(ENDED));
    }

    #[test]
    fn in_a_stop_etcd_waits_for_nobody_who_has_ended_and_for_nobody_for_ever() {
        for (test, others, earliest) in [("alone", &[][..], Duration::ZERO), ("for-ever", &[API_SERVER][..], ETCD_WAITS)] {
            let owner = Test::start(test, &[&[ETCD], others].concat());
            let (mut etcd, _) = owner.claim(ETCD, ETCD);
            owner.init.readiness.end();
            let began = Instant::now();
            send(&etcd, &TERM);
            assert_eq!(receive(&mut etcd), Some(ENDED));
            assert!(began.elapsed() >= earliest && owner.programs.len() == 1 + others.len(), "{test}: {:?}", began.elapsed());
        }
    }

    #[test]
    fn a_connection_that_cannot_be_accepted_does_not_keep_it_busy() {
        // accept(2) fails for as long as there is something to read.
        let (reader, writer) = nix::unistd::pipe().unwrap();
        std::fs::File::from(writer.try_clone().unwrap()).write_all(b"x").unwrap();
        let init = Arc::new(Init::of_test("owner-accept"));
        let root = init.config.path("/");
        let program = reaper::spawn(Command::new("sleep").arg("60")).unwrap();
        let process = Process::of_test(sys::open_process(program.handle().pid()).unwrap());
        let owned = vec![Owned { program: program_of_test(API_SERVER, 0), process, runs: true, stand_in: None }];
        let (says, thread_id) = std::sync::mpsc::channel();
        thread::spawn(move || {
            says.send(nix::unistd::gettid()).unwrap();
            Owner { init, owned, etcd_ends: None }.run(&UnixListener::from(reader));
        });
        let thread_id = thread_id.recv().unwrap();
        thread::sleep(Duration::from_millis(500));
        let schedstat = fs::read_to_string(format!("/proc/self/task/{thread_id}/schedstat")).unwrap();
        let nanoseconds: u64 = schedstat.split_whitespace().next().unwrap().parse().unwrap();
        program.handle().kill_group();
        fs::remove_dir_all(root).unwrap();
        assert!(nanoseconds < 50_000_000, "it has used {nanoseconds} ns");
    }
}
