//! Pods and containers of the Docker inside reach each other.

use crate::cluster::{shared, Cluster, LIMIT};
use crate::engine::BUSYBOX;
use crate::process::wait_for;

/// A server of the Docker inside, which is removed with the test.
struct Server<'a> {
    cluster: &'a Cluster,
    name: String,
    /// Its address in its network.
    address: String,
}

impl Server<'_> {
    fn start<'a>(cluster: &'a Cluster, name: &str, options: &[&str]) -> Server<'a> {
        let serve = format!("mkdir /www; echo {name} >/www/index.html; exec httpd -f -p 8080 -h /www");
        let (begin, end) = (["run", "--detach", "--name", name], [BUSYBOX, "sh", "-c", &serve]);
        cluster.inner_docker(&[&begin, options, &end].concat()).ok();
        let address = cluster.inner_docker(&["inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name]).ok();
        Server { cluster, name: name.to_string(), address }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        self.cluster.inner_docker(&["rm", "--force", &self.name]);
    }
}

fn wait_for_page_in_pod(cluster: &Cluster, url: &str, page: &str) {
    wait_for(&format!("a pod gets {page} from {url}"), LIMIT, || {
        let answer = cluster.in_pod(cluster.client(), &["wget", "-q", "-T", "5", "-O", "-", url]);
        (answer.stdout.trim() == page).then_some(())
    });
}

/// Docker 28 and newer drops what comes to a container from elsewhere than its own network.
#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_pod_reaches_a_container_by_its_address_and_the_other_way_round() {
    let cluster = shared();
    cluster.inner_docker(&["network", "create", "of-a-job"]).ok();
    for (name, options) in
        [("on-the-bridge", &[][..]), ("published", &["--publish", "18098:8080"]), ("on-a-network", &["--network", "of-a-job"])]
    {
        let server = Server::start(&cluster, name, options);
        wait_for_page_in_pod(&cluster, &format!("http://{}:8080/", server.address), name);
    }
    let container = Server::start(&cluster, "container", &["--network", "of-a-job"]);
    cluster.kubectl(&["run", "neighbour", &format!("--image={BUSYBOX}"), "--", "httpd", "-f", "-p", "8080", "-h", "/etc"]).ok();
    cluster.wait_for_pod(&["neighbour"]);
    let url = format!("http://{}:8080/hostname", cluster.field("pod/neighbour", "{.status.podIP}"));
    let answer = || cluster.inner_docker(&["exec", &container.name, "wget", "-q", "-T", "5", "-O", "-", &url]);
    wait_for("a container gets the pod's page", LIMIT, || (answer().stdout.trim() == "neighbour").then_some(()));
    cluster.kubectl(&["delete", "pod", "neighbour", "--grace-period=0", "--force"]).ok();
    drop(container);
    cluster.inner_docker(&["network", "rm", "of-a-job"]).ok();
}

#[test]
#[ignore = "needs a Docker engine and a baked image: KIND_IMAGE=kind cargo test --test e2e -- --ignored"]
fn a_published_port_is_reached_under_dockers_names_of_the_machine() {
    let cluster = shared();
    let server = Server::start(&cluster, "database", &["--publish", "18099:8080"]);
    for host in ["host.docker.internal", "gateway.docker.internal"] {
        let url = format!("http://{host}:18099/");
        wait_for_page_in_pod(&cluster, &url, "database");
        cluster.inner_docker(&["run", "--rm", BUSYBOX, "wget", "-q", "-T", "5", "-O", "-", &url]).ok();
    }
    drop(server);
}
