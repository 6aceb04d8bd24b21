//! A private registry with a login and its own CA: docker and pods pull from it, and the password is not leaked. And a
//! mirror of Docker Hub, for docker and pods.

use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::cluster::{Cluster, LIMIT};
use crate::engine::{docker, session, Container, Network, BUSYBOX};
use crate::process::{run, wait_for};

const IMAGE: &str = "kind-lab/registry:1";
/// Building the registry's image downloads Debian packages.
const MAKE_LIMIT: Duration = Duration::from_secs(400);
const USER: &str = "ci";
const PASSWORD: &str = "e2e-pass:word";
const NAME: &str = "registry.test";

/// A registry on a network. `user` is empty, or a name and password that it requires.
pub fn registry(network: &Network, name: &str, user: &[&str]) -> Container {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/registry.sh");
        run(&mut Command::new(script), MAKE_LIMIT).ok();
    });
    let arguments = ["--network", &network.name, "--network-alias", name, IMAGE, name];
    let container = Container::create(&[&arguments[..], user].concat());
    container.start();
    wait_for("the registry listens", LIMIT, || container.logs().contains("listening on").then_some(()));
    container
}

pub fn ca_of(registry: &Container) -> String {
    registry.exec(&["cat", "/ca.crt"]).ok()
}

pub fn pod(cluster: &Cluster, name: &str, image: &str) {
    cluster
        .kubectl(&[
            "run",
            name,
            &format!("--image={image}"),
            "--image-pull-policy=Always",
            "--restart=Never",
            "--command",
            "--",
            "sleep",
            "3600",
        ])
        .ok();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn docker_and_pods_pull_from_a_registry_with_a_login_and_its_own_ca() {
    let network = Network::create("registry", &[]);
    let registry = registry(&network, NAME, &[USER, PASSWORD]);
    let password = session().dir.join("registry-password");
    std::fs::write(&password, format!("{PASSWORD}\n")).expect("the session's directory can be written");
    let ca = ca_of(&registry);
    let environment = [
        format!("REGISTRY={NAME}"),
        format!("REGISTRY_USER={USER}"),
        "REGISTRY_PASSWORD_FILE=/run/secrets/registry".to_string(),
        format!("KIND_REGISTRY_CA={ca}"),
    ];
    let mount = format!("--volume={}:/run/secrets/registry:ro", password.display());
    let mut arguments = vec!["--network", &network.name, &mount];
    arguments.extend(environment.iter().flat_map(|setting| ["--env", setting]));
    let cluster = Cluster::ready(&arguments);
    let image = format!("{NAME}/team/app:1");
    let inside = |arguments: &[&str]| cluster.container.exec(&[&["docker"], arguments].concat());
    inside(&["tag", BUSYBOX, &image]).ok();
    inside(&["push", &image]).ok();
    inside(&["rmi", &image]).ok();
    inside(&["pull", &image]).ok();
    inside(&["rmi", &image]).ok();
    pod(&cluster, "private", &image);
    cluster.wait_for_pod(&["private"]);
    let asked = registry.logs();
    assert!(asked.contains("GET /v2/team/app/manifests/1") || asked.contains("HEAD /v2/team/app/manifests/1"), "{asked}");
    // The password is not in the log, in `docker inspect`, or in the arguments of a process.
    let encoded = "Y2k6ZTJlLXBhc3M6d29yZA==";
    let ps = cluster.container.exec(&["sh", "-c", "cat /proc/*/cmdline | tr '\\0' ' '"]).stdout;
    for text in [cluster.container.logs(), docker(&["inspect", &cluster.container.id]).ok(), ps] {
        assert!(!text.contains(PASSWORD) && !text.contains(encoded), "{text}");
    }
    for file in ["/root/.docker/config.json", "/var/lib/kubelet/config.json"] {
        assert_eq!(cluster.container.exec(&["stat", "--format=%a", file]).ok(), "600", "{file}");
        assert!(cluster.container.exec(&["cat", file]).ok().contains(encoded), "{file}");
    }
}

/// The negative control: without the login, or without the CA, neither docker nor pods can pull.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn without_the_login_or_the_ca_nothing_is_pulled() {
    let network = Network::create("no-login", &[]);
    let registry = registry(&network, NAME, &[USER, PASSWORD]);
    let ca = ca_of(&registry);
    for (name, environment, why) in [
        ("no-login", vec![format!("REGISTRY={NAME}"), format!("KIND_REGISTRY_CA={ca}")], "basic auth"),
        (
            "no-ca",
            vec![format!("REGISTRY={NAME}"), format!("REGISTRY_USER={USER}"), format!("REGISTRY_PASSWORD={PASSWORD}")],
            "certificate",
        ),
    ] {
        let mut arguments = vec!["--network", network.name.as_str()];
        arguments.extend(environment.iter().flat_map(|setting| ["--env", setting.as_str()]));
        let cluster = Cluster::ready(&arguments);
        let pulled = cluster.container.exec(&["docker", "pull", &format!("{NAME}/team/app:1")]);
        assert!(!pulled.succeeded() && pulled.output().contains(why), "{name}: {pulled}");
        pod(&cluster, name, &format!("{NAME}/team/app:1"));
        let message = "{.status.containerStatuses[0].state.waiting.message}";
        let said = wait_for(&format!("{name} is not pulled"), LIMIT, || {
            Some(cluster.field(&format!("pod/{name}"), message)).filter(|said| !said.is_empty())
        });
        assert!(said.contains(NAME) || said.contains("back-off"), "{said}");
        assert!(!cluster.container.logs().contains(PASSWORD));
    }
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn docker_and_pods_pull_docker_hubs_images_through_a_mirror() {
    let network = Network::create("mirror", &[]);
    let registry = registry(&network, "mirror.test", &[]);
    let ca = format!("KIND_REGISTRY_CA={}", ca_of(&registry));
    let arguments = ["--network", &network.name, "--env", "KIND_REGISTRY_MIRROR=https://mirror.test", "--env", &ca];
    let cluster = Cluster::ready(&arguments);
    let inside = |arguments: &[&str]| cluster.container.exec(&[&["docker"], arguments].concat());
    for name in ["kind-e2e-by-docker", "kind-e2e-by-pod"] {
        let there = format!("mirror.test/library/{name}:1");
        inside(&["tag", BUSYBOX, &there]).ok();
        inside(&["push", &there]).ok();
        inside(&["rmi", &there]).ok();
    }
    // Docker Hub itself has no such images.
    inside(&["pull", "kind-e2e-by-docker:1"]).ok();
    pod(&cluster, "mirrored", "kind-e2e-by-pod:1");
    cluster.wait_for_pod(&["mirrored"]);
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn docker_and_pods_pull_from_an_insecure_registry() {
    let network = Network::create("insecure", &[]);
    let _registry = registry(&network, NAME, &[]);
    let flag = format!("KIND_DOCKERD_ARGS=--insecure-registry={NAME}");
    let cluster = Cluster::ready(&["--network", &network.name, "--env", &flag]);
    let image = format!("{NAME}/team/app:1");
    for arguments in [&["tag", BUSYBOX, &image][..], &["push", &image], &["rmi", &image]] {
        cluster.container.exec(&[&["docker"], arguments].concat()).ok();
    }
    pod(&cluster, "insecure", &image);
    cluster.wait_for_pod(&["insecure"]);
}
