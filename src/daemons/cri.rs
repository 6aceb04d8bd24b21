//! Removes the pods of a running containerd through its Container Runtime Interface, which keeps their names in memory:
//! whoever removed them in another way would leave those names reserved.
//! <https://kubernetes.io/docs/concepts/containers/cri/>

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::config::{CONTAINERD_SOCKET, POLL};
use crate::daemons::grpc;
use crate::daemons::protobuf::{field, fields, written};
use crate::error::{Error, Result};
use crate::supervisor::reaper;

const SERVICE: &str = "/runtime.v1.RuntimeService";
/// For one pod: its network is taken down by programs, and its layers are unmounted.
const REMOVAL_LIMIT: Duration = Duration::from_secs(30);

// Field numbers of protobuf messages.
/// In the response of ListPodSandbox.
const ITEM: u64 = 1;
/// In a sandbox, and in the request of RemovePodSandbox.
const ID: u64 = 1;

/// The ids of the pods' sandboxes.
pub fn pods() -> Result<Vec<String>> {
    ask_until_answered("ListPodSandbox", &[]).map(|answer| ids(&answer))
}

fn ids(list: &[u8]) -> Vec<String> {
    let items = fields(list).filter(|(number, _)| *number == ITEM);
    items.filter_map(|(_, sandbox)| String::from_utf8(field(sandbox, ID)?.to_vec()).ok()).collect()
}

/// Kills and removes pods, with their containers and their networks, several at once.
pub fn remove(pods: &[String]) -> Result<()> {
    let left = Mutex::new(pods.iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    // Each waits for programs most of the time.
    let workers = pods.len().min(2 * thread::available_parallelism().map_or(1, usize::from));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(|| std::iter::from_fn(next).try_for_each(|pod| remove_one(pod)))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(Error::new("a thread has panicked"))))
    })
}

/// Removes one that may have gone.
fn remove_one(id: &str) -> Result<()> {
    ask_until_answered("RemovePodSandbox", &written(ID, id.as_bytes())).map(drop)
}

/// Asks again after a refusal, since what uses a pod may have been killed only a moment ago, and after an error, since
/// containerd may be coming back.
fn ask_until_answered(method: &str, request: &[u8]) -> Result<Vec<u8>> {
    let mut last = None;
    let answer = reaper::poll(POLL, REMOVAL_LIMIT, || match grpc::ask(&format!("{SERVICE}/{method}"), request, REMOVAL_LIMIT) {
        Ok(answer) => answer,
        Err(cause) => {
            last = Some(cause);
            None
        }
    });
    let why = || last.map_or("it refuses, and its log says why".to_string(), |cause| cause.to_string());
    answer.ok_or_else(|| Error::new(format!("containerd on {CONTAINERD_SOCKET} does not answer {method}: {}", why())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_pods_are_read_from_their_list() {
        let metadata = [written(1, b"coredns-1"), written(3, b"kube-system")].concat();
        let sandbox = |id: &[u8]| written(ITEM, &[written(ID, id), written(2, &metadata), vec![3 << 3, 1]].concat());
        assert_eq!(ids(&[sandbox(b"4f"), sandbox(b"5a")].concat()), ["4f", "5a"]);
        assert_eq!(ids(b""), [] as [String; 0]);
    }
}
