//! A cluster under test: a container of the image with its three ports published on loopback.

use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ureq::Agent;

use crate::engine::{free_port, image, session, tools, Container, Network, BUSYBOX};
use crate::process::{poll, run, run_with_input, wait_for, Outcome};

/// A boot takes 10 s on two cores; this leaves time for a busy machine.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// For anything in a running cluster, such as starting a pod whose image is there.
pub const LIMIT: Duration = Duration::from_secs(60);

pub const API_PORT: u16 = 8443;
pub const DOCKER_READY: &str = "docker-ready";
pub const KUBERNETES_READY: &str = "kubernetes-ready";
pub const CONFIG: &str = "config";
pub const FAILED: &str = "failed";
pub const TIMELINE: &str = "timeline";
/// The header that a request for a reset needs.
pub const RESET_GUARD: (&str, &str) = ("X-Kind", "reset");
pub const CREDENTIALS: [&str; 3] = ["ca.crt", "client.crt", "client.key"];

pub struct Cluster {
    pub container: Container,
    pub docker_port: u16,
    pub api_port: u16,
    pub files_port: u16,
}

impl Cluster {
    /// A container that is not started yet. `arguments` are options of `docker create`.
    pub fn create(arguments: &[&str]) -> Cluster {
        Cluster::create_of(image(), arguments)
    }

    /// The same with another image than the one under test.
    fn create_of(image: &str, arguments: &[&str]) -> Cluster {
        // Docker would choose other ports at the next start.
        let (docker_port, api_port, files_port) = (free_port(), free_port(), free_port());
        let publish = [(docker_port, 2375), (api_port, API_PORT), (files_port, 10080)];
        let publish = publish.map(|(outer, inner)| format!("--publish=127.0.0.1:{outer}:{inner}"));
        let mut all = vec!["--privileged"];
        all.extend(publish.iter().map(String::as_str));
        all.extend(arguments);
        all.push(image);
        Cluster { container: Container::create(&all), docker_port, api_port, files_port }
    }

    pub fn start(arguments: &[&str]) -> Cluster {
        let cluster = Cluster::create(arguments);
        cluster.container.start();
        cluster
    }

    pub fn ready(arguments: &[&str]) -> Cluster {
        let cluster = Cluster::start(arguments);
        cluster.wait_until_ready();
        cluster
    }

    pub fn ready_of(image: &str) -> Cluster {
        let cluster = Cluster::create_of(image, &[]);
        cluster.container.start();
        cluster.wait_until_ready();
        cluster
    }

    pub fn wait_until_ready(&self) {
        self.ready_within(BOOT_LIMIT).unwrap_or_else(|why| panic!("the cluster is not ready: {why}"));
    }

    /// Waits as a CI job would: until the cluster is ready, the boot has failed, or `limit` has passed.
    pub fn ready_within(&self, limit: Duration) -> Result<Duration, String> {
        let started = Instant::now();
        let ready = poll(limit, || match self.file(FAILED) {
            Some(why) => Some(Err(why)),
            None => self.serves(KUBERNETES_READY).then_some(Ok(started.elapsed())),
        });
        ready.unwrap_or_else(|| Err(format!("not after {} s", limit.as_secs())))
    }

    /// The URL of a file, for a client that calls this machine `host`.
    pub fn url(&self, host: &str, file: &str) -> String {
        format!("http://{host}:{}/{file}", self.files_port)
    }

    /// The HTTP status of a file, or `None` if nobody answers.
    pub fn status(&self, file: &str) -> Option<u16> {
        fetch(&self.url("127.0.0.1", file)).map(|(status, _)| status)
    }

    pub fn serves(&self, file: &str) -> bool {
        self.status(file) == Some(200)
    }

    /// A file, if it is served.
    pub fn file(&self, file: &str) -> Option<String> {
        fetch(&self.url("127.0.0.1", file)).filter(|(status, _)| *status == 200).map(|(_, body)| body)
    }

    /// Sends a request with POST, such as one for a reset. Returns the status and the text of the answer.
    pub fn post(&self, target: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let config = Agent::config_builder().proxy(None).http_status_as_error(false).timeout_global(Some(BOOT_LIMIT));
        let request = Agent::from(config.build()).post(self.url("127.0.0.1", target));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let mut answer = request.send_empty().expect("the file server answers");
        (answer.status().as_u16(), answer.body_mut().read_to_string().expect("it is text"))
    }

    /// Resets the cluster, and waits until it is ready.
    pub fn reset(&self) {
        let (status, text) = self.post(&format!("reset?wait={}", BOOT_LIMIT.as_secs()), &[RESET_GUARD]);
        assert_eq!(status, 200, "{text}");
    }

    /// Saves the `/config` that clients of `host` get, with the published port. Returns its path.
    pub fn kubeconfig(&self, host: &str) -> PathBuf {
        let (status, config) = fetch(&self.url(host, CONFIG)).expect("the file server answers");
        assert_eq!(status, 200, "{config}");
        let config = config.replace(&format!(":{API_PORT}\n"), &format!(":{}\n", self.api_port));
        let path = session().dir.join(format!("{}-{host}.kubeconfig", &self.container.id[..12]));
        std::fs::write(&path, config).expect("the session's directory can be written");
        path
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Outcome {
        kubectl_with(&self.kubeconfig("127.0.0.1"), arguments)
    }

    pub fn apply(&self, manifest: &str) {
        let mut command = kubectl_command(&self.kubeconfig("127.0.0.1"));
        run_with_input(command.args(["apply", "-f", "-"]), manifest, LIMIT).ok();
    }

    /// Creates an object with `kubectl create`, which, unlike `apply`, keeps no copy of it in an annotation.
    pub fn create_object(&self, manifest: &str) {
        let mut command = kubectl_command(&self.kubeconfig("127.0.0.1"));
        run_with_input(command.args(["create", "-f", "-"]), manifest, LIMIT).ok();
    }

    /// A field of an object, as a JSONPath template of kubectl. Empty if it is missing.
    pub fn field(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, "--output", &format!("jsonpath={path}")]).ok()
    }

    pub fn wait_for_pod(&self, selector: &[&str]) {
        // `kubectl wait` fails at once if there is no pod yet.
        wait_for(&format!("a pod {selector:?} that is Ready"), LIMIT, || {
            let wait = ["wait", "--for=condition=Ready", "--timeout=5s", "pod"];
            self.kubectl(&[&wait, selector].concat()).succeeded().then_some(())
        });
    }

    /// Runs a docker command with the engine in the container, over port 2375.
    pub fn inner_docker(&self, arguments: &[&str]) -> Outcome {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", format!("tcp://127.0.0.1:{}", self.docker_port));
        run(command.env_remove("DOCKER_CONTEXT").args(arguments), LIMIT)
    }

    /// Builds `image`, a web server on port 8080 with one page, from a context on this machine.
    pub fn build(&self, image: &str, page: &str) -> Outcome {
        let context = session().dir.join(format!("context-{}", self.docker_port));
        let dockerfile = format!(
            "FROM {BUSYBOX}\nCOPY index.html /www/\nRUN echo built >>/www/index.html\nCMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n"
        );
        std::fs::create_dir_all(&context).expect("the session's directory can be written");
        for (name, text) in [("Dockerfile", dockerfile), ("index.html", format!("{page}\n"))] {
            std::fs::write(context.join(name), text).expect("the session's directory can be written");
        }
        self.inner_docker(&["build", "--tag", image, &context.to_string_lossy()])
    }

    /// A pod with busybox, from which tests connect to others.
    pub fn client(&self) -> &'static str {
        const CLIENT: &str = "client";
        if self.kubectl(&["get", "pod", CLIENT]).succeeded() {
            return CLIENT;
        }
        let image = format!("--image={BUSYBOX}");
        self.kubectl(&["run", CLIENT, &image, "--restart=Never", "--command", "--", "sleep", "3600"]).ok();
        self.wait_for_pod(&[CLIENT]);
        CLIENT
    }

    /// Runs a command in a pod.
    pub fn in_pod(&self, pod: &str, arguments: &[&str]) -> Outcome {
        self.kubectl(&[&["exec", pod, "--"], arguments].concat())
    }

    /// Waits until a pod has written exactly this. One that is Ready may not have come to it, and what it has written takes
    /// a moment to be in its log.
    pub fn wait_for_log(&self, pod: &str, text: &str) {
        let mut last = String::new();
        let written = poll(LIMIT, || {
            let logs = self.kubectl(&["logs", pod]);
            last = logs.output();
            (logs.stdout.trim_end() == text).then_some(())
        });
        assert!(written.is_some(), "{pod} has not written {text:?} after {} s, but {last:?}", LIMIT.as_secs());
    }

    /// The timeline of a cluster that is ready: the last line is written a moment after the state itself.
    pub fn timeline(&self) -> String {
        let is_whole = |text: &String| text.contains(&format!(" {KUBERNETES_READY}\n"));
        wait_for("kubernetes-ready in the timeline", LIMIT, || self.file(TIMELINE).filter(is_whole))
    }

    /// Keeps the container's next start from being ready until `let_go`, but no reset: for what is to be seen in the
    /// midst of a start, however long the test takes to look.
    pub fn hold(&self) {
        self.put("/kubernetes-ready.sh", "[ -n \"${KIND_RESET:-}\" ] || until rm /go-on 2>/dev/null; do sleep 0.1; done\n");
    }

    pub fn let_go(&self) {
        self.container.exec(&["touch", "/go-on"]).ok();
    }

    /// The container's address on its network, which this machine can reach.
    pub fn address(&self) -> String {
        self.container.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
    }

    /// Kills every process with that name, as the OOM killer would.
    pub fn kill(&self, process: &str) {
        self.container.exec(&["pkill", "-KILL", "-x", process]).ok();
    }

    /// Writes a file into a container that is not started yet.
    pub fn put(&self, path: &str, text: &str) {
        self.put_with_mode(path, text, 0o644);
    }

    /// The same with an executable script.
    pub fn put_program(&self, path: &str, script: &str) {
        self.put_with_mode(path, script, 0o755);
    }

    fn put_with_mode(&self, path: &str, text: &str, mode: u32) {
        let file = session().dir.join(format!("put-{}", &self.container.id[..12]));
        std::fs::write(&file, text).expect("the session's directory can be written");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("the file is ours");
        self.container.copy_to(&file, path);
    }

    fn explain(&self) {
        let tail = self.container.exec(&["tail", "-n", "30", "/var/log/kind/kubelet.log"]);
        eprintln!("--- log of the container\n{}--- end of kubelet's log\n{}---", self.container.logs(), tail.stdout);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.explain();
        }
    }
}

pub fn kubectl_with(kubeconfig: &std::path::Path, arguments: &[&str]) -> Outcome {
    run(kubectl_command(kubeconfig).args(arguments), LIMIT)
}

fn kubectl_command(kubeconfig: &std::path::Path) -> Command {
    let mut command = Command::new(&tools().kubectl);
    // HOME is where kubectl has its cache. This machine does not reach itself through a proxy.
    command.env("KUBECONFIG", kubeconfig).env("HOME", &session().dir).env("NO_PROXY", "*");
    command
}

/// Status and body of a URL, or `None` if nobody answers.
pub fn fetch(url: &str) -> Option<(u16, String)> {
    fetch_within(Duration::from_secs(5), url)
}

pub fn fetch_within(limit: Duration, url: &str) -> Option<(u16, String)> {
    let config = Agent::config_builder().proxy(None).http_status_as_error(false).timeout_global(Some(limit));
    let mut response = Agent::from(config.build()).get(url).call().ok()?;
    Some((response.status().as_u16(), response.body_mut().read_to_string().ok()?))
}

/// The cluster of the tests that change nothing, or only add objects that do not affect others. It is on a
/// user-defined network, as CI services are, where Docker's own DNS listens on 127.0.0.11.
pub fn shared() -> Shared {
    static SHARED: OnceLock<(Network, Cluster, Result<Duration, String>)> = OnceLock::new();
    let (network, cluster, ready) = SHARED.get_or_init(|| {
        let network = Network::create("shared", &[]);
        let aliases = ["--network", &network.name, "--network-alias", "my-cluster", "--network-alias", "docker"];
        let cluster = Cluster::start(&aliases);
        let ready = cluster.ready_within(BOOT_LIMIT);
        (network, cluster, ready)
    });
    let shared = Shared { cluster, network: &network.name };
    if let Err(why) = ready {
        panic!("the cluster that the tests share is not ready: {why}");
    }
    shared
}

/// Access to the shared cluster. Prints its logs if the test fails.
pub struct Shared {
    cluster: &'static Cluster,
    pub network: &'static str,
}

impl Deref for Shared {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.cluster
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.cluster.explain();
        }
    }
}
