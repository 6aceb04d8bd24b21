//! What each signal does: the table signal → action, and the main thread's loop.
//!
//! | signal | a node (`kind run`, `kind bake`) | beside a command (`kind run COMMAND`) |
//! |---|---|---|
//! | CHLD | reap | reap |
//! | TERM, INT, QUIT, PWR, RTMIN+3 | stop in order; when stopping already, hurry | to the command |
//! | HUP, USR1 | to the daemon that the boot names for it | to the command |
//! | TSTP, TTIN, TTOU | nothing: job control must not stop a container | nothing: whoever holds the terminal gets them |
//! | PIPE | ignored by std: writing where nobody reads is an error | the same; forwarded, our own would kill the command |
//! | ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS | the kernel's default: they tell of a fault of our own | the same |
//! | KILL, STOP, and glibc's 32 and 33 | cannot be caught | the same |
//! | all others, the real-time signals too | nothing | to the command |
//!
//! PWR and RTMIN+3 are how LXC and images with systemd (kindest/node too) are told to stop.
//!
//! Handlers instead of a blocked mask and sigwait: children inherit a mask, and Go passes it on to
//! all of its children. A handler is reset by exec.

use std::sync::Arc;

use nix::sys::signal::Signal;
use signal_hook::consts::*;
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};
use crate::supervisor::reaper::{self, Handle};
use crate::supervisor::stop::{self, Step};
use crate::supervisor::Init;

const SIGPWR: i32 = libc::SIGPWR;
/// glibc keeps the first two real-time signals for itself, so that this is RTMIN.
const FIRST_REAL_TIME: i32 = 34;
const LAST_SIGNAL: i32 = 64;
/// What `systemctl halt` is for a systemd that is PID 1, and `STOPSIGNAL` of images that hold one.
const HALT: i32 = FIRST_REAL_TIME + 3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Reap,
    Stop,
    ToDaemon(Signal),
    ToCommand,
    Nothing,
    /// No handler is there.
    Uncaught,
}

/// What a signal does in a node.
fn of_node(signal: i32) -> Action {
    match signal {
        SIGCHLD => Action::Reap,
        SIGTERM | SIGINT | SIGQUIT | SIGPWR | HALT => Action::Stop,
        SIGHUP => Action::ToDaemon(Signal::SIGHUP),
        SIGUSR1 => Action::ToDaemon(Signal::SIGUSR1),
        SIGKILL | SIGSTOP | SIGPIPE => Action::Uncaught,
        SIGILL | SIGTRAP | SIGABRT | SIGBUS | SIGFPE | SIGSEGV | SIGSYS => Action::Uncaught,
        1..=31 | FIRST_REAL_TIME..=LAST_SIGNAL => Action::Nothing,
        _ => Action::Uncaught,
    }
}

/// What a signal does beside a user's own command.
fn of_command(signal: i32) -> Action {
    match of_node(signal) {
        kept @ (Action::Reap | Action::Uncaught) => kept,
        _ if [SIGTSTP, SIGTTIN, SIGTTOU].contains(&signal) => Action::Nothing,
        _ => Action::ToCommand,
    }
}

/// Catches the signals from here on. Called before any thread starts.
pub fn register() -> Result<Signals> {
    let caught = (1..=LAST_SIGNAL).filter(|signal| of_node(*signal) != Action::Uncaught);
    Signals::new(caught).map_err(|cause| Error::new(format!("cannot catch signals: {cause}")))
}

/// What a node makes of the signals that ask for something.
pub struct Plan {
    pub stop: &'static [Step],
    /// The daemon that SIGHUP tells to read its configuration again.
    pub reload: &'static str,
    /// The daemon that SIGUSR1 is handed on to.
    pub user_signal: &'static str,
}

/// The main thread of a node: reaps and acts, for ever. The stop ends the process.
pub fn serve(mut signals: Signals, init: &Arc<Init>, plan: &Plan) {
    // Children that ended before the handler was there.
    reaper::drain();
    for signal in signals.forever() {
        match of_node(signal) {
            Action::Reap => reaper::drain(),
            Action::Stop => stop::request(init, signal, plan.stop),
            Action::ToDaemon(signal) => hand_on(init, plan, signal),
            Action::ToCommand | Action::Nothing | Action::Uncaught => {}
        }
    }
}

fn hand_on(init: &Init, plan: &Plan, signal: Signal) {
    let name = if signal == Signal::SIGHUP { plan.reload } else { plan.user_signal };
    let Some(daemon) = init.daemon(name) else { return };
    log::info!(target: "signals", "{signal} handed on to {name}");
    if signal == Signal::SIGHUP {
        daemon.reload();
    } else {
        daemon.signal(signal);
    }
}

/// The main thread beside a user's own command: reaps, and hands the other signals on to it.
pub fn forward(mut signals: Signals, child: Handle) {
    reaper::drain();
    for signal in signals.forever() {
        match of_command(signal) {
            Action::Reap => reaper::drain(),
            Action::ToCommand => child.signal_number(signal),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_has_its_action() {
        use Action::*;
        let table = [
            (&[SIGCHLD][..], Reap, Reap),
            (&[SIGTERM, SIGINT, SIGQUIT, SIGPWR, 37], Stop, ToCommand),
            (&[SIGHUP], ToDaemon(Signal::SIGHUP), ToCommand),
            (&[SIGUSR1], ToDaemon(Signal::SIGUSR1), ToCommand),
            (&[SIGTSTP, SIGTTIN, SIGTTOU], Nothing, Nothing),
            (&[SIGPIPE], Uncaught, Uncaught),
            (&[SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS], Uncaught, Uncaught),
            (&[SIGKILL, SIGSTOP, 32, 33, 0, 65, -1], Uncaught, Uncaught),
            (
                &[SIGUSR2, SIGALRM, libc::SIGSTKFLT, SIGCONT, SIGURG, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF, SIGWINCH, SIGIO],
                Nothing,
                ToCommand,
            ),
            (&[34, 35, 36, 38, 39, 50, 63, 64], Nothing, ToCommand),
        ];
        for (signals, node, command) in &table {
            for signal in *signals {
                assert_eq!((of_node(*signal), of_command(*signal)), (*node, *command), "signal {signal}");
            }
        }
        let named: std::collections::BTreeSet<i32> = table.iter().flat_map(|(signals, ..)| signals.iter().copied()).collect();
        assert!((1..FIRST_REAL_TIME).all(|signal| named.contains(&signal)), "the table is whole: {named:?}");
    }
}
