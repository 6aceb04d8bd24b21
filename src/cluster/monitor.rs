//! Follows the cluster: polls until the API server answers, then keeps a watch open, so that `kubernetes-ready` is
//! always up to date with hardly any wakeups.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::alive::Alive;
use crate::cluster::api::Api;
use crate::cluster::{load_balancer, network_policies, node, resync, Cluster};
use crate::config::CREDENTIALS_DIR;
use crate::error::{Error, Result};
use crate::node::cluster_network::ClusterNetwork;
use crate::readiness::files::{CA_CERT, CLIENT_CERT, CLIENT_KEY, CONFIG};
use crate::supervisor::Init;
use crate::threads;

/// Often, so that no time is lost once the API server answers; a refused connection costs nothing.
const POLL: Duration = Duration::from_millis(50);

/// Starts the threads that follow the cluster until it is over.
pub fn start(init: &Arc<Init>, api: Arc<Api>, cluster: &Cluster, network: &ClusterNetwork) -> Result<()> {
    load_balancer::start(init, api.clone(), cluster.static_ip, network)?;
    if network.has_bridge && !network.enforces_policies {
        network_policies::start(init, api.clone())?;
    }
    node::start(init, api.clone(), cluster)?;
    let alive = Alive::start(&init.readiness, cluster)?;
    resync::start(init, api.clone(), alive.clone())?;
    let init = init.clone();
    threads::start("cluster", move || watch(&init, &api, &alive).unwrap_or_else(|error| init.fail(&error)))
}

fn watch(init: &Init, api: &Api, alive: &Alive) -> Result<()> {
    let mut served = false;
    while !init.readiness.is_over() {
        if !api.is_ready() {
            init.readiness.update(|state| state.api_server = false);
            init.readiness.pause(POLL);
            continue;
        }
        init.readiness.update(|state| state.api_server = true);
        if !served {
            init.readiness.milestone("api-server");
            log::info!(target: "cluster", "the API server answers");
            serve_credentials(init)?;
            served = true;
        }
        let ended = api.watch("/api/v1/pods", |change| {
            alive.report(change);
            Ok(())
        });
        // If the watch ended because the server did, the next round finds out.
        if let Err(error) = ended {
            log::debug!(target: "cluster", "{error}");
            init.readiness.update(|state| state.api_server = false);
            init.readiness.pause(POLL);
        }
    }
    Ok(())
}

fn serve_credentials(init: &Init) -> Result<()> {
    for name in [CA_CERT, CLIENT_CERT, CLIENT_KEY, CONFIG] {
        let path = init.config.path(CREDENTIALS_DIR).join(name);
        let contents = std::fs::read(&path).map_err(|cause| Error::io("read", &path, cause))?;
        init.readiness.publish(name, &contents);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::{fs, thread};

    use super::*;
    use crate::cluster::tests::cluster;
    use crate::supervisor::reaper;

    const LIMIT: Duration = Duration::from_secs(20);
    const NO_PODS: &str = r#"{"metadata": {"resourceVersion": "7"}, "items": []}"#;

    /// Ends the cluster, and with it the thread that watches it, even if an assertion fails.
    struct End<'a>(&'a Init);

    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.readiness.end();
        }
    }

    #[test]
    fn the_api_server_counts_from_its_first_answer_until_it_does_not_answer() {
        let init = Init::of_test("monitor");
        let credentials = init.config.path(CREDENTIALS_DIR);
        fs::create_dir_all(&credentials).unwrap();
        [CA_CERT, CLIENT_CERT, CLIENT_KEY, CONFIG].into_iter().for_each(|name| fs::write(credentials.join(name), name).unwrap());
        init.readiness.update(|state| state.has_cluster = true);
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = Api::plain(format!("http://{}", server.local_addr().unwrap()));
        let alive = Alive::start(&init.readiness, &cluster()).unwrap();
        server.set_nonblocking(true).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| watch(&init, &api, &alive).unwrap());
            let _end = End(&init);
            for (path, was_up, status, answer) in [
                ("/readyz", false, 500, "etcd is not there"),
                ("/readyz", false, 200, "ok"),
                ("/api/v1/pods", true, 200, NO_PODS),
                // A watch that has ended by itself says nothing of the server.
                ("/api/v1/pods?watch=1&resourceVersion=7", true, 200, ""),
                ("/readyz", true, 200, "ok"),
                ("/api/v1/pods", true, 503, "etcd is down"),
                ("/readyz", false, 200, "ok"),
                ("/api/v1/pods", true, 200, NO_PODS),
                ("/api/v1/pods?watch=1&resourceVersion=7", true, 200, ""),
                ("/readyz", true, 500, "etcd is not there"),
                ("/readyz", false, 500, "etcd is not there"),
            ] {
                let (client, _) = reaper::poll(POLL, LIMIT, || server.accept().ok()).expect("it asks again");
                let mut client = BufReader::new(client);
                let head: Vec<String> = client.by_ref().lines().map_while(|line| line.ok().filter(|line| !line.is_empty())).collect();
                assert_eq!(head[0].split(' ').nth(1), Some(path), "{head:?}");
                assert_eq!(init.readiness.state().api_server, was_up, "{path} before {status}");
                let length = answer.len();
                write!(client.get_mut(), "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{answer}").unwrap();
            }
            // It is asked no more.
            drop(server);
        });
        fs::remove_dir_all(init.config.path("/")).unwrap();
    }
}
