//! As a replacement for docker:dind: the same variables, flags and certificates.

use std::process::Command;

use crate::certificates::{is_backdated, seconds};
use crate::cluster::{shared, Cluster, BOOT_LIMIT, DOCKER_READY, LIMIT};
use crate::engine::{docker, image, session, tools, Container, BUSYBOX};
use crate::process::{run, wait_for, Outcome};

const TLS_PORT: u16 = 2376;

/// Starts a container of the image with these options and this command, and waits until its Docker is ready.
fn docker_ready(options: &[&str], command: &[&str]) -> Container {
    let container = Container::create(&[&["--privileged"], options, &[image()], command].concat());
    container.start();
    wait_until_docker_answers(&container);
    container
}

fn wait_until_docker_answers(container: &Container) {
    let is_there = || container.exec(&["test", "-e", &format!("/var/kind/{DOCKER_READY}")]).succeeded().then_some(());
    wait_for(&format!("Docker answers: {}", container.logs()), BOOT_LIMIT, is_there);
}

/// dockerd's command line.
fn arguments(container: &Container) -> String {
    container.exec(&["sh", "-c", "tr '\\0' ' ' </proc/$(pgrep -x dockerd)/cmdline"]).ok()
}

/// This machine's docker command, with the container's client certificates.
struct Client {
    certificates: String,
    address: String,
}

impl Client {
    fn of(container: &Container) -> Client {
        let directory = session().dir.join(format!("client-{}", &container.id[..12]));
        docker(&["cp", &format!("{}:/certs/client", container.id), &directory.to_string_lossy()]).ok();
        Client { certificates: directory.display().to_string(), address: address_of(container) }
    }

    fn docker(&self, arguments: &[&str]) -> Outcome {
        let mut command = Command::new("docker");
        command.env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT").arg("--tlsverify");
        for (flag, file) in [("--tlscacert", "ca"), ("--tlscert", "cert"), ("--tlskey", "key")] {
            command.args([flag, &format!("{}/{file}.pem", self.certificates)]);
        }
        run(command.args(["--host", &format!("tcp://{}:{TLS_PORT}", self.address)]).args(arguments), LIMIT)
    }
}

fn address_of(container: &Container) -> String {
    container.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
}

fn plain(address: &str, port: u16) -> Outcome {
    let host = format!("tcp://{address}:{port}");
    run(Command::new("docker").env_remove("DOCKER_TLS_VERIFY").args(["--host", &host, "version"]), LIMIT)
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn with_what_gitlab_sets_in_every_container_of_a_job_docker_serves_tls() {
    let settings = ["DOCKER_HOST=tcp://docker:2376", "DOCKER_TLS_CERTDIR=/certs", "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH=/certs/client"];
    let mut options: Vec<&str> = settings.iter().flat_map(|setting| ["--env", setting]).collect();
    options.extend(["--env", "DOCKER_DRIVER=overlay2", "--env", "DOCKER_TLS_SAN=DNS:ci.example"]);
    let container = docker_ready(&options, &[]);
    let client = Client::of(&container);
    assert!(client.docker(&["images"]).ok().contains(BUSYBOX.split(':').next().expect("it has a tag")), "the baked images are there");
    for port in [TLS_PORT, 2375] {
        let outcome = plain(&client.address, port);
        assert!(!outcome.succeeded(), "{port} answers without certificates: {outcome}");
    }
    let names = container.exec(&["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", "/certs/server/cert.pem"]).ok();
    for name in [tools().static_ip.as_str(), &client.address, "docker", "localhost", "ci.example"] {
        assert!(names.contains(name), "{name} is not in {names}");
    }
    for part in ["ca", "server", "client"] {
        let file = format!("/certs/{part}/cert.pem");
        let begin = container.exec(&["openssl", "x509", "-noout", "-startdate", "-dateopt", "iso_8601", "-in", &file]).ok();
        assert!(is_backdated(&begin, seconds("now")), "{file}: {begin}");
    }
    let warnings: Vec<String> = container.logs().lines().filter(|line| line.starts_with("WARN")).map(str::to_string).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("DOCKER_HOST=") && warnings[0].contains("DOCKER_DRIVER=overlay2"), "{warnings:?}");

    // The next start keeps the keys, so earlier client certificates still work.
    docker(&["kill", &container.id]).ok();
    container.start();
    // Another container may have got its address meanwhile. The file that says that Docker answers may be the first start's.
    let client = Client { address: address_of(&container), ..client };
    wait_for("the second start takes them", LIMIT, || client.docker(&["version"]).succeeded().then_some(()));
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn settings_in_both_flags_and_daemon_json_do_not_stop_docker() {
    let flags = ["--debug", "--mtu", "1250", "-s", "overlay2", "--label", "from=flag", "--feature", "cdi=false"];
    let container = Container::create(&[&["--privileged", image()], &flags[..]].concat());
    let directory = session().dir.join("docker");
    std::fs::create_dir_all(&directory).expect("the session's directory can be written");
    let text = r#"{"debug": false, "mtu": 1300, "labels": ["from=file"], "containerd": "/x.sock", "hosts": ["tcp://127.0.0.1:2399"], "shutdown-timeout": 3}"#;
    std::fs::write(directory.join("daemon.json"), text).expect("the session's directory can be written");
    container.copy_to(&directory, "/etc");
    container.start();
    wait_until_docker_answers(&container);
    let info = container.exec(&["docker", "info"]).ok();
    assert!(info.contains("from=flag") && !info.contains("from=file") && info.contains("io.containerd.snapshotter.v1"), "{info}");
    container.exec(&["docker", "--host", "tcp://127.0.0.1:2399", "version"]).ok();
    let mtu = container.exec(&["docker", "run", "--rm", BUSYBOX, "cat", "/sys/class/net/eth0/mtu"]).ok();
    assert_eq!(mtu.trim(), "1250");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn only_daemons_that_pull_get_the_proxy() {
    let proxy = "HTTPS_PROXY=http://127.0.0.1:9";
    let container = docker_ready(&["--env", proxy], &[]);
    let environment = |daemon: &str| {
        let script = format!("tr '\\0' '\\n' </proc/$(pgrep -x {daemon} || echo none)/environ");
        // It is empty for a moment in exec(2).
        let read = || Some(container.exec(&["sh", "-c", &script])).filter(|read| read.succeeded() && !read.stdout.is_empty());
        wait_for(&format!("{daemon} runs"), LIMIT, read).stdout
    };
    for (daemon, has_it) in [("dockerd", true), ("containerd", true), ("kubelet", false)] {
        let environment = environment(daemon);
        assert_eq!(environment.lines().any(|line| line == proxy), has_it, "{daemon}: {environment}");
        // Without it, they would load AppArmor profiles if the machine has AppArmor.
        assert!(environment.lines().any(|line| line == "container=docker"), "{daemon}: {environment}");
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn sighup_makes_docker_reload_daemon_json() {
    let container = docker_ready(&[], &[]);
    let write = |text: &str| container.exec(&["sh", "-c", &format!("mkdir -p /etc/docker && echo '{text}' >/etc/docker/daemon.json")]).ok();
    write(r#"{"labels": ["changed=yes"]}"#);
    let info = || container.exec(&["docker", "info"]).ok();
    assert!(!info().contains("changed=yes"), "it is not reloaded without SIGHUP");
    docker(&["kill", "--signal", "HUP", &container.id]).ok();
    wait_for("dockerd has the new label", LIMIT, || info().contains("changed=yes").then_some(()));
    assert!(info().contains("io.containerd.snapshotter.v1"));
    // An invalid one changes nothing.
    write("{");
    docker(&["kill", "--signal", "HUP", &container.id]).ok();
    wait_for("the log says so", LIMIT, || {
        container.logs().contains("keeping the current configuration: /etc/docker/daemon.json").then_some(())
    });
    assert!(info().contains("changed=yes"));
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn an_explicit_dockerd_listens_only_where_its_flags_say() {
    let container = docker_ready(&[], &["dockerd", "--debug"]);
    container.exec(&["docker", "version"]).ok();
    let address = container.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}");
    assert!(!plain(&address, 2375).succeeded(), "{}", arguments(&container));
    drop(container);
    let container = docker_ready(&[], &["dockerd", "--host", "tcp://0.0.0.0:2377", "--tls=false"]);
    let address = container.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}");
    plain(&address, 2377).ok();
    assert!(!container.exec(&["test", "-e", "/var/run/docker.sock"]).succeeded(), "{}", arguments(&container));
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn with_enforce_capacity_pods_may_have_what_the_container_may_use() {
    let cluster = Cluster::ready(&["--env", "ENFORCE_CAPACITY=1", "--cpus", "1.5", "--memory", "3g"]);
    assert_eq!(cluster.field("node/kind", "{.status.allocatable.cpu} {.status.allocatable.memory}"), "1500m 3Gi");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn without_enforce_capacity_pods_may_have_the_whole_machine() {
    let cluster = Cluster::ready(&["--memory", "3g"]);
    assert_ne!(cluster.field("node/kind", "{.status.allocatable.memory}"), "3Gi");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_cluster_works_with_a_tmpfs_volume_and_legacy_iptables() {
    let cluster = Cluster::ready(&["--tmpfs", "/var/lib/docker", "--env", "DOCKER_IPTABLES_LEGACY=1"]);
    let rules =
        |kind: &str| cluster.container.exec(&["sh", "-c", &format!("iptables-{kind}-save | grep -c ^-A")]).stdout.trim().to_string();
    assert_eq!(rules("nft"), "0");
    assert_ne!(rules("legacy"), "0");
    let legacy = cluster.container.exec(&["iptables-legacy-save"]).ok();
    assert!(legacy.contains("KUBE-SERVICES") && legacy.contains("DOCKER"), "{legacy}");
    // A Service is reachable, which needs the rules of all daemons.
    let client = cluster.client();
    cluster.in_pod(client, &["nslookup", "kubernetes.default.svc.cluster.local"]).ok();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_volume_on_an_overlay_is_refused_in_one_line() {
    let script = "mkdir /on-overlay && mount --bind /on-overlay /var/lib/docker && exec kind run";
    let container = Container::create(&["--privileged", "--entrypoint", "sh", image(), "-c", script]);
    let outcome = docker(&["start", "--attach", &container.id]);
    let log = container.logs();
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("ERROR")).collect();
    assert!(!outcome.succeeded() && errors.len() == 1, "{log}");
    assert!(errors[0].contains("overlayfs cannot write below /var/lib/docker") && errors[0].contains("docker run -v"), "{log}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn the_kernels_limits_are_high_enough_for_many_pods() {
    let container = docker_ready(&[], &[]);
    for (name, least) in [("fs/inotify/max_user_instances", 8192), ("fs/inotify/max_user_watches", 524_288)] {
        let value: u64 = container.exec(&["cat", &format!("/proc/sys/{name}")]).ok().trim().parse().expect("it is a number");
        assert!(value >= least, "{name} is {value}");
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn as_entrypoint_of_an_image_without_a_cluster_it_starts_docker_alone() {
    // The image under test with an empty /kind, that is, without the baked cluster.
    let without = session().dir.join("nothing");
    std::fs::create_dir_all(&without).expect("the session's directory can be written");
    let nothing = format!("{}:/kind:ro", without.display());
    let container = docker_ready(&["--volume", &nothing, "--env", "DOCKER_TLS_CERTDIR=/certs"], &["--label", "alone=yes"]);
    assert!(container.logs().contains("no cluster is baked into this image: starting Docker alone"), "{}", container.logs());
    assert!(Client::of(&container).docker(&["info"]).ok().contains("alone=yes"));
    assert!(!container.exec(&["pgrep", "-x", "kubelet"]).succeeded());
}

/// As some services' `entrypoint` and `command` have it.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn dinds_entrypoint_by_name_starts_the_node() {
    for (options, command) in [(&["--entrypoint=dockerd-entrypoint.sh"][..], &["--label=from=flag"][..]), (&[], &["dockerd-entrypoint.sh"])]
    {
        let container = Container::create(&[&["--privileged"], options, &[image()], command].concat());
        container.start();
        let ready = || container.exec(&["kind", "healthcheck", "kubernetes"]).succeeded().then_some(());
        wait_for("kubernetes-ready", BOOT_LIMIT, ready);
        let info = container.exec(&["docker", "info", "--format", "{{.Labels}}"]).ok();
        assert_eq!(info.contains("from=flag"), command[0].contains("from=flag"), "{info}");
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn archives_in_every_form_that_docker_takes_are_loaded() {
    let cluster = shared();
    for program in ["gzip", "xz --fast"] {
        let script = format!("docker save {BUSYBOX} | {program} >/tmp/packed && docker load --input /tmp/packed && rm /tmp/packed");
        let loaded = cluster.container.exec(&["bash", "-euo", "pipefail", "-c", &script]).ok();
        assert!(loaded.contains(BUSYBOX), "{program}: {loaded}");
    }
}

/// A runner passes them to services too. A library that one of our helpers or daemons is linked to, or written in, must not
/// see them.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn variables_for_a_jobs_own_programs_change_nothing_here() {
    let theirs = [
        "BASH_ENV=/builds/none.sh",
        "CONTAINERD_ADDRESS=/builds/none.sock",
        "GODEBUG=gctrace=1",
        "GOMAXPROCS=1",
        "LD_PRELOAD=/builds/none.so",
        "OPENSSL_CONF=/builds/none.cnf",
        "TMPDIR=/builds/none",
        "XDG_RUNTIME_DIR=/builds/none",
    ];
    let mut options: Vec<&str> = theirs.iter().flat_map(|setting| ["--env", setting]).collect();
    options.extend(["--env=DOCKER_TLS_CERTDIR=/certs", "--env=HTTP_PROXY=http://127.0.0.1:9"]);
    let cluster = Cluster::ready(&options);
    for daemon in ["dockerd", "containerd", "kubelet"] {
        let environment = cluster.container.exec(&["sh", "-c", &format!("tr '\\0' '\\n' </proc/$(pgrep -o -x {daemon})/environ")]).ok();
        let seen: Vec<&str> = environment.lines().filter(|line| theirs.contains(line)).collect();
        assert!(seen.is_empty() && environment.contains("PATH="), "{daemon} has {seen:?} of {environment}");
    }
    // The certificate's names come from openssl.
    let address = cluster.address();
    let has_name =
        || crate::cluster::fetch(&format!("http://{address}:10080/config")).is_some_and(|(_, text)| !text.contains("tls-server-name"));
    wait_for("the certificate holds the container's address", LIMIT, || has_name().then_some(()));
    cluster.kubectl(&["run", "pod", &format!("--image={BUSYBOX}"), "--command", "--", "sleep", "3600"]).ok();
    cluster.wait_for_pod(&["pod"]);
    let log = cluster.container.logs();
    assert!(log.contains("not passed to the daemons: ") && log.contains("OPENSSL_CONF") && !log.contains("WARN"), "{log}");
}
