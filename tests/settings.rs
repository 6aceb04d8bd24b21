//! What the environment sets at run time, in an image without a cluster.
// No reaper runs in this process, so std's own wait calls steal nothing.
#![allow(clippy::disallowed_methods)]

mod common;

use common::dockerd::Dockerd;
use common::node::{Container, FILES_PORT};
use common::{children, parse_answer, raw, LIMIT};

const PASSWORD: &str = "hunter2";

/// Not a test: what the script `dockerd` of the tests below becomes.
#[test]
#[ignore = "the stand-in for dockerd, which the other tests start"]
fn the_stand_in_for_dockerd() {
    common::dockerd::run_if_asked();
}

#[test]
fn arguments_of_the_environment_come_before_the_commands_which_win() {
    let Some(mut container) = Container::new() else { return };
    container.set("KIND_DOCKERD_ARGS", " --debug  --mtu 1300 ");
    let dockerd = Dockerd::install(&container);
    let _kind = container.start(&["run", "--mtu", "1400"]);
    let arguments = dockerd.wait_for_note("arguments");
    assert!(arguments.ends_with("-H fd:// --debug --mtu 1300 --mtu 1400"), "{arguments}");
}

/// What a process was started with, as root sees it in /proc.
fn environment(pid: i32) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/environ")).unwrap()).replace('\0', "\n")
}

#[test]
fn a_login_and_a_mirror_are_set_up_without_a_word_of_the_password() {
    for prefix in ["KIND_", ""] {
        let Some(mut container) = Container::new() else { return };
        let settings = [("REGISTRY", "registry.example"), ("REGISTRY_USER", "ci"), ("REGISTRY_PASSWORD", PASSWORD)];
        settings.iter().for_each(|(name, value)| container.set(&format!("{prefix}{name}"), value));
        container.set("KIND_REGISTRY_MIRROR", "https://mirror.example");
        let dockerd = Dockerd::install(&container);
        let kind = container.start(&["run"]);
        let arguments = dockerd.wait_for_note("arguments");
        assert!(arguments.ends_with("--registry-mirror=https://mirror.example") && !arguments.contains(PASSWORD), "{arguments}");
        kind.wait_for_line("logged in to registry.example as ci");
        container.wait_for_status("docker-ready", 200);
        assert!(!kind.stderr().contains(PASSWORD), "{}", kind.stderr());
        // base64 of ci:hunter2
        assert!(container.root.read("root/.docker/config.json").contains("Y2k6aHVudGVyMg=="));
        assert!(!container.root.join("var/lib/kubelet").exists(), "there is no kubelet here");
        // It is gone from the init and from what the init has started; what is not taken out would be found.
        let daemon = children(kind.pid())[0].pid;
        for pid in [kind.pid(), daemon] {
            let environment = environment(pid);
            assert!(environment.contains("https://mirror.example") && !environment.contains(PASSWORD), "{environment}");
        }
    }
}

#[test]
fn a_setting_that_cannot_be_is_one_clear_error() {
    for (name, value, word) in [
        ("KIND_REGISTRY", "registry.example.com/team/app", "KIND_REGISTRY=registry.example.com/team/app"),
        ("KIND_REGISTRY_USER", "ci", "KIND_REGISTRY_PASSWORD"),
        ("KIND_REGISTRY_PASSWORD", PASSWORD, "KIND_REGISTRY_USER"),
        ("KIND_REGISTRY_PASSWORD_FILE", "/no/such", "KIND_REGISTRY_PASSWORD_FILE /no/such"),
        ("KIND_API_PORT", "none", "KIND_API_PORT=none"),
        ("KIND_REGISTRY_MIRROR", "mirror.example", "KIND_REGISTRY_MIRROR"),
        ("KIND_ENFORCE_CAPACITY", "80%", "KIND_ENFORCE_CAPACITY=80%"),
        ("KIND_SYSCTLS", "none", "KIND_SYSCTLS=none"),
        ("KIND_LOG", "loud", "KIND_LOG=loud"),
    ] {
        let Some(mut container) = Container::new() else { return };
        container.set(name, value);
        let mut kind = container.start(&["run"]);
        assert_eq!(kind.wait(LIMIT), 1, "{name}");
        let errors: Vec<String> = kind.stderr().lines().filter(|line| line.starts_with("ERROR")).map(str::to_string).collect();
        assert!(errors.len() == 1 && errors[0].contains(word) && !errors[0].contains(PASSWORD), "{errors:?}");
    }
}

/// A runner hands a job's variables to its services.
#[test]
fn what_a_job_has_set_for_itself_is_a_warning_and_never_the_end() {
    for (settings, word) in [
        (&[("REGISTRY", "registry.example.com/team/app")][..], "REGISTRY=registry.example.com/team/app"),
        (&[("REGISTRY", "registry.example.com/team/app"), ("REGISTRY_USER", "ci"), ("REGISTRY_PASSWORD", PASSWORD)], "REGISTRY="),
        (&[("REGISTRY_USER", "ci")], "REGISTRY_USER"),
        (&[("REGISTRY_PASSWORD", PASSWORD)], "REGISTRY_PASSWORD"),
        (&[("REGISTRY_USER", "ci"), ("REGISTRY_PASSWORD_FILE", "/builds/password")], "/builds/password"),
        (&[("ENFORCE_CAPACITY", "80%")], "ENFORCE_CAPACITY=80%"),
        // Of a Service named kind-api.
        (&[("KIND_API_PORT", "tcp://10.0.0.1:8443")], "KIND_API_PORT comes from a Docker link or a Kubernetes Service"),
        (&[("KIND_REGISTRY", "tcp://10.0.0.1:5000"), ("KIND_REGISTRY_PORT", "tcp://10.0.0.1:5000")], "KIND_REGISTRY comes from"),
    ] {
        let Some(mut container) = Container::new() else { return };
        settings.iter().for_each(|(name, value)| container.set(name, value));
        Dockerd::install(&container);
        let kind = container.start(&["run"]);
        container.wait_for_status("docker-ready", 200);
        let log = kind.stderr();
        let warnings: Vec<&str> = log.lines().filter(|line| line.starts_with("WARN")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(word) && !log.contains(PASSWORD), "{settings:?}: {log}");
        assert!(!container.root.join("root/.docker/config.json").exists(), "a login for nobody");
    }
}

#[test]
fn the_kubeconfig_names_the_published_port() {
    let Some(mut container) = Container::new() else { return };
    container.set("KIND_API_PORT", "18443");
    Dockerd::install(&container);
    let _kind = container.start(&["run"]);
    container.wait_for_status("docker-ready", 200);
    container.root.write("var/kind/config", "clusters:\n- cluster:\n    server: https://localhost:8443\n");
    let config = |target: &str| {
        let request = format!("GET {target} HTTP/1.1\r\nHost: build-7:20080\r\nConnection: close\r\n\r\n");
        parse_answer(&raw(FILES_PORT, &request).unwrap())
    };
    for (target, port) in [("/config", 18443), ("/config?port=28443", 28443)] {
        let (status, text) = config(target);
        assert!(status == 200 && text.contains(&format!("server: https://build-7:{port}\n")), "{target}: {status} {text}");
    }
    for target in ["/config?port=0", "/config?port=none", "/config?port=1%0Aserver"] {
        let (status, text) = config(target);
        assert!(status == 400 && !text.contains("server:"), "{target}: {status} {text}");
    }
}
