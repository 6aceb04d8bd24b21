//! Runs kubeadm phase by phase: the result is an ordinary kubeadm cluster, but we start kubelet ourselves.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::bake::kubeadm_settings::KubeadmSettings;
use crate::cluster::{kubectl, API_SERVER, CONTROLLER_MANAGER, ETCD, SCHEDULER};
use crate::config::{ADMIN_KUBECONFIG, API_PORT, CONTAINERD_SOCKET, HOSTPATH_DIR, KUBELET_DIR, NODE_NAME, RESOLV_CONF, RUN_DIR};
use crate::daemons::without_proxy;
use crate::error::{Error, Result};
use crate::files;
use crate::node::cgroup::KUBELET_CGROUP;
use crate::node::cluster_network::ClusterNetwork;
use crate::node::lowest_oom_score;
use crate::save::manifest;
use crate::supervisor::reaper;
use crate::versions::{dialect, Dialect};

const IMAGE_REPOSITORY: &str = "registry.k8s.io";
const COREDNS: &str = "/coredns";
const NOT_FOR_LOAD_BALANCERS: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

pub struct Kubeadm {
    version: String,
    configuration: String,
    /// Full names of the images that this version needs.
    images: Vec<String>,
    /// Whether pods are on our own bridge.
    has_bridge: bool,
}

/// What the cluster has beside its control plane.
pub struct Addons {
    pub dns: bool,
    pub proxy: bool,
    /// The DNS must run whatever taints the node has, as kube-proxy does.
    pub tolerant: bool,
}

impl Kubeadm {
    /// Writes kubeadm's configuration.
    pub fn new(
        version: &str,
        static_ip: Ipv4Addr,
        network: &ClusterNetwork,
        names: &[String],
        settings: &KubeadmSettings,
    ) -> Result<Kubeadm> {
        let dialect = dialect(version)?;
        let configuration = Path::new(RUN_DIR).join("kubeadm.yaml");
        files::write(&configuration, settings.merge_into(&render(dialect, version, static_ip, network, names, lowest_oom_score()))?)?;
        let arguments = ["config", "images", "list", "--image-repository", IMAGE_REPOSITORY, "--kubernetes-version", version];
        let images = reaper::run(Command::new("kubeadm").args(arguments))?;
        Ok(Kubeadm {
            version: version.to_string(),
            configuration: configuration.to_string_lossy().into_owned(),
            images: images.lines().map(|line| line.trim().to_string()).collect(),
            has_bridge: network.has_bridge,
        })
    }

    /// The full names of the images that the cluster runs from.
    pub fn images(&self) -> &[String] {
        &self.images
    }

    pub fn pause_image(&self) -> Result<String> {
        let pause = self.images.iter().find(|image| image.contains("/pause:"));
        pause.cloned().ok_or_else(|| Error::new(format!("kubeadm {} lists no pause image", self.version)))
    }

    /// Fails if an image is missing. Returns whether CoreDNS is there, which is optional.
    pub fn check_images(&self, loaded: &[String]) -> Result<bool> {
        let (dns, others): (Vec<_>, Vec<_>) = self.images.iter().partition(|image| image.contains(COREDNS));
        if let Some(missing) = others.iter().find(|image| !loaded.contains(image)) {
            return Err(Error::new(format!("the bundle is missing the image {missing}")).advise("Create the bundle again"));
        }
        let has_dns = dns.iter().any(|image| loaded.contains(image));
        if !has_dns {
            log::warn!(target: "bake", "the bundle has no CoreDNS image: the cluster has no DNS unless its manifests include one");
        }
        Ok(has_dns)
    }

    /// Writes the node's files: certificates, kubeconfigs, static pods, kubelet's configuration.
    pub fn write_node(&self) -> Result<()> {
        self.phase(&["certs", "all"])?;
        self.phase(&["kubeconfig", "all"])?;
        self.phase(&["control-plane", "all"])?;
        self.phase(&["etcd", "local"])?;
        change_static_pods(self.has_bridge)?;
        self.phase(&["kubelet-start"])?;
        use_loopback(Path::new(ADMIN_KUBECONFIG))?;
        disable_certificate_rotation(&Path::new(KUBELET_DIR).join("config.yaml"))
    }

    /// Creates the API objects of a kubeadm cluster.
    pub fn set_up_cluster(&self, addons: &Addons) -> Result<()> {
        self.phase(&["upload-config", "all"])?;
        self.phase(&["mark-control-plane"])?;
        // A load balancer of the user's would not announce the only node that there is.
        kubectl::run(&["label", "node", NODE_NAME, &format!("{NOT_FOR_LOAD_BALANCERS}-")], kubectl::APPLY_LIMIT)?;
        if addons.proxy {
            self.phase(&["addon", "kube-proxy"])?;
        }
        if addons.dns {
            self.phase(&["addon", "coredns"])?;
            // One replica is enough, and a probe every second, instead of kubeadm's 10 s, shows it Ready without delay.
            let containers = json!([{"name": "coredns", "readinessProbe": {"initialDelaySeconds": 0, "periodSeconds": 1}}]);
            let mut pod = json!({"containers": containers});
            if addons.tolerant {
                pod["tolerations"] = json!([{"operator": "Exists"}]);
            }
            let patch = json!({"spec": {"replicas": 1, "template": {"spec": pod}}}).to_string();
            kubectl::run(&["--namespace", "kube-system", "patch", "deployment", "coredns", "--patch", &patch], kubectl::APPLY_LIMIT)?;
        }
        Ok(())
    }

    fn phase(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("kubeadm");
        command.args(["init", "phase"]).args(arguments).args(["--config", &self.configuration]);
        reaper::run(without_proxy(command.env("KUBECONFIG", ADMIN_KUBECONFIG))).map(drop)
    }
}

/// Inside the node, kubectl and other clients connect over loopback, for which Go ignores the environment's proxy
/// (net/http, ProxyFromEnvironment).
fn use_loopback(path: &Path) -> Result<()> {
    let text = files::read(path)?;
    let server = |line: &str| match line.split_once("server: ") {
        Some((indentation, _)) => format!("{indentation}server: https://127.0.0.1:{API_PORT}\n"),
        None => format!("{line}\n"),
    };
    files::write(path, text.lines().map(server).collect::<String>())
}

/// kubeadm enables certificate rotation for kubelet, whatever its configuration says. kubelet would then keep a copy
/// of the certificate that is valid for a year, and request new ones that nobody approves.
fn disable_certificate_rotation(path: &Path) -> Result<()> {
    let text = files::read(path)?;
    files::write(path, text.replace("rotateCertificates: true", "rotateCertificates: false"))
}

/// kubeadm's configuration. Everything but the dialect's few lines is the same in every supported version.
fn render(
    dialect: &Dialect,
    version: &str,
    static_ip: Ipv4Addr,
    network: &ClusterNetwork,
    names: &[String],
    lowest_oom_score: Option<i32>,
) -> String {
    let Dialect { api, ecdsa, cgroup_v1, .. } = dialect;
    // nodeStatus…: a node that is not Ready at kubelet's first look stays so until the next one, by default 10 s later.
    // Newer versions look more often only if the API server does not have the node as Ready yet, as it does from the bake
    // (fastNodeStatusUpdate in pkg/kubelet/kubelet_node_status.go). With the report's frequency, whose default is that of
    // the update, an unchanged status is still written rarely.
    let ClusterNetwork { pod_subnet, service_subnet, .. } = network;
    // Otherwise kube-proxy would spend 0.2 s of each start trying to set a score that it is not allowed to set. The image may run where
    // it is allowed: there kube-proxy can be killed like any other program when memory runs out.
    let oom_score = lowest_oom_score.map(|score| format!("oomScoreAdj: {score}\n")).unwrap_or_default();
    let names: String = names.iter().map(|name| format!("  - \"{name}\"\n")).collect();
    format!(
        "apiVersion: {api}
kind: InitConfiguration
localAPIEndpoint:
  advertiseAddress: {static_ip}
  bindPort: {API_PORT}
nodeRegistration:
  name: {NODE_NAME}
  criSocket: unix://{CONTAINERD_SOCKET}
  taints: []
---
apiVersion: {api}
kind: ClusterConfiguration
kubernetesVersion: {version}
imageRepository: {IMAGE_REPOSITORY}
{ecdsa}
networking:
  podSubnet: {pod_subnet}
  serviceSubnet: {service_subnet}
apiServer:
  certSANs:
{names}---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /{KUBELET_CGROUP}
failSwapOn: false
resolvConf: {RESOLV_CONF}
{cgroup_v1}
nodeStatusUpdateFrequency: 1s
nodeStatusReportFrequency: 5m
# kubelet sees the usage of the host's disk, which is not ours to clean up.
imageGCHighThresholdPercent: 100
evictionHard:
  imagefs.available: \"0%\"
  nodefs.available: \"0%\"
  nodefs.inodesFree: \"0%\"
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
iptables:
  # The default of 1 s is for clusters with thousands of Services, and delays new ones.
  minSyncPeriod: 100ms
conntrack:
  maxPerCore: 0
{oom_score}"
    )
}

/// Makes the static pods Ready sooner: they do not wait for leases that the bake left behind, nor for slow probes.
fn change_static_pods(has_bridge: bool) -> Result<()> {
    for (name, cpu, flags) in STATIC_PODS {
        manifest::edit(name, |pod| {
            pod.request_cpu(cpu);
            flags.iter().for_each(|(flag, value)| pod.set_flag(flag, value));
            if name == CONTROLLER_MANAGER {
                pod.mount("hostpath", HOSTPATH_DIR);
                // On our bridge, CNI assigns the pods' addresses. The controller that allocates node CIDRs delays the
                // other controllers by 10 s (in 1.20), and with them the endpoints of a DNS pod whose address has
                // changed. Other networks need it.
                if has_bridge {
                    pod.set_flag("allocate-node-cidrs", "false");
                }
            }
            pod.probe_readiness_every_second();
            Ok(())
        })?;
    }
    Ok(())
}

/// Names and values.
type Flags = &'static [(&'static str, &'static str)];
/// The static pods, what they request of the CPU, and the flags to set in their commands. kubeadm requests 650m in all, on a node
/// that is there for the job.
const STATIC_PODS: [(&str, &str, Flags); 4] = [
    // Every start discards the data, so waiting for the disk has no use.
    (ETCD, "25m", &[("unsafe-no-fsync", "true")]),
    (API_SERVER, "50m", &[]),
    (CONTROLLER_MANAGER, "15m", &[("leader-elect", "false"), ("enable-hostpath-provisioner", "true")]),
    (SCHEDULER, "10m", &[("leader-elect", "false")]),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(version: &str, lowest_oom_score: Option<i32>) -> String {
        let (address, network, names) = (Ipv4Addr::new(172, 99, 99, 1), ClusterNetwork::default(), ["localhost".to_string()]);
        render(dialect(version).unwrap(), version, address, &network, &names, lowest_oom_score)
    }

    #[test]
    fn the_configuration_is_in_the_versions_dialect() {
        let (old, new) = (rendered("v1.20.2", None), rendered("v1.36.2", None));
        assert!(old.contains("kubeadm.k8s.io/v1beta2") && !old.contains("failCgroupV1"), "{old}");
        assert!(new.contains("kubeadm.k8s.io/v1beta4") && new.contains("failCgroupV1: false"), "{new}");
        for text in [old, new] {
            assert!(text.contains("nodeStatusUpdateFrequency: 1s\nnodeStatusReportFrequency: 5m\n"), "{text}");
            assert!(text.contains("advertiseAddress: 172.99.99.1\n  bindPort: 8443"), "{text}");
            assert!(!text.contains("oomScoreAdj"), "{text}");
        }
    }

    #[test]
    fn kube_proxy_is_told_the_lowest_score_where_it_may_not_set_its_own() {
        let settings: Vec<String> = rendered("v1.36.3", Some(0)).split("---\n").map(String::from).collect();
        let kube_proxy = settings.iter().find(|settings| settings.contains("kind: KubeProxyConfiguration"));
        assert!(kube_proxy.is_some_and(|settings| settings.ends_with("\noomScoreAdj: 0\n")), "{settings:?}");
    }
}
