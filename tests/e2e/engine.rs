//! This machine's Docker engine, and what the tests create with it. All of it has one label, by which a process that
//! outlives this one removes it.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::process::{run, Outcome};

/// For commands that take a moment on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);
/// The bake's description of the cluster, in the image.
const CLUSTER_FILE: &str = "/kind/cluster.json";
/// The baked image that the tests use for pods and builds.
pub const BUSYBOX: &str = "kind-lab/busybox:1";

/// The image under test.
pub fn image() -> &'static str {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| std::env::var("KIND_IMAGE").expect("KIND_IMAGE is not set: KIND_IMAGE=kind cargo test --test e2e -- --ignored"))
}

pub fn docker(arguments: &[&str]) -> Outcome {
    docker_within(LIMIT, arguments)
}

pub fn docker_within(limit: Duration, arguments: &[&str]) -> Outcome {
    run(Command::new("docker").args(arguments), limit)
}

/// This run of the tests.
pub struct Session {
    pub label: String,
    /// Removed at the end.
    pub dir: PathBuf,
    /// Keeps the pipe to the cleaner open.
    _cleaner: Child,
}

pub fn session() -> &'static Session {
    static SESSION: OnceLock<Session> = OnceLock::new();
    SESSION.get_or_init(|| {
        let label = format!("kind-e2e={}", std::process::id());
        let dir = std::env::temp_dir().join(format!("kind-e2e-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary directory can be written");
        Session { _cleaner: start_cleaner(&label, &dir), label, dir }
    })
}

/// Starts a process that removes what is left when its standard input is closed, which happens when this process ends
/// for whatever reason.
fn start_cleaner(label: &str, dir: &Path) -> Child {
    use std::os::unix::process::CommandExt;
    let script = r#"
        read -r _
        docker ps --all --quiet --filter "label=$1" | xargs -r docker rm --force --volumes
        docker network ls --quiet --filter "label=$1" | xargs -r docker network rm
        docker volume ls --quiet --filter "label=$1" | xargs -r docker volume rm
        docker images --quiet --filter "reference=kind-e2e-${1#*=}" | xargs -r docker image rm --force
        rm -rf "$2"
    "#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "cleaner", label]).arg(dir);
    // In its own process group, so that Ctrl-C does not end it.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("sh is there")
}

/// An image, which is removed when this is dropped.
pub struct Image(pub String);

impl Drop for Image {
    fn drop(&mut self) {
        docker(&["image", "rm", "--force", &self.0]);
    }
}

/// A container, which is removed with its volumes when this is dropped.
pub struct Container {
    pub id: String,
}

impl Container {
    /// Runs `docker create` with these arguments.
    pub fn create(arguments: &[&str]) -> Container {
        Container { id: docker(&[&["create", "--label", &session().label], arguments].concat()).ok() }
    }

    pub fn start(&self) {
        docker(&["start", &self.id]).ok();
    }

    /// Starts a container of the image under test with `command` instead of the init.
    pub fn idle(arguments: &[&str], command: &[&str]) -> Container {
        let (entrypoint, rest) = command.split_first().expect("a command has a name");
        let container = Container::create(&[arguments, &["--entrypoint", entrypoint, image()], rest].concat());
        container.start();
        container
    }

    pub fn exec(&self, arguments: &[&str]) -> Outcome {
        docker(&[&["exec", &self.id], arguments].concat())
    }

    /// A field of `docker inspect`, as a Go template.
    pub fn inspect(&self, template: &str) -> String {
        docker(&["inspect", "--format", template, &self.id]).ok()
    }

    pub fn copy_to(&self, from: &Path, to: &str) {
        docker(&["cp", &from.to_string_lossy(), &format!("{}:{to}", self.id)]).ok();
    }

    pub fn logs(&self) -> String {
        docker(&["logs", &self.id]).output()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        docker(&["rm", "--force", "--volumes", &self.id]);
    }
}

/// A network, which is removed when this is dropped: declare it before the containers on it.
pub struct Network {
    pub name: String,
}

impl Network {
    pub fn create(name: &str, arguments: &[&str]) -> Network {
        let name = format!("kind-e2e-{}-{name}", std::process::id());
        docker(&[&["network", "create", "--label", &session().label], arguments, &[&name]].concat()).ok();
        Network { name }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        docker(&["network", "rm", &self.name]);
    }
}

/// A volume, which is removed when this is dropped: declare it before the containers that use it.
pub struct Volume {
    pub name: String,
}

impl Volume {
    pub fn create(name: &str, arguments: &[&str]) -> Volume {
        let name = format!("kind-e2e-{}-{name}", std::process::id());
        docker(&[&["volume", "create", "--label", &session().label], arguments, &[&name]].concat()).ok();
        Volume { name }
    }

    /// The option that mounts it on a container's /var/lib/docker.
    pub fn mount(&self) -> String {
        format!("--volume={}:/var/lib/docker", self.name)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        docker(&["volume", "rm", &self.name]);
    }
}

/// What the tests take from the image under test.
pub struct Tools {
    pub kubectl: PathBuf,
    pub kind: PathBuf,
    /// The baked pods, as `namespace/name`.
    pub baked_pods: Vec<String>,
    /// Ids of the bake's containers.
    pub baked_containers: Vec<String>,
    pub static_ip: String,
    /// The unique name of the bake.
    pub bake: String,
}

pub fn tools() -> &'static Tools {
    static TOOLS: OnceLock<Tools> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let container = Container::create(&[image()]);
        let take = |path: &str| {
            let to = session().dir.join(Path::new(path).file_name().expect("it names a file"));
            docker(&["cp", &format!("{}:{path}", container.id), &to.to_string_lossy()]).ok();
            to
        };
        let text = std::fs::read_to_string(take(CLUSTER_FILE)).expect("it was just copied");
        let cluster: Value = serde_json::from_str(&text).expect("the bake writes JSON");
        let list = |name: &str| cluster[name].as_array().unwrap_or_else(|| panic!("{CLUSTER_FILE} has no {name}")).iter();
        let text = |value: &Value| value.as_str().expect("it is text").to_string();
        Tools {
            kubectl: take("/usr/local/bin/kubectl"),
            kind: take("/usr/local/bin/kind"),
            baked_pods: list("pods").map(|pod| text(&pod["name"])).collect(),
            baked_containers: list("containers").map(text).collect(),
            static_ip: text(&cluster["staticIP"]),
            bake: text(&cluster["bake"]),
        }
    })
}

/// The ports that the tests publish and listen on: below those that the kernel and Docker hand out by themselves.
const PORTS: std::ops::Range<u16> = 15_000..30_000;

/// A port on loopback that is free, and that no other process of these tests takes while this one runs: a container
/// that is stopped, or not started yet, does not hold its ports.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in PORTS {
        let port = PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start);
        let name = SocketAddr::from_abstract_name(format!("kind-e2e-port-{port}")).expect("the name is short");
        let Ok(reservation) = UnixListener::bind_addr(&name) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            // Held until this process ends.
            std::mem::forget(reservation);
            return port;
        }
    }
    panic!("no port from {} to {} is free on loopback", PORTS.start, PORTS.end - 1);
}
