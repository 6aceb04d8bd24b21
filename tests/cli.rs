//! The command line: what it prints, where, and with which exit status.
// No reaper runs in this process, so std's own wait calls are safe.
#![allow(clippy::disallowed_methods)]

mod common;

use std::process::{Command, Output};

use common::{closed_pipe, code, TempDir, KIND};

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn said(output: Output) -> Said {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: code(output.status), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs the binary on a state directory of the test's own.
fn kind(root: &TempDir, arguments: &[&str]) -> Said {
    said(
        Command::new(KIND)
            .args(arguments)
            .env("KIND_ROOT", root.path())
            .env_remove("KIND_LISTEN")
            .env_remove("STATIC_IP")
            .output()
            .unwrap(),
    )
}

/// Runs `kind run` without privileges, so that it cannot start anything even if it tries.
fn unprivileged(root: &TempDir, settings: &[(&str, &str)]) -> Said {
    let mut command = if nix::unistd::geteuid().is_root() {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--bounding-set=-all", "--inh-caps=-all", KIND]);
        setpriv
    } else {
        Command::new(KIND)
    };
    let empty = root.join("bin");
    std::fs::create_dir_all(&empty).unwrap();
    let path = format!("{}:{}", empty.display(), std::env::var("PATH").unwrap_or_default());
    command.arg("run").env("KIND_ROOT", root.path()).env("PATH", path).envs(settings.iter().copied());
    said(command.output().unwrap())
}

#[test]
fn help_names_every_subcommand_and_goes_to_stdout() {
    let root = TempDir::new();
    for word in ["--help", "-h", "help"] {
        let said = kind(&root, &[word]);
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{word}");
        for name in ["run", "bake", "status", "healthcheck", "10080", "STATIC_IP"] {
            assert!(said.out.contains(name), "{word} does not name {name}");
        }
        assert!(said.out.lines().all(|line| line.len() <= 110), "a line of {word} is too long to read");
    }
}

#[test]
fn version_is_that_of_the_crate() {
    let root = TempDir::new();
    for word in ["--version", "-V", "version"] {
        let said = kind(&root, &[word]);
        assert_eq!((said.code, said.out), (0, format!("kind {}\n", env!("CARGO_PKG_VERSION"))));
    }
}

#[test]
fn wrong_usage_is_one_line_on_stderr_and_status_2() {
    let root = TempDir::new();
    for line in ["", "start", "--verbose", "bake", "bake --bundle", "status now", "healthcheck now", "healthcheck docker kubernetes"] {
        let said = kind(&root, &line.split_whitespace().collect::<Vec<_>>());
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{line:?}: {}", said.err);
        assert!(said.err.lines().count() == 1 && said.err.contains("kind --help"), "{line:?}: {}", said.err);
    }
}

/// What the init has written about its state; in `failed` the reason.
fn state(root: &TempDir, has_cluster: bool, docker: bool, kubernetes: bool, failed: Option<&str>) {
    let failed = failed.map_or("null".to_string(), |why| format!("{why:?}"));
    let timeline = r#"[{"milestone": "store", "seconds": 0.01}, {"milestone": "docker-ready", "seconds": 1.25}]"#;
    let text = format!(
        r#"{{"hasCluster": {has_cluster}, "dockerReady": {docker}, "kubernetesReady": {kubernetes}, "controlPlane": null,
            "failed": {failed}, "waiting": ["the DNS: no answer yet"], "timeline": {timeline}}}"#
    );
    root.write("var/kind/status.json", &text);
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let root = TempDir::new();
    state(&root, false, true, false, None);
    for word in ["--help", "--version", "status"] {
        let said = said(Command::new(KIND).arg(word).env("KIND_ROOT", root.path()).stdout(closed_pipe()).output().unwrap());
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{word}");
    }
}

#[test]
fn status_shows_states_failure_and_timeline() {
    let root = TempDir::new();
    for arguments in [&["status"][..], &["status", "--output", "json"], &["logs"]] {
        let said = kind(&root, arguments);
        assert_eq!((said.code, said.out.as_str()), (1, ""), "{arguments:?}");
        assert!(said.err.contains("kind does not run in this container"), "{arguments:?}: {}", said.err);
    }
    std::fs::create_dir_all(root.join("var/kind")).unwrap();
    let said = kind(&root, &["status"]);
    assert!(said.code == 1 && said.err.contains("kind could not write") && said.err.contains("docker logs"), "{}", said.err);
    state(&root, true, true, false, Some("etcd has lost its data"));
    let said = kind(&root, &["status"]);
    assert_eq!(said.code, 0);
    let lines = [
        "docker-ready      yes",
        "kubernetes-ready  no",
        "failed            etcd has lost its data",
        "  the DNS: no answer yet",
        "  1.250  docker-ready",
    ];
    for line in lines {
        assert!(said.out.lines().any(|said| said == line), "{line:?} is not in\n{}", said.out);
    }
    assert_eq!(kind(&root, &["status", "--output", "json"]).out, root.read("var/kind/status.json"));
    root.write("var/kind/status.json", "{}");
    let said = kind(&root, &["status"]);
    assert!(said.code == 1 && said.err.contains("status.json is not what this version"), "{}", said.err);
}

#[test]
fn healthcheck_without_a_cluster_depends_on_docker() {
    let root = TempDir::new();
    let health = || kind(&root, &["healthcheck"]).code;
    assert_eq!(health(), 1, "nothing is ready yet");
    root.write("var/kind/docker-ready", "ready\n");
    assert_eq!(health(), 0);
    root.write("var/kind/failed", "dockerd has died\n");
    assert_eq!(health(), 1, "it has failed since");
}

#[test]
fn healthcheck_with_a_cluster_depends_on_kubernetes() {
    let root = TempDir::new();
    let health = || kind(&root, &["healthcheck"]).code;
    root.write("kind/cluster.json", "{}");
    root.write("var/kind/docker-ready", "ready\n");
    assert_eq!(health(), 1, "Docker alone is not enough");
    root.write("var/kind/kubernetes-ready", "ready\n");
    assert_eq!(health(), 0);
}

#[test]
fn healthcheck_looks_at_what_is_named() {
    let root = TempDir::new();
    let health = |service| kind(&root, &["healthcheck", service]);
    let codes = || ["docker", "kubernetes"].map(|service| health(service).code);
    root.write("kind/cluster.json", "{}");
    assert_eq!(codes(), [1, 1], "nothing is ready yet");
    root.write("var/kind/docker-ready", "ready\n");
    assert_eq!(codes(), [0, 1]);
    root.write("var/kind/failed", "kubelet has died\n");
    assert_eq!(codes(), [0, 1], "Docker goes on without the cluster");
    std::fs::remove_file(root.join("var/kind/failed")).unwrap();
    root.write("var/kind/kubernetes-ready", "ready\n");
    assert_eq!(codes(), [0, 0]);
    let said = health("docker");
    assert_eq!((said.out.as_str(), said.err.as_str()), ("", ""), "an engine keeps what a health check says");
}

#[test]
fn a_health_of_kubernetes_without_a_cluster_is_an_error_that_says_so() {
    let root = TempDir::new();
    root.write("var/kind/docker-ready", "ready\n");
    let said = kind(&root, &["healthcheck", "kubernetes"]);
    assert_eq!((said.code, said.out.as_str(), said.err.lines().count()), (1, "", 1), "{}", said.err);
    assert!(said.err.contains("no cluster is baked into this image") && said.err.contains("kind healthcheck docker"), "{}", said.err);
    assert_eq!(kind(&root, &["healthcheck", "docker"]).code, 0);
}

#[test]
fn without_privileges_one_line_says_how_to_get_them() {
    let root = TempDir::new();
    let said = unprivileged(&root, &[]);
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{}", said.err);
    assert_eq!(said.err.lines().count(), 1, "{}", said.err);
    assert!(said.err.contains("--privileged") && said.err.contains("securityContext"), "{}", said.err);
    assert!(!root.join("var").exists(), "it has written something");
}

#[test]
fn invalid_settings_are_refused_by_name() {
    let root = TempDir::new();
    for (name, value) in [
        ("KIND_LISTEN", "eth0"),
        ("KIND_LISTEN", "127.0.0.1:99999"),
        ("STATIC_IP", "nonsense"),
        ("STATIC_IP", "127.0.0.1"),
        ("STATIC_IP", "10.96.0.1"),
        ("STATIC_IP", "::1"),
    ] {
        let said = unprivileged(&root, &[(name, value)]);
        assert_eq!((said.code, said.err.lines().count()), (1, 1), "{name}={value}: {}", said.err);
        assert!(said.err.contains(&format!("{name}={value}")), "{}", said.err);
    }
}

/// The negative control of the test above: with valid settings, only the missing privileges are refused.
#[test]
fn valid_settings_are_accepted() {
    let root = TempDir::new();
    for (name, value) in [("KIND_LISTEN", "127.0.0.1:10080"), ("STATIC_IP", "172.99.99.1"), ("STATIC_IP", "")] {
        let said = unprivileged(&root, &[(name, value)]);
        assert!(!said.err.contains(name) && said.err.contains("--privileged"), "{name}={value}: {}", said.err);
    }
}
