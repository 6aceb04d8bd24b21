//! A client for the API server in the test's process, with the credentials from port 10080. Unlike kubectl, it is
//! fast enough to see short-lived states.

use std::time::Duration;

use serde_json::Value;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use ureq::Agent;

use crate::cluster::{Cluster, CREDENTIALS, LIMIT};
use crate::engine::tools;
use crate::process::wait_for;

pub struct Api {
    agent: Agent,
    base: String,
}

/// A baked pod as the API server reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    pub name: String,
    pub ready: bool,
    pub containers: Vec<String>,
}

impl Pod {
    pub fn is_from_the_bake(&self) -> bool {
        self.containers.iter().any(|id| tools().baked_containers.contains(id))
    }

    /// Static pods are named after their node.
    pub fn is_of_the_control_plane(&self) -> bool {
        self.name.starts_with("kube-system/") && self.name.ends_with("-kind")
    }

    /// Whether the pod is Ready, with containers that are not the bake's.
    pub fn runs_in_this_boot(&self) -> bool {
        self.ready && !self.containers.is_empty() && self.containers.iter().all(|id| !id.is_empty()) && !self.is_from_the_bake()
    }
}

impl Api {
    /// Panics unless the three files are served.
    pub fn new(cluster: &Cluster) -> Api {
        let [ca, client, key] = CREDENTIALS.map(|name| cluster.file(name).unwrap_or_else(|| panic!("{name} is not served")));
        let certificate = |pem: &str| Certificate::from_pem(pem.as_bytes()).expect("it is a certificate");
        let key = PrivateKey::from_pem(key.as_bytes()).expect("it is a key");
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[certificate(&ca)]))
            .client_cert(Some(ClientCert::new_with_certs(&[certificate(&client)], key)))
            .build();
        let config = Agent::config_builder().tls_config(tls).proxy(None).http_status_as_error(false);
        let agent = config.timeout_global(Some(Duration::from_secs(5))).build().into();
        Api { agent, base: format!("https://127.0.0.1:{}", cluster.api_port) }
    }

    pub fn is_ready(&self) -> bool {
        self.agent.get(format!("{}/readyz", self.base)).call().is_ok_and(|response| response.status() == 200)
    }

    /// The baked pods, if the server answers.
    pub fn baked_pods(&self) -> Option<Vec<Pod>> {
        let mut response = self.agent.get(format!("{}/api/v1/pods", self.base)).call().ok()?;
        if response.status() != 200 {
            return None;
        }
        let list: Value = serde_json::from_str(&response.body_mut().read_to_string().ok()?).ok()?;
        let pods = list["items"].as_array()?.iter().map(pod);
        Some(pods.filter(|pod| tools().baked_pods.contains(&pod.name)).collect())
    }

    /// The baked pods, once all of them run. The containers of restored programs follow `kubernetes-ready`.
    pub fn wait_until_baked_pods_run(&self) -> Vec<Pod> {
        wait_for("every baked pod runs", LIMIT, || {
            let pods = self.baked_pods()?;
            (pods.len() == tools().baked_pods.len() && pods.iter().all(Pod::runs_in_this_boot)).then_some(pods)
        })
    }
}

fn pod(value: &Value) -> Pod {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    Pod {
        name: format!("{}/{}", text(&value["metadata"]["namespace"]), text(&value["metadata"]["name"])),
        ready: list(&value["status"]["conditions"]).iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True"),
        containers: list(&value["status"]["containerStatuses"])
            .iter()
            .map(|status| text(&status["containerID"]).rsplit('/').next().unwrap_or_default().to_string())
            .collect(),
    }
}
