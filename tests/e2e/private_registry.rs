//! A private registry with a login and an authority of its own: docker and pods pull from it, and
//! nobody learns the password. And a mirror of Docker Hub that both pull through.

use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::cluster::{Cluster, LIMIT};
use crate::engine::{docker, session, Container, Network, BUSYBOX};
use crate::process::{run, wait_for};

const IMAGE: &str = "kind-lab/registry:1";
/// Debian's packages come from the network when the image is made.
const MAKE_LIMIT: Duration = Duration::from_secs(400);
const USER: &str = "ci";
const PASSWORD: &str = "e2e-pass:word";
const NAME: &str = "registry.test";

/// A registry on a network: `user` has to log in where one is given.
fn registry(network: &Network, name: &str, user: &[&str]) -> Container {
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

fn authority_of(registry: &Container) -> String {
    registry.exec(&["cat", "/ca.crt"]).ok()
}

fn pod(cluster: &Cluster, name: &str, image: &str) {
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
fn docker_and_pods_pull_from_a_registry_with_a_login_and_its_own_authority() {
    let network = Network::create("registry", &[]);
    let registry = registry(&network, NAME, &[USER, PASSWORD]);
    let password = session().dir.join("registry-password");
    std::fs::write(&password, format!("{PASSWORD}\n")).expect("the session's directory can be written");
    let authority = authority_of(&registry);
    let environment = [
        format!("REGISTRY={NAME}"),
        format!("REGISTRY_USER={USER}"),
        "REGISTRY_PASSWORD_FILE=/run/secrets/registry".to_string(),
        format!("KIND_REGISTRY_CA={authority}"),
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
    // Nobody learns the password: not the log, not the engine's description of the container, not a process's arguments.
    let encoded = "Y2k6ZTJlLXBhc3M6d29yZA==";
    let ps = cluster.container.exec(&["sh", "-c", "cat /proc/*/cmdline | tr '\\0' ' '"]).stdout;
    for told in [cluster.container.logs(), docker(&["inspect", &cluster.container.id]).ok(), ps] {
        assert!(!told.contains(PASSWORD) && !told.contains(encoded), "{told}");
    }
    for file in ["/root/.docker/config.json", "/var/lib/kubelet/config.json"] {
        assert_eq!(cluster.container.exec(&["stat", "--format=%a", file]).ok(), "600", "{file}");
        assert!(cluster.container.exec(&["cat", file]).ok().contains(encoded), "{file}");
    }
}

/// The control: without the login, and without the authority, neither of them may pull.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn without_the_login_or_the_authority_nothing_is_pulled() {
    let network = Network::create("no-login", &[]);
    let registry = registry(&network, NAME, &[USER, PASSWORD]);
    let authority = authority_of(&registry);
    for (name, environment, why) in [
        ("no-login", vec![format!("REGISTRY={NAME}"), format!("KIND_REGISTRY_CA={authority}")], "basic auth"),
        (
            "no-authority",
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
    let authority = format!("KIND_REGISTRY_CA={}", authority_of(&registry));
    let arguments = ["--network", &network.name, "--env", "KIND_REGISTRY_MIRROR=https://mirror.test", "--env", &authority];
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
