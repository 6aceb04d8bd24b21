//! The table signal → action, and the main thread's loop.
//!
//! Handlers instead of a blocked mask and sigwait: children inherit a mask, and Go passes it on to
//! all of its children. A handler is reset by exec.

use std::sync::Arc;

use nix::sys::signal::Signal;
use signal_hook::consts::*;
use signal_hook::iterator::Signals;

use crate::daemons::dockerd;
use crate::error::{Error, Result};
use crate::init::Init;
use crate::reaper::{self, Handle};
use crate::stop;

/// Every signal that a program may catch and that does not tell of its own fault.
const CAUGHT: [i32; 16] = [
    SIGCHLD, SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGCONT, SIGTSTP, SIGTTIN, SIGTTOU,
    SIGWINCH,
];

#[derive(Debug, PartialEq)]
enum Action {
    Reap,
    Stop,
    /// Hand it on to dockerd: SIGHUP reloads its configuration, SIGUSR1 writes its stacks.
    ToDockerd(Signal),
    /// Job control and the rest must neither stop nor end the container.
    Nothing,
}

fn action(signal: i32) -> Action {
    match signal {
        SIGCHLD => Action::Reap,
        SIGTERM | SIGINT | SIGQUIT => Action::Stop,
        // Not to kubelet: it would die of SIGHUP.
        SIGHUP => Action::ToDockerd(Signal::SIGHUP),
        SIGUSR1 => Action::ToDockerd(Signal::SIGUSR1),
        _ => Action::Nothing,
    }
}

/// Catches the signals from here on. Called before any thread starts.
pub fn register() -> Result<Signals> {
    Signals::new(CAUGHT).map_err(|cause| Error::new(format!("cannot catch signals: {cause}")))
}

/// The main thread of a node: reaps and acts, for ever. The stop ends the process.
pub fn serve(mut signals: Signals, init: &Arc<Init>) {
    // Children that ended before the handler was there.
    reaper::drain();
    for signal in signals.forever() {
        match action(signal) {
            Action::Reap => reaper::drain(),
            Action::Stop => stop::request(init, signal),
            Action::ToDockerd(signal) => {
                if signal == Signal::SIGHUP {
                    dockerd::reread_settings();
                }
                stop::signal_daemon(init, "dockerd", signal)
            }
            Action::Nothing => {}
        }
    }
}

/// The main thread beside a user's own command: reaps, and hands every other signal on to it.
pub fn forward(mut signals: Signals, child: Handle) {
    reaper::drain();
    for signal in signals.forever() {
        match (signal, Signal::try_from(signal)) {
            (SIGCHLD, _) => reaper::drain(),
            // They were meant for whoever holds the terminal.
            (SIGTSTP | SIGTTIN | SIGTTOU, _) => {}
            (_, Ok(signal)) => child.signal(signal),
            (_, Err(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_has_its_action() {
        for signal in [SIGTERM, SIGINT, SIGQUIT] {
            assert_eq!(action(signal), Action::Stop);
        }
        assert_eq!(action(SIGCHLD), Action::Reap);
        assert_eq!(action(SIGHUP), Action::ToDockerd(Signal::SIGHUP));
        for signal in [SIGTSTP, SIGTTIN, SIGTTOU, SIGWINCH, SIGALRM, SIGUSR2, SIGCONT] {
            assert_eq!(action(signal), Action::Nothing);
        }
    }
}
