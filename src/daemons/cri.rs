//! Removes the pods of a running containerd through its Container Runtime Interface, which keeps their names in memory:
//! whoever removed them in another way would leave those names reserved.
//! <https://kubernetes.io/docs/concepts/containers/cri/>

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::config::{CONTAINERD_SOCKET, POLL};
use crate::daemons::protobuf::{field, fields, written};
use crate::daemons::{containerd, grpc};
use crate::error::{Error, Result};
use crate::supervisor::reaper;

const SERVICE: &str = "/runtime.v1.RuntimeService";
/// containerd's own interface below that one: <https://pkg.go.dev/github.com/containerd/containerd/api/services/tasks/v1>.
const DELETE_TASK: &str = "/containerd.services.tasks.v1.Tasks/Delete";
/// For one pod: its network is taken down by programs, and its layers are unmounted.
const REMOVAL_LIMIT: Duration = Duration::from_secs(30);

// Field numbers of protobuf messages.
/// In the responses of ListPodSandbox and ListContainers.
const ITEM: u64 = 1;
/// In a sandbox and a container, and in the requests of RemovePodSandbox and of a task's deletion.
const ID: u64 = 1;
const METADATA: u64 = 2;
/// In a sandbox's metadata.
const NAME: u64 = 1;
const NAMESPACE: u64 = 3;
/// In the requests of ListPodSandbox and ListContainers, and in their filter.
const FILTER: u64 = 1;
const STATE: u64 = 2;
/// In the filter of ListContainers.
const SANDBOX: u64 = 3;

/// A sandbox and the containers in it.
#[derive(Debug, PartialEq)]
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    /// `namespace/name`
    pub name: String,
}

/// Every pod that containerd has, whether it runs or not.
pub fn pods() -> Result<Vec<Pod>> {
    ask_until_answered("ListPodSandbox", &[]).map(|answer| read(&answer))
}

fn read(list: &[u8]) -> Vec<Pod> {
    let text = |message, number| std::str::from_utf8(field(message, number)?).ok();
    let pod = |sandbox| {
        let metadata = field(sandbox, METADATA)?;
        let name = format!("{}/{}", text(metadata, NAMESPACE)?, text(metadata, NAME)?);
        Some(Pod { id: text(sandbox, ID)?.to_string(), name })
    };
    fields(list).filter(|(number, _)| *number == ITEM).filter_map(|(_, sandbox)| pod(sandbox)).collect()
}

/// What `any` can look for: the method that lists it, and the state as a number.
pub const CREATED_CONTAINERS: (&str, u8) = ("ListContainers", 0);
pub const RUNNING_CONTAINERS: (&str, u8) = ("ListContainers", 1);
pub const READY_SANDBOXES: (&str, u8) = ("ListPodSandbox", 0);

/// Whether there are containers or sandboxes in a state. A container whose process has ended stays in its state until containerd
/// has deleted its task.
pub fn any((method, state): (&str, u8)) -> Result<bool> {
    ask_until_answered(method, &in_state(state)).map(|answer| field(&answer, ITEM).is_some())
}

/// A request to list what is in a state.
fn in_state(state: u8) -> Vec<u8> {
    written(FILTER, &written(STATE, &[1 << 3, state]))
}

/// Kills and removes pods, with their containers and their networks, several at once.
pub fn remove(pods: &[Pod]) -> Result<()> {
    let left = Mutex::new(pods.iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    // Each waits for programs most of the time.
    let workers = pods.len().min(2 * thread::available_parallelism().map_or(1, usize::from));
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..workers).map(|_| scope.spawn(|| std::iter::from_fn(next).try_for_each(|pod| remove_one(&pod.id)))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(Error::new("a thread has panicked"))))
    })
}

/// Removes one that may have gone. When kubelet is killed while containerd starts a container for it, containerd can keep a task
/// that it takes for running, and then refuses to remove the pod: <https://github.com/containerd/containerd/issues/11037>.
fn remove_one(sandbox: &str) -> Result<()> {
    ask_until("RemovePodSandbox", &written(ID, sandbox.as_bytes()), || delete_tasks(sandbox)).map(drop)
}

/// Deletes the tasks of a pod's containers, whose processes have been killed, as far as containerd can.
fn delete_tasks(sandbox: &str) {
    let Ok(Some(containers)) = ask("ListContainers", &in_sandbox(sandbox)) else { return };
    let ids = fields(&containers).filter(|(number, _)| *number == ITEM).filter_map(|(_, container)| field(container, ID));
    for id in ids {
        match grpc::ask(DELETE_TASK, &written(ID, id), REMOVAL_LIMIT) {
            Ok(Some(_)) => {
                log::info!(target: "containerd", "deleted the task of a killed container that containerd still took for running")
            }
            Ok(None) => {}
            Err(error) => log::debug!(target: "containerd", "{DELETE_TASK}: {error}"),
        }
    }
}

/// A request to list a pod's containers.
fn in_sandbox(sandbox: &str) -> Vec<u8> {
    written(FILTER, &written(SANDBOX, sandbox.as_bytes()))
}

fn ask(method: &str, request: &[u8]) -> io::Result<Option<Vec<u8>>> {
    grpc::ask(&format!("{SERVICE}/{method}"), request, REMOVAL_LIMIT)
}

fn ask_until_answered(method: &str, request: &[u8]) -> Result<Vec<u8>> {
    ask_until(method, request, || {})
}

/// Asks again after a refusal, since what uses a pod may have been killed only a moment ago, and after an error, since
/// containerd may be coming back.
fn ask_until(method: &str, request: &[u8], after_refusal: impl Fn()) -> Result<Vec<u8>> {
    let mut last = None;
    let answer = reaper::poll(POLL, REMOVAL_LIMIT, || match ask(method, request) {
        Ok(None) => {
            last = None;
            after_refusal();
            None
        }
        Ok(answer) => answer,
        Err(cause) => {
            last = Some(cause);
            None
        }
    });
    let silent = |cause| format!("containerd on {CONTAINERD_SOCKET} does not answer {method}: {cause}");
    answer.ok_or_else(|| containerd::error(last.map_or_else(|| format!("containerd refuses {method}"), silent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_read_from_the_list_of_sandboxes() {
        let metadata = [written(NAME, b"coredns-1"), written(2, b"uid"), written(NAMESPACE, b"kube-system")].concat();
        let sandbox = |id: &[u8]| written(ITEM, &[written(ID, id), written(METADATA, &metadata), vec![3 << 3, 1]].concat());
        let pod = |id: &str| Pod { id: id.into(), name: "kube-system/coredns-1".into() };
        assert_eq!(read(&[sandbox(b"4f"), sandbox(b"5a")].concat()), [pod("4f"), pod("5a")]);
        assert_eq!(read(&written(ITEM, &written(ID, b"4f"))), []);
        assert_eq!(read(b""), []);
    }

    #[test]
    fn a_request_by_state_or_pod_is_a_filter_in_a_filter() {
        // `{filter: {state: {state: CONTAINER_RUNNING}}}`
        assert_eq!(in_state(1), [0x0a, 4, 0x12, 2, 0x08, 1]);
        // `{filter: {pod_sandbox_id: "4f"}}`
        assert_eq!(in_sandbox("4f"), [0x0a, 4, 0x1a, 2, b'4', b'f']);
    }
}
