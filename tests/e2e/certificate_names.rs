//! The API server's certificate holds whatever name a client uses: clients that know no `tls-server-name`
//! are the measure, which is kubectl with an authority and a server here, as docs/jobs.md shows it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{shared, Cluster, CREDENTIALS, DOCKER_READY, LIMIT};
use crate::engine::{docker, tools, Container, Network};
use crate::process::{poll, wait_for, Outcome};
use crate::start::{on_both_starts, Start};

const SERVER_NAME: &str = "tls-server-name: localhost\n";
/// As the init has it.
const MOST_NAMES: usize = 32;
/// No answer of the file server takes longer, whatever else it is asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Another container on the cluster's network, with the cluster's credentials.
struct Job(Container);

impl Job {
    fn new(network: &str, address: &str) -> Job {
        let job = Job(Container::idle(&["--network", network], &["sleep", "infinity"]));
        CREDENTIALS.iter().for_each(|name| drop(job.fetch(address, name)));
        job
    }

    /// A file of the file server, which is kept. kubectl is the only HTTP client in the image.
    fn fetch(&self, host: &str, file: &str) -> String {
        let fetch = format!("kubectl get --raw /{file} --server http://{host}:10080 >/{file} && cat /{file}");
        self.0.exec(&["sh", "-c", &fetch]).ok() + "\n"
    }

    /// Lists nodes under a name of which the certificate must be.
    fn nodes(&self, host: &str) -> Outcome {
        let server = format!("--server=https://{host}:8443");
        let credentials = ["--certificate-authority=/ca.crt", "--client-certificate=/client.crt", "--client-key=/client.key"];
        self.0.exec(&[&["kubectl", "--kubeconfig=/dev/null", &server], &credentials[..], &["get", "nodes", "--no-headers"]].concat())
    }

    /// Without asking for `/config` under the name: a start signs for the container's own and for those of earlier starts, and
    /// the API server notices that beside everything that readiness waits for.
    fn wait_until_let_in(&self, cluster: &Cluster, host: &str) {
        wait_for(&format!("a client is let in under {host}"), patience(cluster), || self.nodes(host).succeeded().then_some(()));
        self.is_let_in(host);
    }

    fn is_let_in(&self, host: &str) {
        let nodes = self.nodes(host).ok();
        assert!(nodes.starts_with("kind ") && nodes.contains(" Ready "), "{host}: {nodes}");
    }

    /// The certificate is verified: this is the control of the others.
    fn is_not_let_in(&self, host: &str) {
        let refused = self.nodes(host);
        assert!(!refused.succeeded() && refused.stderr.contains("certificate is valid for "), "{host}: {refused}");
    }

    /// Asks until the kubeconfig is for any client; every answer that is must be right.
    fn wait_for_config(&self, cluster: &Cluster, host: &str) {
        wait_for(&format!("a kubeconfig for {host} and any client"), patience(cluster), || {
            let config = self.fetch(host, "config");
            assert!(config.contains(&format!("server: https://{host}:8443\n")), "{config}");
            (!config.contains(SERVER_NAME)).then_some(())
        });
        self.is_let_in(host);
    }
}

/// How long the API server may take to notice a file: from 1.23 on it does at once, before once a minute.
fn patience(cluster: &Cluster) -> Duration {
    let text = cluster.container.exec(&["cat", "/kind/cluster.json"]).ok();
    let description: Value = serde_json::from_str(&text).expect("the bake writes JSON");
    let version = description["kubernetesVersion"].as_str().expect("it is text").to_string();
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    let at_once = minor.unwrap_or_else(|| panic!("{version} has no minor version")) >= 23;
    LIMIT * if at_once { 1 } else { 2 }
}

/// Status and body of a file, asked for under any Host.
fn ask(address: &str, host: &str, file: &str) -> (u16, String) {
    let mut stream = TcpStream::connect((address, 10080)).expect("the file server takes connections");
    stream.set_read_timeout(Some(ANSWER_LIMIT)).expect("the limit is not zero");
    write!(stream, "GET /{file} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("the file server reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap_or_else(|cause| panic!("{host}: no answer in time: {cause}"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{host}: {answer}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{host}: {head}")), body.to_string())
}

/// What openssl says of the certificate that the API server shows.
fn shown(cluster: &Cluster, what: &[&str]) -> String {
    let address = &tools().static_ip;
    let show = format!("openssl s_client -connect {address}:8443 </dev/null 2>/dev/null | openssl x509 -noout {}", what.join(" "));
    cluster.container.exec(&["sh", "-c", &show]).ok()
}

fn names(cluster: &Cluster) -> Vec<String> {
    let text = shown(cluster, &["-ext", "subjectAltName"]);
    text.split([',', '\n']).map(|entry| entry.trim().trim_start_matches("DNS:").trim_start_matches("IP Address:").to_string()).collect()
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn any_client_is_let_in_under_the_containers_address_and_host_name_from_the_start() {
    let cluster = shared();
    let address = cluster.address();
    let job = Job::new(cluster.network, &address);
    // The engine makes the host name of a container an alias too.
    let host = cluster.container.id[..12].to_string();
    for name in [&address, &host] {
        job.wait_until_let_in(&cluster, name);
        job.wait_for_config(&cluster, name);
    }
    // What pods call the API server is still in it.
    let names = names(&cluster);
    for name in ["localhost", "kubernetes.default.svc", "10.96.0.1", &tools().static_ip] {
        assert!(names.iter().any(|have| have == name), "{name} is not among {names:?}");
    }
}

fn any_client_is_let_in_under_a_name_that_config_was_asked_for_under(start: Start) {
    let (network, later) = (Network::create("names", &[]), Network::create("names-later", &[]));
    let aliases = ["--network-alias", "my_project__1.ci", "--network-alias", "Another", "--network-alias", "nobody-asks"];
    let cluster = start.ready(&[&["--network", &network.name], &aliases[..]].concat());
    let job = Job::new(&network.name, &cluster.address());
    job.is_not_let_in("my_project__1.ci");
    assert!(job.fetch("my_project__1.ci", "config").contains(SERVER_NAME), "it was not seen yet");
    job.wait_for_config(&cluster, "my_project__1.ci");
    job.is_not_let_in("nobody-asks");

    // An API server that shows nothing new keeps nobody waiting, and nothing is claimed of it.
    cluster.container.exec(&["pkill", "-STOP", "-x", "kube-apiserver"]).ok();
    let frozen = Instant::now();
    while frozen.elapsed() < Duration::from_secs(3) {
        let (status, config) = ask(&cluster.address(), "Another:10080", "config");
        assert!(status == 200 && config.contains("server: https://Another:8443\n") && config.contains(SERVER_NAME), "{config}");
    }
    cluster.container.exec(&["pkill", "-CONT", "-x", "kube-apiserver"]).ok();
    job.wait_for_config(&cluster, "Another");

    docker(&["network", "connect", &later.name, &cluster.container.id]).ok();
    let address = cluster.container.inspect(&format!("{{{{(index .NetworkSettings.Networks \"{}\").IPAddress}}}}", later.name));
    let neighbour = Job::new(&later.name, &address);
    neighbour.wait_for_config(&cluster, &address);

    // A kubeconfig that was given out stays good.
    docker(&["stop", &cluster.container.id]).ok();
    cluster.container.start();
    cluster.wait_until_ready();
    start.check(&cluster);
    job.wait_until_let_in(&cluster, "my_project__1.ci");
    job.wait_until_let_in(&cluster, "another");
    job.is_not_let_in("nobody-asks");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn an_ipv6_address_of_the_container_is_in_the_certificate_too() {
    let network = Network::create("names-v6", &["--ipv6", "--subnet", "fd00:ce:27::/64"]);
    let cluster = Cluster::ready(&["--network", &network.name]);
    let address = cluster.container.inspect("{{range .NetworkSettings.Networks}}{{.GlobalIPv6Address}}{{end}}");
    assert!(address.starts_with("fd00:ce:27:"), "the test is void: {address}");
    let job = Job::new(&network.name, &cluster.address());
    wait_for("a kubeconfig for it and any client", patience(&cluster), || {
        let (status, config) = ask(&cluster.address(), &format!("[{address}]:10080"), "config");
        assert!(status == 200 && config.contains(&format!("server: https://[{address}]:8443\n")), "{config}");
        (!config.contains(SERVER_NAME)).then_some(())
    });
    job.is_let_in(&format!("[{address}]"));
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_flood_of_names_stalls_nobody_and_is_signed_for_only_so_far() {
    let cluster = Cluster::ready(&[]);
    let address = cluster.address();
    let flood = |prefix: &str| {
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let asked = scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    // It panics where an answer takes too long.
                    assert_eq!(ask(&address, "localhost", DOCKER_READY).0, 200);
                }
            });
            for number in 0..200 {
                let (status, config) = ask(&address, &format!("{prefix}-{number}"), "config");
                assert!(status == 200 && config.contains(&format!("server: https://{prefix}-{number}:8443\n")), "{config}");
            }
            ended.store(true, Ordering::Relaxed);
            asked.join().expect("docker-ready answers in time");
        });
    };
    let of = |prefix: &str| names(&cluster).iter().filter(|name| name.starts_with(prefix)).count();
    flood("first");
    wait_for("the names that were asked for first", patience(&cluster), || (of("first-") == MOST_NAMES).then_some(()));
    let serial = shown(&cluster, &["-serial"]);
    flood("second");
    let changed = poll(Duration::from_secs(5), || (shown(&cluster, &["-serial"]) != serial).then_some(()));
    assert!(changed.is_none(), "signed again for {:?}", names(&cluster));
    assert_eq!(of("second-"), 0);
    for (host, has_server_name) in [("first-0", false), ("first-199", true), ("second-0", true), ("localhost", false)] {
        assert_eq!(ask(&address, host, "config").1.contains(SERVER_NAME), has_server_name, "{host}");
    }
    // As many lines of the log as certificates at most, and none that nobody wants to read.
    let log = cluster.container.logs();
    let lines = log.matches("certificate is now valid for").count();
    assert!((1..=MOST_NAMES + 1).contains(&lines), "{log}");
    crate::readiness::check_log(&log);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_name_that_is_none_is_refused_and_one_that_no_certificate_holds_is_not_signed_for() {
    let cluster = shared();
    let address = cluster.address();
    // Its start signs for the container's own names.
    let is_signed = || !ask(&address, &address, "config").1.contains(SERVER_NAME);
    wait_for("the certificate of this start", patience(&cluster), || is_signed().then_some(()));
    let serial = shown(&cluster, &["-serial"]);
    for host in ["a b", "-x", "user@host", "a,DNS:b", "host:port", &"a".repeat(64), &"a.".repeat(127), "[::1"] {
        let (status, body) = ask(&address, host, "config");
        assert_eq!((status, body.as_str()), (400, "the Host header is neither a host name nor an address\n"), "{host}");
    }
    for host in ["1.2.3", "a.."] {
        let (status, config) = ask(&address, host, "config");
        assert!(status == 200 && config.contains(SERVER_NAME), "{host}: {config}");
    }
    let changed = poll(Duration::from_secs(3), || (shown(&cluster, &["-serial"]) != serial).then_some(()));
    assert!(changed.is_none(), "signed again for {:?}", names(&cluster));
}

on_both_starts! {
    any_client_is_let_in_under_a_name_that_config_was_asked_for_under
}
