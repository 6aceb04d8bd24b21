//! What each signal does, and the main thread's loop that does it.
//!
//! | signal | in a node (`kind run`, `kind bake`) | with a command (`kind run COMMAND`) |
//! |---|---|---|
//! | CHLD | reap | reap |
//! | TERM, INT, QUIT, PWR, RTMIN+3 | stop in order; if already stopping, hurry | to the command |
//! | HUP, USR1 | to the daemon that the boot has chosen | to the command |
//! | TSTP, TTIN, TTOU | nothing: job control must not stop a container | nothing: the terminal sends them to its foreground group |
//! | PIPE | ignored by std: writing to a closed pipe is an error | the same: forwarding our own would kill the command |
//! | ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS | the kernel's default: they mean a bug of ours | the same |
//! | KILL, STOP, and glibc's 32 and 33 | cannot be caught | the same |
//! | all others, the real-time signals too | nothing | to the command |
//!
//! LXC stops a container with PWR; images with systemd, such as kindest/node, are stopped with RTMIN+3.
//!
//! We use handlers instead of a blocked mask and sigwait, because children inherit a mask (and Go programs pass
//! it on to theirs), while exec resets handlers.

use std::sync::Arc;

use nix::sys::signal::Signal;
use signal_hook::consts::*;
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};
use crate::supervisor::reaper::{self, Handle};
use crate::supervisor::stop::{self, Step};
use crate::supervisor::Init;

const SIGPWR: i32 = libc::SIGPWR;
/// RTMIN: glibc reserves the first two real-time signals.
const FIRST_REAL_TIME: i32 = 34;
const LAST_SIGNAL: i32 = 64;
/// RTMIN+3: makes systemd halt, and so is the `STOPSIGNAL` of images with systemd.
const HALT: i32 = FIRST_REAL_TIME + 3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Reap,
    Stop,
    ToDaemon(Signal),
    ToCommand,
    Nothing,
    /// We install no handler.
    Uncaught,
}

fn node_action(signal: i32) -> Action {
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

fn command_action(signal: i32) -> Action {
    match node_action(signal) {
        kept @ (Action::Reap | Action::Uncaught) => kept,
        _ if [SIGTSTP, SIGTTIN, SIGTTOU].contains(&signal) => Action::Nothing,
        _ => Action::ToCommand,
    }
}

/// Installs the handlers. Call it before any thread starts.
pub fn register() -> Result<Signals> {
    let caught = (1..=LAST_SIGNAL).filter(|signal| node_action(*signal) != Action::Uncaught);
    Signals::new(caught).map_err(|cause| Error::new(format!("cannot catch signals: {cause}")))
}

/// What a node does on the signals that stop or reload it.
pub struct Plan {
    pub stop: &'static [Step],
    /// The daemon that gets SIGHUP and SIGUSR1.
    pub forwards_to: &'static str,
    /// Called when an orphan has ended: it may have left what it looked after.
    pub orphan_ended: fn(),
}

/// The main thread's loop in a node. It never returns: a stop exits the process.
pub fn serve(mut signals: Signals, init: &Arc<Init>, plan: &Plan) {
    // Reap children that ended before the handler was installed.
    reaper::drain();
    for signal in signals.forever() {
        match node_action(signal) {
            Action::Reap => {
                // A stop ends everything in its own order.
                if reaper::drain() && !init.readiness.is_over() {
                    (plan.orphan_ended)();
                }
            }
            Action::Stop => stop::request(init, signal, plan.stop),
            Action::ToDaemon(signal) => forward_to_daemon(init, plan, signal),
            Action::ToCommand | Action::Nothing | Action::Uncaught => {}
        }
    }
}

fn forward_to_daemon(init: &Init, plan: &Plan, signal: Signal) {
    let Some(daemon) = init.daemon(plan.forwards_to) else { return };
    log::info!(target: "signals", "forwarding {signal} to {}", plan.forwards_to);
    if signal == Signal::SIGHUP {
        daemon.reload();
    } else {
        daemon.signal(signal);
    }
}

/// The main thread's loop with a user's own command: reaps, and forwards the other signals to it.
pub fn forward(mut signals: Signals, child: Handle) {
    reaper::drain();
    for signal in signals.forever() {
        match command_action(signal) {
            Action::Reap => {
                reaper::drain();
            }
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
                assert_eq!((node_action(*signal), command_action(*signal)), (*node, *command), "signal {signal}");
            }
        }
        let named: std::collections::BTreeSet<i32> = table.iter().flat_map(|(signals, ..)| signals.iter().copied()).collect();
        assert!((1..FIRST_REAL_TIME).all(|signal| named.contains(&signal)), "the table has every signal: {named:?}");
    }
}
