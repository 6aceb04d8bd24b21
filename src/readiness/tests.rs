use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::channel;
use std::thread;

use super::files::{CONFIG, FILES};
use super::state::tests::ready;
use super::*;

fn readiness(test: &str) -> Arc<Readiness> {
    let directory = std::env::temp_dir().join(format!("kind-readiness-{}-{test}", std::process::id()));
    let readiness = Arc::new(Readiness::new(directory));
    readiness.clear().unwrap();
    readiness
}

fn files(readiness: &Readiness) -> Vec<&'static str> {
    FILES.into_iter().filter(|name| ![STATUS, TIMELINE].contains(name) && readiness.shared.directory.path().join(name).exists()).collect()
}

fn remove(readiness: &Readiness) {
    readiness.end();
    fs::remove_dir_all(readiness.shared.directory.path()).unwrap();
}

#[test]
fn files_appear_and_disappear_with_the_state() {
    let readiness = readiness("follow");
    readiness.update(|state| *state = ready());
    assert_eq!(files(&readiness), [DOCKER_READY, KUBERNETES_READY]);
    readiness.update(|state| state.dns = false);
    assert_eq!(files(&readiness), [DOCKER_READY, WAITING]);
    readiness.update(|state| (state.dns, state.containerd) = (true, false));
    assert_eq!(files(&readiness), [WAITING]);
    assert_eq!(readiness.end(), 0);
    assert!(files(&readiness).is_empty());
    readiness.update(|state| *state = ready());
    assert!(files(&readiness).is_empty(), "the container is stopping");
    remove(&readiness);
}

#[test]
fn failed_and_kubernetes_ready_never_exist_together() {
    let readiness = readiness("failed");
    readiness.update(|state| *state = State { docker: false, ..ready() });
    readiness.fail(Failure::new("late", 3));
    readiness.fail(Failure::new("consequence", 4));
    assert_eq!(files(&readiness), [FAILED, WAITING]);
    assert_eq!(fs::read_to_string(readiness.shared.directory.path().join(FAILED)).unwrap(), "late\n");
    // dockerd is the last to come back.
    readiness.update(|state| state.docker = true);
    assert_eq!(files(&readiness), [DOCKER_READY, KUBERNETES_READY]);
    readiness.update(|state| state.kubelet = false);
    readiness.fail(Failure::new("late again", 5));
    assert_eq!(readiness.end(), 5);
    remove(&readiness);
}

#[test]
fn an_earlier_cluster_changes_nothing_and_waits_for_nothing() {
    let node = readiness("cluster");
    let first = node.begin_cluster();
    first.update(|state| *state = ready());
    first.publish(CONFIG, b"first");
    ["containerd", "docker-ready"].iter().for_each(|name| node.milestone(name));
    first.milestone("pods");
    assert_eq!(files(&node), [DOCKER_READY, KUBERNETES_READY, CONFIG]);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| first.wait_until(|state| !state.docker));
        let pausing = scope.spawn(|| first.pause(Duration::from_secs(3600)));
        let polling = scope.spawn(|| first.poll(Duration::from_secs(3600), Duration::from_secs(7200), || None::<()>));
        let second = node.begin_cluster();
        assert!(!waiting.join().unwrap());
        pausing.join().unwrap();
        assert_eq!(polling.join().unwrap(), Err(NoValue::IsOver));
        assert_eq!(first.poll(Duration::ZERO, Duration::ZERO, || Some(1)), Err(NoValue::IsOver), "it looks though it is over");
        assert_eq!(node.poll(Duration::ZERO, Duration::ZERO, || None::<()>), Err(NoValue::Late));
        let mut looks = [None, None, Some(3)].into_iter();
        assert_eq!(node.poll(Duration::ZERO, Duration::from_secs(3600), || looks.next().unwrap()), Ok(3));
        assert_eq!(files(&node), [DOCKER_READY, WAITING], "Docker goes on");
        first.update(|state| *state = ready());
        first.publish(CONFIG, b"first");
        first.milestone("pods");
        first.fail(Failure::new("late", 1));
        assert_eq!(files(&node), [DOCKER_READY, WAITING]);
        assert!(first.is_over() && first.state().ending && !second.is_over() && !second.state().ending);
        assert!(!node.has_reached("pods") && !node.has_reached(KUBERNETES_READY) && node.has_reached("containerd"));
        second.update(|state| *state = ready());
        assert_eq!(files(&node), [DOCKER_READY, KUBERNETES_READY]);
    });
    remove(&node);
}

#[test]
fn a_reset_withdraws_what_is_the_clusters_before_it_is_answered() {
    let node = readiness("reset");
    let refused = |node: &Readiness| node.request(Operation::Reset).unwrap_err();
    assert!(refused(&node).contains("no cluster"));
    node.update(|state| (state.has_cluster, state.containerd, state.docker) = (true, true, true));
    let first = node.begin_cluster();
    assert!(refused(&node).contains("still being started"));
    first.update(|state| *state = ready());
    first.publish(CONFIG, b"first");
    first.update(|state| state.docker = false);
    assert!(refused(&node).contains("Docker"));
    first.update(|state| state.docker = true);
    assert_eq!(files(&node), [DOCKER_READY, KUBERNETES_READY, CONFIG]);

    node.request(Operation::Reset).unwrap();
    assert_eq!(files(&node), [DOCKER_READY, WAITING]);
    assert!(first.is_over() && node.state().waiting()[0].contains("the earlier cluster") && node.has_reached("reset"));
    // They are the same one, and another one has to wait.
    node.request(Operation::Reset).unwrap();
    assert!(node.request(Operation::Save).unwrap_err().contains("just being reset"));
    assert_eq!(node.state().reset, Reset::Requested(Operation::Reset));
    let second = node.begin_cluster();
    assert_eq!(second.state().reset, Reset::Ending);
    node.request(Operation::Reset).unwrap();
    assert!(!second.is_over());
    second.update(|state| state.reset = Reset::No);
    second.fail(Failure::new("it is broken", 3));
    assert_eq!(files(&node), [DOCKER_READY, FAILED, WAITING]);

    // One that has failed can be tried again.
    node.request(Operation::Reset).unwrap();
    assert_eq!(files(&node), [DOCKER_READY, WAITING]);
    let third = node.begin_cluster();
    assert!(second.is_over());
    third.update(|state| *state = ready());
    assert_eq!(files(&node), [DOCKER_READY, KUBERNETES_READY]);
    // What is not ready now would never be after a start.
    third.update(|state| state.dns = false);
    assert!(node.request(Operation::Save).unwrap_err().contains("not ready"));
    third.update(|state| state.dns = true);
    node.request(Operation::SaveAndStop).unwrap();
    assert!(node.state().waiting()[0].contains("being saved") && !node.state().is_limited() && node.has_reached("save"));
    assert_eq!(node.end(), 0);
    assert!(refused(&node).contains("stopping"));
    remove(&node);
}

#[test]
fn waiting_for_a_descriptor_ends_with_it_or_with_the_cluster() {
    let node = readiness("descriptor");
    let first = node.begin_cluster();
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| first.wait_readable(reader.as_fd()).unwrap());
        // Changes of files wake it for nothing.
        node.update(|state| *state = ready());
        nix::unistd::write(&writer, b"x").unwrap();
        assert!(waiting.join().unwrap());
        nix::unistd::read(&reader, &mut [0]).unwrap();
        let over = scope.spawn(|| first.wait_readable(reader.as_fd()).unwrap());
        node.begin_cluster();
        assert!(!over.join().unwrap());
    });
    assert!(!first.wait_readable(reader.as_fd()).unwrap());
    remove(&node);
}

#[test]
fn the_time_limit_begins_with_the_cluster_though_nothing_happens() {
    let node = readiness("begins");
    let (sender, late) = channel();
    node.update(|state| state.has_cluster = true);
    let _cluster = node.begin_cluster();
    let tell = move |_: &State| {
        sender.send(()).unwrap();
        Failure::new("late", 1)
    };
    node.watch(Duration::from_secs(1), tell).unwrap();
    late.recv_timeout(Duration::from_secs(10)).unwrap();
    remove(&node);
}

#[test]
fn waiting_for_a_state_ends_with_the_state_or_with_the_stop() {
    let readiness = readiness("wait");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| readiness.wait_until(|state| state.kubelet));
        let stopped = scope.spawn(|| readiness.wait_until(|state| state.dns));
        readiness.update(|state| state.kubelet = true);
        assert!(waiting.join().unwrap());
        readiness.end();
        assert!(!stopped.join().unwrap());
    });
    remove(&readiness);
}

#[test]
fn a_file_that_could_not_be_written_is_written_later() {
    let readiness = readiness("unwritten");
    let path = readiness.shared.directory.path().to_path_buf();
    let aside = path.with_extension("aside");
    readiness.watch(Duration::from_secs(3600), |_| Failure::new("late", 1)).unwrap();
    // Writing fails as on a full disk; unlike permissions, this stops root too.
    fs::rename(&path, &aside).unwrap();
    readiness.update(|state| *state = ready());
    assert!(!readiness.known().unwritten.is_empty());
    fs::rename(&aside, &path).unwrap();
    while !readiness.known().unwritten.is_empty() {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(files(&readiness), [DOCKER_READY, KUBERNETES_READY]);
    assert_eq!(fs::metadata(path.join(TIMELINE)).unwrap().permissions().mode() & 0o777, 0o644);
    remove(&readiness);
}

#[test]
fn a_cluster_that_is_not_up_in_time_fails_once() {
    let readiness = readiness("late");
    let (sender, late) = channel();
    readiness.update(|state| *state = State { docker: false, ..ready() });
    let tell = move |state: &State| {
        sender.send(state.waiting()).unwrap();
        Failure::new("late", 1)
    };
    readiness.watch(Duration::from_secs(1), tell).unwrap();
    assert_eq!(late.recv_timeout(Duration::from_secs(30)).unwrap(), ["dockerd: no answer yet"]);
    assert!(readiness.wait_until(|state| state.failure.is_some()));
    readiness.update(|state| state.docker = true);
    assert!(readiness.state().kubernetes_ready());
    // The limit starts again, and an image without a cluster has none.
    readiness.update(|state| state.docker = false);
    late.recv_timeout(Duration::from_secs(30)).unwrap();
    readiness.update(|state| (state.has_cluster, state.failure) = (false, None));
    assert!(late.recv_timeout(Duration::from_secs(3)).is_err());
    remove(&readiness);
}
