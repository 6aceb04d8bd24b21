//! The control plane that is restored instead of started: that it is, that nobody can tell but by what docs/limits.md
//! lists, and that every start can still be made the plain way. An image whose bake could not save its control plane fails these tests.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::api::Api;
use crate::cluster::{Cluster, KUBERNETES_READY, LIMIT, TIMELINE};
use crate::engine::{docker, session};
use crate::process::wait_for;
use crate::start::{Start, COLD, RESTORED};

pub const PROGRAMS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// Beyond what a plain start takes: a refusal, and a hang.
const REFUSAL_LIMIT: f64 = 0.5;
const HANG_LIMIT: f64 = 21.0;

/// Slows kubelet's first call of iptables down, before which it does not ask the runtime for pods.
const SLOW_IPTABLES: &str = "#!/bin/sh
read -r parent </proc/$PPID/comm
if [ \"$parent\" = kubelet ] && mkdir /run/slow; then sleep 1; fi 2>/dev/null
exec /usr/sbin/${0##*/} \"$@\"
";

/// A CRIU, which its loader runs, that waits until the test lets it go on.
const WAITING_CRIU: &str = "#!/bin/sh
until [ -e /run/go-on ]; do sleep 0.05; done
exec /kind/criu/loader \"$@\"
";

/// A CRIU that succeeds with an API server that never answers. What it leaves beside etcd's data
/// stands for what the restored etcd has written by then.
const FREEZING_CRIU: &str = "#!/bin/sh
/kind/criu/loader \"$@\" || exit
touch /var/lib/etcd/left
pkill -STOP -x kube-apiserver || exit
# On a busy machine its other threads run on until the one that takes the signal has its turn.
while grep -L '^State:.T' /proc/$(pgrep -x kube-apiserver)/task/*/status | grep -q .; do sleep 0.01; done
";

/// A cluster with a program of the test's own in it, whose start would restore the control plane.
pub fn restored_with_programs(paths: &[&str], script: &str) -> Cluster {
    let cluster = Start::Restored.create(&[]);
    paths.iter().for_each(|path| cluster.put_program(path, script));
    cluster.container.start();
    cluster
}

/// A container whose start runs a script in place of CRIU, which is `/kind/criu/loader` there.
fn with_criu(script: &str) -> Cluster {
    let cluster = Start::Restored.create(&[]);
    let loader = session().dir.join("loader");
    docker(&["cp", "--follow-link", &format!("{}:/kind/criu/ld.so", cluster.container.id), &loader.to_string_lossy()]).ok();
    cluster.container.copy_to(&loader, "/kind/criu/loader");
    cluster.put_program("/kind/criu/ld.so", script);
    cluster
}

/// A restored cluster with the containers of the restored programs.
fn restored_cluster() -> Cluster {
    let cluster = Start::Restored.ready(&[]);
    wait_for_stand_ins(&cluster);
    cluster
}

/// The containers of restored programs are started last.
fn wait_for_stand_ins(cluster: &Cluster) {
    let arguments = ["get", "pods", "-n", "kube-system", "-l", "tier=control-plane"];
    let state = "--output=jsonpath={range .items[*]}{.status.containerStatuses[*].ready}{.status.containerStatuses[*].containerID} {end}";
    let ids = || cluster.kubectl(&[&arguments[..], &[state]].concat()).stdout;
    wait_for("every program's container", LIMIT, || {
        let running = cluster.container.exec(&["pgrep", "-f", "-c", "^/usr/local/bin/kind stand-in"]).stdout.trim().to_string();
        (running == "4" && ids().split_whitespace().filter(|id| id.starts_with("truecontainerd://")).count() == 4).then_some(())
    });
}

/// What the kernel keeps of a program's name (proc_pid_comm(5)).
pub fn comm(program: &str) -> &str {
    &program[..program.len().min(15)]
}

/// The process of a program that runs outside of every container: its own PID namespace has the saved parent as PID 1.
fn restored(cluster: &Cluster, program: &str) -> Option<String> {
    let program = comm(program);
    let script =
        format!("for pid in $(pgrep -x {program}); do grep -q parent /proc/$(cut -d ' ' -f 4 /proc/$pid/stat)/comm && echo $pid; done");
    let found = cluster.container.exec(&["sh", "-c", &script]).stdout.trim().to_string();
    (!found.is_empty()).then_some(found)
}

fn restarts(cluster: &Cluster, program: &str) -> String {
    let path = "{.status.containerStatuses[0].restartCount}";
    cluster.kubectl(&["-n", "kube-system", "get", "pod", &format!("{program}-kind"), &format!("--output=jsonpath={path}")]).stdout
}

/// When a milestone of the timeline was reached, in seconds.
pub fn milestone(timeline: &str, name: &str) -> f64 {
    let line = timeline.lines().find_map(|line| line.strip_suffix(&format!(" {name}")));
    line.and_then(|at| at.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {timeline}"))
}

/// Waits until a program has been started the plain way, and the cluster is ready with it.
fn wait_until_plain(cluster: &Cluster, program: &str) {
    wait_for(&format!("a {program} that is not restored"), LIMIT, || {
        let runs = cluster.container.exec(&["pgrep", "-x", "-c", comm(program)]).stdout.trim() == "1";
        (runs && restored(cluster, program).is_none()).then_some(())
    });
    wait_for(&format!("readiness after {program}"), LIMIT, || cluster.serves(KUBERNETES_READY).then_some(()));
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_start_restores_the_control_plane_and_says_so() {
    let cluster = restored_cluster();
    assert_eq!(cluster.container.logs().matches(RESTORED).count(), 1, "{}", cluster.container.logs());
    let status = cluster.container.exec(&["kind", "status"]).ok();
    assert!(status.contains("control plane     restored in ") && status.contains("  restored\n"), "{status}");
    assert!(cluster.file(TIMELINE).is_some_and(|timeline| timeline.contains(" restored\n")));
    for program in PROGRAMS {
        assert!(restored(&cluster, program).is_some(), "{program} is not restored");
        assert_eq!(restarts(&cluster, program), "0", "{program}");
    }
    // No Event is the bake's.
    let created = "--output=jsonpath={range .items[*]}{.metadata.creationTimestamp} {.reason}{'\\n'}{end}";
    let started = cluster.container.inspect("{{.State.StartedAt}}");
    let events = cluster.kubectl(&["get", "events", "--all-namespaces", created]).ok();
    assert!(events.lines().count() > 3 && events.lines().all(|event| event[..19] >= started[..19]), "{started}: {events}");
    // What the programs say from now on is in their pods' logs.
    cluster.kubectl(&["create", "configmap", "restored"]).ok();
    let log = |program: &str| cluster.kubectl(&["-n", "kube-system", "logs", &format!("{program}-kind")]).stdout;
    wait_for("the API server's log", LIMIT, || (!log("kube-apiserver").is_empty()).then_some(()));
    // Its clock goes on, with the time of today.
    let ages = cluster.kubectl(&["get", "configmap", "restored", "--output=jsonpath={.metadata.creationTimestamp}"]).ok();
    let today = cluster.container.exec(&["date", "--utc", "+%Y-%m-%dT%H"]).ok();
    assert!(ages.starts_with(&today[..11]), "{ages}, now is {today}");
}

/// kubelet starts beside the restore, and so may any client: their connections wait for the API server.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_client_that_connects_before_the_api_server_is_restored_is_answered_by_it() {
    let cluster = with_criu(WAITING_CRIU);
    cluster.container.start();
    let address = cluster.address();
    let mut client = wait_for("an open port", LIMIT, || TcpStream::connect((address.as_str(), 8443)).ok());
    let there = cluster.container.exec(&["sh", "-c", "pgrep -x kube-apiserver; touch /run/go-on"]).ok();
    assert_eq!(there, "", "nobody could connect before the API server was there");
    // Go's answer to a client that forgets TLS.
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("it is connected");
    client.set_read_timeout(Some(LIMIT)).expect("it is a limit");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("Client sent an HTTP request to an HTTPS server"), "{answer}");
    cluster.wait_until_ready();
    assert!(cluster.container.logs().contains(RESTORED), "{}", cluster.container.logs());
    let sysctl = |name: &str| cluster.container.exec(&["cat", &format!("/proc/sys/net/ipv4/{name}")]).ok();
    assert_eq!(sysctl("tcp_migrate_req"), "0");
    // These stay, for a reset.
    assert!(sysctl("ip_local_reserved_ports").split([',', '-']).any(|port| port == "2379"));
}

/// What is ready before its containers are there stays ready, and keeps its records: nobody but the bake has made them.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn the_containers_of_restored_programs_come_without_anybody_noticing() {
    let cluster = Start::Restored.ready(&[]);
    let uids = || {
        let uids = "--output=jsonpath={.items[*].metadata.uid}";
        cluster.kubectl(&["get", "pods", "-n", "kube-system", "-l", "tier=control-plane", uids]).ok()
    };
    let before = uids();
    wait_for_stand_ins(&cluster);
    assert_eq!(uids(), before);
    let logs = cluster.container.logs();
    assert!(!logs.contains("kubernetes-ready is no longer true"), "{logs}");
    // What has them probed early is not left behind.
    wait_for("pods without our annotation", LIMIT, || {
        (!cluster.kubectl(&["get", "pods", "-A", "--output=json"]).ok().contains("kind-init/")).then_some(())
    });
}

/// Everything that a client can see of the static pods, and what is running, is what it is after a plain start.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_restored_cluster_looks_like_a_started_one_and_shares_no_identity_with_another() {
    let look = |start: Start| {
        let cluster = start.ready(&[]);
        let get = |arguments: &[&str]| cluster.kubectl(arguments).ok();
        if start == Start::Restored {
            wait_for_stand_ins(&cluster);
        }
        let pods = get(&["get", "pods", "-n", "kube-system", "-l", "tier=control-plane", "--output=jsonpath={range .items[*]}{.metadata.name} {.metadata.labels} {.spec} {.status.phase} {.status.containerStatuses[*].ready}{.status.containerStatuses[*].restartCount}{\"\\n\"}{end}"]);
        let objects = get(&["get", "nodes,services,deployments,daemonsets,storageclasses", "-A", "--output=name"]);
        get(&["create", "namespace", "identity"]);
        let uid = get(&["get", "namespace", "identity", "--output=jsonpath={.metadata.uid}"]);
        let token = wait_for("a token", LIMIT, || {
            let made = cluster.kubectl(&["-n", "identity", "create", "token", "default"]);
            // An old API server has them as Secrets.
            let secret = || cluster.kubectl(&["-n", "identity", "get", "secrets", "--output=jsonpath={.items[*].data.token}"]).stdout;
            Some(if made.succeeded() { made.ok() } else { secret() }).filter(|token| !token.trim().is_empty())
        });
        let sleeper = "--image=kind-lab/busybox:1";
        get(&["create", "deployment", "named", sleeper, "--", "sleep", "3600"]);
        let name = wait_for("a pod", LIMIT, || {
            let names = get(&["get", "pods", "-l", "app=named", "--output=name"]);
            (!names.is_empty()).then_some(names)
        });
        (pods, objects, [uid, token], name)
    };
    let (first, second, plain) = (look(Start::Restored), look(Start::Restored), look(Start::Cold));
    assert_eq!((&first.0, &first.1), (&plain.0, &plain.1));
    for index in 0..2 {
        assert_ne!(first.2[index], second.2[index], "two containers share an identity");
    }
    // Documented: names may be the same, because their generator is seeded when a program starts.
    println!("names of pods: {}, {}, plain: {}", first.3, second.3, plain.3);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn each_restored_program_that_is_killed_is_started_the_plain_way() {
    let cluster = restored_cluster();
    for program in ["kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"] {
        let pid = restored(&cluster, program).unwrap_or_else(|| panic!("{program} is not restored"));
        cluster.container.exec(&["kill", "-KILL", &pid]).ok();
        wait_until_plain(&cluster, program);
        wait_for(&format!("{program}'s restart is counted"), LIMIT, || (restarts(&cluster, program) == "1").then_some(()));
        let reason = "--output=jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode}";
        let reason = || cluster.kubectl(&["-n", "kube-system", "get", "pod", &format!("{program}-kind"), reason]).stdout;
        wait_for(&format!("the status of {program}"), LIMIT, || (reason() == "137").then_some(()));
        assert!(cluster.container.logs().contains(&format!("{program} has ended with status 137")));
    }
    cluster.kubectl(&["run", "afterwards", "--image=kind-lab/busybox:1", "--command", "--", "sleep", "3600"]).ok();
    cluster.wait_for_pod(&["afterwards"]);
}

/// As kubelet ends a container: the program is to finish what it does, and its own status is the container's.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_programs_container_that_is_told_to_stop_hands_that_on_and_ends_as_the_program_does() {
    let cluster = restored_cluster();
    cluster.container.exec(&["pkill", "-TERM", "-f", "^/usr/local/bin/kind stand-in kube-scheduler"]).ok();
    wait_until_plain(&cluster, "kube-scheduler");
    let state = "--output=jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode}";
    let state = ["-n", "kube-system", "get", "pod", "kube-scheduler-kind", state];
    let status = wait_for("the container's status", LIMIT, || Some(cluster.kubectl(&state).stdout).filter(|status| !status.is_empty()));
    assert!(cluster.container.logs().contains(&format!("kube-scheduler has ended with status {status};")), "{status}");
    assert!(status != "137", "it was killed");
}

/// The latest moment at which a start can still turn out to be none that restores.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn an_api_server_that_is_restored_and_does_not_answer_is_given_up_and_nothing_of_the_restore_is_left() {
    let cluster = with_criu(FREEZING_CRIU);
    cluster.container.start();
    let line = wait_for("the end of the restore", LIMIT, || {
        let log = cluster.container.logs();
        log.lines().find(|line| line.contains(RESTORED) || line.contains(COLD)).map(str::to_string)
    });
    assert!(line.contains(COLD) && line.contains("the restored API server has not answered after 15 s"), "{line}");
    cluster.wait_until_ready();
    for program in PROGRAMS {
        assert_eq!(cluster.container.exec(&["pgrep", "-x", "-c", comm(program)]).stdout.trim(), "1", "{program}");
        assert!(restored(&cluster, program).is_none(), "{program}");
    }
    assert!(!cluster.container.exec(&["test", "-e", "/var/lib/etcd/left"]).succeeded(), "etcd began with what the restored one had");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn containers_and_manifests_have_the_meaning_that_they_have_in_a_plain_cluster() {
    let cluster = restored_cluster();
    // The API server has a record of the pod, which kubelet makes again within a minute or so; the program goes on.
    let before = restored(&cluster, "kube-scheduler");
    let uid = || cluster.kubectl(&["-n", "kube-system", "get", "pod", "kube-scheduler-kind", "--output=jsonpath={.metadata.uid}"]).stdout;
    let deleted = uid();
    cluster.kubectl(&["-n", "kube-system", "delete", "pod", "kube-scheduler-kind", "--wait=false"]).ok();
    wait_for("a new record of the pod", 4 * LIMIT, || Some(uid()).filter(|uid| !uid.is_empty() && *uid != deleted));
    assert_eq!(restored(&cluster, "kube-scheduler"), before);
    // A manifest that is edited starts the program with what it says now.
    cluster
        .container
        .exec(&["sed", "-i", "s/^    - --bind-address=127.0.0.1$/&\\n    - --v=1/", "/etc/kubernetes/manifests/kube-scheduler.yaml"])
        .ok();
    wait_for("a scheduler with the new flag", LIMIT, || {
        let arguments = cluster.container.exec(&["pgrep", "-x", "-a", "kube-scheduler"]).stdout;
        (arguments.contains(" --v=1") && arguments.lines().count() == 1).then_some(())
    });
    assert!(restored(&cluster, "kube-scheduler").is_none());
    // The container of a program is killed, and the program with it: the next one finds its port free.
    let pid = restored(&cluster, "kube-controller-manager").expect("it is restored");
    cluster.container.exec(&["pkill", "-KILL", "-f", "^/usr/local/bin/kind stand-in kube-controller-manager"]).ok();
    wait_for("the end of the restored program", LIMIT, || {
        (!cluster.container.exec(&["test", "-d", &format!("/proc/{pid}")]).succeeded()).then_some(())
    });
    wait_until_plain(&cluster, "kube-controller-manager");
    // The parent of all is killed.
    cluster.container.exec(&["pkill", "-KILL", "-x", "parent"]).ok();
    for program in ["etcd", "kube-apiserver"] {
        wait_until_plain(&cluster, program);
    }
    // The second start of this container restores too, though the manifest is another one: not any more.
    docker(&["restart", &cluster.container.id]).ok();
    wait_for("the second start", LIMIT, || cluster.container.logs().contains("kube-scheduler.yaml is not what it was").then_some(()));
    cluster.wait_until_ready();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_second_start_restores_again_from_fresh_files() {
    // That a start serves no state of an earlier one is for `restart` to check.
    let cluster = restored_cluster();
    cluster.kubectl(&["create", "configmap", "of-the-first-start"]).ok();
    for stop in ["restart", "kill"] {
        docker(&[stop, &cluster.container.id]).ok();
        if stop == "kill" {
            cluster.container.start();
        }
        cluster.wait_until_ready();
        wait_for_stand_ins(&cluster);
        assert!(!cluster.kubectl(&["get", "configmap", "of-the-first-start"]).succeeded());
        assert!(restored(&cluster, "etcd").is_some(), "{}", cluster.container.logs());
    }
    assert_eq!(cluster.container.logs().matches(RESTORED).count(), 3);
}

/// The mode of the root directory is the engine's choice: podman's is 0555.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_start_restores_under_an_engine_with_another_root_directory() {
    let on = Start::Restored.options();
    let cluster = Cluster::create(&[&on[..], &["--entrypoint", "/podman"]].concat());
    // Another than any engine's.
    cluster.put_program("/podman", "#!/bin/sh\nchmod 0711 /\nexec kind run\n");
    cluster.container.start();
    cluster.wait_until_ready();
    assert!(cluster.container.logs().contains(RESTORED), "{}", cluster.container.logs());
    assert_ne!(cluster.container.exec(&["stat", "-c", "%a", "/"]).ok(), "711");
}

/// A container's arguments, what is made different about it before it starts, the reason that it gives, and how many
/// seconds it may take to.
type Case<'a> = (&'a [&'a str], &'a dyn Fn(&Cluster), &'a str, f64);

/// A signal for the init can be handled by any of its threads, and interrupts what that one waits for.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_signal_that_the_owners_thread_takes_ends_no_program() {
    let cluster = restored_cluster();
    let etcd = restored(&cluster, "etcd");
    let init: i32 = cluster.container.inspect("{{.State.Pid}}").parse().expect("it is a number");
    let threads = std::fs::read_dir(format!("/proc/{init}/task")).expect("the engine is on this machine").flatten();
    let is_owner = |path: &std::path::Path| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "restored");
    let owner = threads.map(|thread| thread.path()).find(|path| is_owner(path)).expect("there is a thread `restored`");
    let owner: i32 = owner.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("it is named by its id");
    for _ in 0..3 {
        // SAFETY: tgkill(2) takes three numbers.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, init, owner, libc::SIGCHLD) };
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
        std::thread::sleep(Duration::from_millis(200));
    }
    // A program that has to end takes a moment.
    std::thread::sleep(Duration::from_secs(2));
    assert!(etcd.is_some() && restored(&cluster, "etcd") == etcd, "{}", cluster.container.logs());
    assert!(cluster.serves(KUBERNETES_READY));
}

/// These limit how long something may take: run with nothing beside them.
mod alone {
    use super::*;

    #[test]
    #[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
    fn a_start_that_cannot_restore_is_a_plain_one_and_says_why() {
        let nothing: fn(&Cluster) = |_| {};
        let on = Start::Restored.options();
        let clock = "#!/bin/sh\nexec unshare --time --monotonic 86400 kind run\n";
        let cases: [Case; 7] = [
            (
                &["--env", "KIND_RESTORE=1", "--entrypoint", "/clock"],
                &|cluster| cluster.put_program("/clock", clock),
                "time namespace with clocks of its own",
                REFUSAL_LIMIT,
            ),
            (&["--env", "KIND_RESTORE=0"], &nothing, "KIND_RESTORE=0", REFUSAL_LIMIT),
            (
                &on,
                &|cluster| cluster.put("/kind/restore/images/files.img", "cut"),
                "the saved state in /kind/restore is damaged",
                REFUSAL_LIMIT,
            ),
            (&on, &|cluster| cluster.put("/kind/restore/saved.json", "{}"), "saved.json is not valid", REFUSAL_LIMIT),
            (
                &on,
                &|cluster| cluster.put("/etc/kubernetes/pki/sa.pub", "another"),
                "/etc/kubernetes/pki/sa.pub is not what it was",
                REFUSAL_LIMIT,
            ),
            (&on, &|cluster| cluster.put_program("/kind/criu/ld.so", "#!/bin/sh\nexit 3\n"), "CRIU ended with status 3", 2.0),
            (
                &on,
                &|cluster| cluster.put_program("/kind/criu/ld.so", "#!/bin/sh\nsleep 60\n"),
                "CRIU has not finished after 15 s",
                HANG_LIMIT,
            ),
        ];
        for (arguments, change, why, limit) in cases {
            let cluster = Cluster::create(arguments);
            change(&cluster);
            let began = Instant::now();
            cluster.container.start();
            let line = wait_for(why, LIMIT, || {
                let log = cluster.container.logs();
                log.lines().find(|line| line.contains(COLD)).map(str::to_string)
            });
            assert!(line.contains(why), "{line}");
            let after = line.split(" after ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
            println!("{line}");
            assert!(after.is_some_and(|seconds| seconds < limit), "{line}");
            if why.contains("sa.pub") {
                // The other key is of no use to the cluster either.
                continue;
            }
            cluster.wait_until_ready();
            assert!(PROGRAMS.iter().all(|program| restored(&cluster, program).is_none()));
            assert!(Api::new(&cluster).is_ready() && began.elapsed() < Duration::from_secs(180));
            let status = cluster.container.exec(&["kind", "status"]).ok();
            assert!(status.contains("control plane     started, not restored"), "{status}");
        }
    }

    /// When kubelet first reports its node to an API server that runs already, it may not have asked the runtime for pods yet.
    #[test]
    #[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
    fn a_node_that_was_reported_too_early_is_ready_a_moment_later() {
        let paths = ["/usr/local/sbin/iptables", "/usr/local/sbin/iptables-legacy"];
        let cluster = restored_with_programs(&paths, SLOW_IPTABLES);
        cluster.wait_until_ready();
        cluster.container.exec(&["grep", "-q", "Node became not ready", "/var/log/kind/kubelet.log"]).ok();
        let timeline = cluster.timeline();
        let at = |name: &str| milestone(&timeline, name);
        // By default kubelet would report it again 10 s after the first time.
        let waited = at(KUBERNETES_READY) - at("pods").max(at("dns"));
        assert!(waited < 2.0, "{timeline}");
    }
}
