//! The credentials work under the name by which the client has fetched them.

use std::process::Command;

use crate::cluster::{fetch, kubectl_with, shared, Cluster, API_PORT, CREDENTIALS};
use crate::engine::{session, tools, Container};
use crate::process::run;

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn kubectl_works_with_the_config_fetched_from_localhost_and_127_0_0_1() {
    let cluster = shared();
    for host in ["127.0.0.1", "localhost"] {
        let (_, config) = fetch(&cluster.url(host, "config")).expect("the file server answers");
        assert!(config.contains(&format!("server: https://{host}:{API_PORT}\n")), "{host}: {config}");
        assert!(!config.contains("tls-server-name") && !config.contains("insecure"), "{host} is in the certificate: {config}");
        let kubeconfig = cluster.kubeconfig(host);
        assert_eq!(kubectl_with(&kubeconfig, &["config", "current-context"]).ok(), "kind");
        let node = kubectl_with(&kubeconfig, &["get", "nodes", "--no-headers"]).ok();
        assert!(node.starts_with("kind ") && node.contains(" Ready "), "{node}");
        assert_eq!(kubectl_with(&kubeconfig, &["auth", "can-i", "*", "*", "--all-namespaces"]).ok(), "yes");
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn kubectl_works_with_the_config_fetched_from_the_containers_address() {
    let cluster = shared();
    let address = cluster.address();
    let (_, config) = fetch(&format!("http://{address}:10080/config")).expect("the file server answers");
    let kubeconfig = session().dir.join("address.kubeconfig");
    std::fs::write(&kubeconfig, &config).expect("the session's directory can be written");
    let node = kubectl_with(&kubeconfig, &["get", "nodes", "--no-headers"]).ok();
    assert!(node.contains(" Ready "), "{node}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn kubectl_works_from_another_container_under_a_name_unknown_to_the_bake() {
    let cluster = shared();
    let job = Container::idle(&["--network", cluster.network], &["sleep", "infinity"]);
    // The bake knows the second alone; the first gets into the certificate once it was asked under.
    for name in ["my-cluster", "docker"] {
        // kubectl is the only HTTP client in the image.
        let fetch = format!("kubectl get --raw /config --server http://{name}:10080 >/{name}");
        job.exec(&["sh", "-c", &fetch]).ok();
        let config = job.exec(&["cat", &format!("/{name}")]).ok();
        assert!(config.contains(&format!("server: https://{name}:{API_PORT}\n")), "{config}");
        assert!(name == "my-cluster" || !config.contains("tls-server-name"), "{config}");
        assert!(!config.contains("insecure"), "{config}");
        let node = job.exec(&["kubectl", "--kubeconfig", &format!("/{name}"), "get", "nodes", "--no-headers"]).ok();
        assert!(node.contains(" Ready "), "{node}");
    }
    // The control: under a name that is not in the certificate it is refused, so it was verified.
    let refused = job.exec(&["kubectl", "--kubeconfig", "/my-cluster", "--tls-server-name=nobodys.example", "get", "nodes"]);
    assert!(!refused.succeeded() && refused.stderr.contains("certificate"), "{refused}");
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn kubectl_works_with_a_kubeconfig_made_of_the_separate_files() {
    let cluster = shared();
    let dir = session().dir.join("recipe");
    std::fs::create_dir_all(&dir).expect("the session's directory can be written");
    for name in CREDENTIALS {
        std::fs::write(dir.join(name), cluster.file(name).expect("it is served")).expect("the session's directory can be written");
    }
    let server = format!("--server=https://localhost:{}", cluster.api_port);
    let kubectl = |arguments: &[&str]| {
        let mut command = Command::new(&tools().kubectl);
        command.current_dir(&dir).env("KUBECONFIG", dir.join("config")).env("HOME", &dir).env("NO_PROXY", "*");
        run(command.args(arguments), crate::cluster::LIMIT).ok()
    };
    kubectl(&["config", "set-cluster", "kind-cluster", &server, "--certificate-authority=ca.crt"]);
    kubectl(&["config", "set-credentials", "kind-admin", "--client-key=client.key", "--client-certificate=client.crt"]);
    kubectl(&["config", "set-context", "kind", "--cluster=kind-cluster", "--user=kind-admin"]);
    kubectl(&["config", "use-context", "kind"]);
    let node = kubectl(&["get", "nodes", "--no-headers"]);
    assert!(node.starts_with("kind ") && node.contains(" Ready "), "{node}");
}

/// A runner hands a job's variables to its services.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn what_a_job_sets_for_its_clients_leads_none_in_the_container_away() {
    let variables = [
        "HTTPS_PROXY=http://127.0.0.1:9",
        "http_proxy=http://127.0.0.1:9",
        "DOCKER_HOST=tcp://docker:2375",
        "KUBECONFIG=/builds/kubeconfig",
        "REGISTRY=registry.example.com/team/app",
    ];
    let arguments: Vec<&str> = variables.iter().flat_map(|variable| ["--env", variable]).collect();
    let cluster = Cluster::ready(&arguments);
    // As docs/limits.md has it: an exec begins with the variables, too.
    let of_node = ["env", "-u", "DOCKER_HOST", "KUBECONFIG=/etc/kubernetes/admin.conf"];
    let exec = |command: &[&str]| cluster.container.exec(&[&of_node, command].concat()).ok();
    assert!(exec(&["kubectl", "get", "nodes"]).contains(" Ready "));
    exec(&["docker", "ps"]);
}
