//! Removes the pods of a running containerd through its Container Runtime Interface, which keeps their names in memory:
//! whoever removed them in another way would leave those names reserved.
//! <https://kubernetes.io/docs/concepts/containers/cri/>

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::config::{CONTAINERD_SOCKET, NAMESPACE, POLL, REQUEST_LIMIT};
use crate::daemons::grpc::Call;
use crate::daemons::protobuf::{field, fields, written};
use crate::error::{Error, Result};
use crate::supervisor::reaper;

const SERVICE: &str = "/runtime.v1.RuntimeService";
/// The CRI plugin has one namespace, whatever it is asked for.
const METADATA: (&str, &str) = ("containerd-namespace", NAMESPACE);
/// For one pod: its network is taken down by programs, and its layers are unmounted.
const REMOVAL_LIMIT: Duration = Duration::from_secs(30);

// Field numbers of protobuf messages.
/// In the response of ListPodSandbox.
const ITEM: u64 = 1;
/// In a sandbox, and in the request of RemovePodSandbox.
const ID: u64 = 1;

/// Kills and removes every pod, with its containers and its network, several at once. Returns how many there were.
pub fn remove_pods() -> Result<usize> {
    let ids = sandboxes()?;
    let left = Mutex::new(ids.iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    // Each waits for programs most of the time.
    let workers = 2 * thread::available_parallelism().map_or(1, usize::from);
    let done: Vec<Result<()>> = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..workers.min(ids.len())).map(|_| scope.spawn(|| std::iter::from_fn(next).try_for_each(|id| remove(id)))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(Error::new("a thread has panicked")))).collect()
    });
    done.into_iter().collect::<Result<()>>()?;
    Ok(ids.len())
}

/// A pod consists of a sandbox and the containers in it.
fn sandboxes() -> Result<Vec<String>> {
    let answer = ask("ListPodSandbox", &[], REQUEST_LIMIT)?.ok_or_else(|| Error::new("containerd does not list its pods"))?;
    let items = fields(&answer).filter(|(number, _)| *number == ITEM);
    Ok(items.filter_map(|(_, sandbox)| String::from_utf8(field(sandbox, ID)?.to_vec()).ok()).collect())
}

/// Removes one that may have gone. What still uses it may have been killed only a moment ago, so a failure is tried again.
fn remove(id: &str) -> Result<()> {
    let request = written(ID, id.as_bytes());
    let removed = reaper::poll(POLL, REMOVAL_LIMIT, || match ask("RemovePodSandbox", &request, REMOVAL_LIMIT) {
        Ok(answer) => answer.map(|_| Ok(())),
        Err(error) => Some(Err(error)),
    });
    removed.unwrap_or_else(|| Err(Error::new(format!("containerd does not remove the pod with the sandbox {id}"))))
}

/// Sends one message and returns the response, or `None` if it is refused.
fn ask(method: &str, request: &[u8], limit: Duration) -> Result<Option<Vec<u8>>> {
    let ask = || Call::open(Path::new(CONTAINERD_SOCKET), &format!("{SERVICE}/{method}"), METADATA, request, limit)?.next();
    ask().map_err(|cause| Error::new(format!("cannot ask containerd on {CONTAINERD_SOCKET} ({method}): {cause}")))
}
