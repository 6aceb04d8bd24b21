//! A thread for what a watch of the API server reports, for as long as its cluster lasts.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::readiness::State;
use crate::supervisor::Init;
use crate::threads;

/// After an error, doubled up to the last: the API server may be down for a moment, or for good.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// Calls `watch` in a thread of its own, and again whenever it returns, as long as the state is right for it.
pub fn start(init: &Arc<Init>, name: &str, when: fn(&State) -> bool, mut watch: impl FnMut() -> Result<()> + Send + 'static) -> Result<()> {
    let init = init.clone();
    threads::start(name, move || {
        while !init.readiness.is_over() && init.readiness.wait_until(when) {
            until_done(&init, when, &mut watch);
            init.readiness.pause(FIRST_PAUSE);
        }
    })
}

/// Tries until it succeeds, or the state is no longer right for it.
pub fn until_done(init: &Init, when: fn(&State) -> bool, mut attempt: impl FnMut() -> Result<()>) {
    let mut pause = FIRST_PAUSE;
    while !init.readiness.is_over() && when(&init.readiness.state()) {
        let Err(error) = attempt() else { return };
        log::debug!(target: "cluster", "{error}");
        init.readiness.pause(pause);
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::error::Error;

    const LIMIT: Duration = Duration::from_secs(20);

    fn answers(state: &State) -> bool {
        state.api_server
    }

    #[test]
    fn a_watch_begins_when_the_state_is_right_and_again_whenever_it_ends_until_its_cluster_is_over() {
        let node = Init::of_test("watcher");
        let cluster = node.begin_cluster();
        let (began, begins) = channel();
        let mut ends = [Err(Error::new("refused")), Err(Error::new("closed")), Ok(()), Ok(())].into_iter();
        start(&cluster, "test", answers, move || {
            began.send(()).unwrap();
            ends.next().unwrap_or(Ok(()))
        })
        .unwrap();
        assert!(begins.recv_timeout(Duration::from_millis(300)).is_err(), "it has begun without an API server");
        cluster.readiness.update(|state| state.api_server = true);
        (0..4).for_each(|round| begins.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("it did not begin again after round {round}")));
        node.end_cluster();
        // The thread ends, and drops its end of the channel.
        while begins.recv_timeout(LIMIT).is_ok() {}
        assert_eq!(begins.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected));
        std::fs::remove_dir_all(node.config.path("/")).unwrap();
    }

    #[test]
    fn an_attempt_is_given_up_when_the_state_is_no_longer_right() {
        let init = Init::of_test("watcher-until-done");
        let mut attempts = 0;
        until_done(&init, answers, || {
            attempts += 1;
            Ok(())
        });
        assert_eq!(attempts, 0);
        init.readiness.update(|state| state.api_server = true);
        until_done(&init, answers, || {
            attempts += 1;
            if attempts == 2 {
                init.readiness.update(|state| state.api_server = false);
            }
            Err(Error::new("refused"))
        });
        assert_eq!(attempts, 2);
        std::fs::remove_dir_all(init.config.path("/")).unwrap();
    }
}
