//! The bake: bootstraps a cluster in a container that is then committed as an image.
//!
//! It reads from top to bottom, like the boot, and shares everything up to the daemons with it.

mod bundle;
mod certificates;
mod criu;
mod finish;
mod home;
mod hooks;
mod kubeadm;
mod kubeadm_settings;
mod layers;
mod network_policy;
mod node_settings;
mod programs;
mod sbom;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::bake::bundle::Bundle;
use crate::bake::hooks::Hooks;
use crate::bake::kubeadm::{Addons, Kubeadm};
use crate::bake::kubeadm_settings::KubeadmSettings;
use crate::bake::node_settings::NodeSettings;
use crate::bake::programs::Running;
use crate::boot::{self, stop_daemon, STOP_ORDER};
use crate::cluster::api::Api;
use crate::cluster::{kubectl, load_balancer, postmortem, wait, Cluster};
use crate::config::{CREDENTIALS_DIR, DAEMON_LIMIT, DEFAULT_STATIC_IP, KUBERNETES_DIR, LOG_DIR, POD_LOG_DIR};
use crate::daemons::containerd_config::Form;
use crate::daemons::dockerd::DOCKERD;
use crate::daemons::kubelet::KUBELET;
use crate::daemons::port::Port;
use crate::daemons::settings::CommandLine;
use crate::daemons::{containerd, dockerd, image_names, kubelet, local_registry};
use crate::error::{Error, Result};
use crate::files;
use crate::node::cluster_network::{ClusterNetwork, CNI};
use crate::node::state_dir::StateDir;
use crate::node::{directories, network};
use crate::save::{self, dump, finish as end, pack};
use crate::supervisor::stop;
use crate::supervisor::Init;
use crate::versions;

/// Names under which CI systems reach the container, in addition to its static address and `KIND_SANS`.
const CERTIFICATE_NAMES: [&str; 5] = ["localhost", "127.0.0.1", "kind", "docker", "kubernetes"];

/// The arguments of `kind bake`.
#[derive(Debug, PartialEq)]
pub struct Bake {
    pub bundle: PathBuf,
    /// Only bake far enough to see which images the scripts pull, and save those images here.
    pub save_images: Option<PathBuf>,
}

pub fn bake(init: &Arc<Init>, wanted: &Bake) -> Result<()> {
    let bundle = Bundle::open(&wanted.bundle)?;
    let static_ip = init.config.static_ip.unwrap_or(DEFAULT_STATIC_IP);
    let names = certificate_names(&static_ip.to_string(), &std::env::var("KIND_SANS").unwrap_or_default())?;
    let get = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let node_settings = NodeSettings::from_env(get)?;
    let settings = KubeadmSettings::read(Path::new(kubeadm_settings::PATH))?;
    let (pods, services) = (settings.cluster_text("/networking/podSubnet"), settings.cluster_text("/networking/serviceSubnet"));
    let cluster_network = ClusterNetwork::new(pods, services, static_ip, get(CNI))?;
    let keeps_archives = save::keeps_all(get(save::KEEP_ARCHIVES).as_deref())?;
    let network_policy = network_policy::manifest(get(network_policy::VARIABLE).as_deref(), &cluster_network)?;
    let cluster_network = ClusterNetwork { enforces_policies: network_policy.is_some(), ..cluster_network };
    log::info!(target: "bake", "Kubernetes {} on {static_ip}", bundle.version);
    let home = home::set_apart()?;
    let network_here = network::in_this_container(&cluster_network, static_ip)?;
    let network = boot::prepare_node(&init.config, static_ip, &network_here)?;
    bundle.install()?;
    let saves = criu::install(&bundle)?;
    dockerd::require_version()?;
    let form = containerd_form(&bundle.version)?;
    let kubeadm = Kubeadm::new(&bundle.version, static_ip, &cluster_network, &names, &settings)?;
    let pause = kubeadm.pause_image()?;

    let containerd = boot::start_containerd(init, form, &pause, &network.iptables)?;
    // Hooks may build images, and run them as pods.
    let given = local_registry::start();
    image_names::keep(init, vec![], given.clone())?;
    let dockerd = init.supervise(dockerd::spec_for_cluster(CommandLine::default(), &init.config, network.clone(), Port::plain()?)?)?;
    if !containerd || !dockerd.wait_until_answers(2 * DAEMON_LIMIT) {
        // The daemon's failure has already been logged, with the end of its log.
        return Err(Error::new("Docker did not start"));
    }
    // Before the first script, which may pull an image that is already there.
    let loaded = step("images loaded", || bundle.load_images())?;
    let has_dns = kubeadm.check_images(&loaded)?;
    let addons =
        Addons { dns: has_dns && !settings.disables("dns"), proxy: !settings.disables("proxy"), tolerant: node_settings.has_taints() };
    let images = containerd::images()?;
    let hooks = Hooks::prepare(static_ip, &network_here, bundle.complete)?;
    // Where a hook may put files of the control plane's settings, such as an audit policy.
    files::make_dir(KUBERNETES_DIR)?;
    hooks.run(hooks::BEFORE_CLUSTER)?;

    step("certificates and manifests written", || {
        certificates::create_cas()?;
        kubeadm.write_node()?;
        if saves {
            programs::put_stand_ins()?;
        }
        certificates::make_ours(static_ip)
    })?;
    let init = &init.begin_cluster();
    let kubelet = init.supervise(kubelet::spec(static_ip, network.iptables.clone(), vec![]))?;
    let api = Arc::new(Api::new(Path::new(CREDENTIALS_DIR), static_ip)?);
    step("API server up", || wait::for_api_server(init, &api)).inspect_err(|_| {
        postmortem::log_tails(Path::new(POD_LOG_DIR), Path::new(LOG_DIR));
    })?;
    // A hook may wait for what it has installed, such as an ingress controller's Service.
    init.readiness.update(|state| state.api_server = true);
    load_balancer::start(init, api.clone(), static_ip, &network_here)?;
    // It found no API server to register its static pods with, and would retry only after a minute or more.
    kubelet.restart();
    step("cluster set up", || {
        kubeadm.set_up_cluster(&addons)?;
        apply_text(ADDITIONS)?;
        network_policy.iter().try_for_each(|manifest| apply_text(manifest))?;
        bundle.manifests()?.iter().try_for_each(|path| apply(path))
    })?;
    // Without a network, pods become Ready only when a hook has installed one.
    if cluster_network.has_bridge {
        step("every pod Ready", || wait::for_everything(init, &api))?;
    }
    node_settings.apply()?;
    hooks.run(&[hooks::IMAGES])?;
    hooks.run(hooks::AFTER_CLUSTER)?;
    home.log_what_is_left_out();
    end::prune_images()?;
    step("every pod Ready after the hooks", || wait::for_everything(init, &api))?;
    if let Some(file) = &wanted.save_images {
        return step("images of the scripts saved", || bundle::save_images_but(&images, file));
    }
    certificates::extend_all()?;

    let cluster = end::describe(
        &api,
        Cluster {
            bake: String::new(),
            kubernetes_version: bundle.version.clone(),
            static_ip,
            pause_image: pause,
            containerd_form: form,
            network: cluster_network,
            certificate_names: certificates::names_of_api_server()?,
            dns: None,
            pods: vec![],
            containers: BTreeSet::new(),
        },
    )?;
    let (state, running) = (StateDir::baked(), programs::look());
    init.end_cluster();
    step("cluster stopped", || {
        stop_daemon(init, KUBELET);
        end::stop_workloads(&api, &cluster)?;
        end::stop_control_plane()?;
        end::remove_containers()
    })?;
    step("images settled", || {
        // CRI's names are the only ones left on images that hooks have since rebuilt.
        image_names::tidy(&given)?;
        // From here on nothing is started again, and nobody is warned that Docker is gone.
        init.readiness.end();
        stop_daemon(init, DOCKERD);
        end::settle_images(&state)
    })?;
    stop::everything(init, &STOP_ORDER);
    end::require_no_processes()?;
    step("store packed", || pack::pack(&state, if keeps_archives { &[] } else { kubeadm.images() }))?;
    if saves {
        let starts = running.and_then(|running| running.iter().map(Running::start).collect());
        dump::control_plane(&state, starts, static_ip);
    }
    directories::save_seeds(&state)?;
    layers::set_apart()?;
    sbom::write(&bundle)?;
    finish::clean_up(init)?;
    end::write(&state, &cluster)
}

/// The form of the configuration that this containerd wants, if this Kubernetes runs on it.
fn containerd_form(kubernetes: &str) -> Result<Form> {
    let containerd = containerd::Version::find()?;
    versions::require_containerd(kubernetes, &containerd)?;
    Ok(containerd.form())
}

/// Runs one step and logs how long it took.
fn step<T>(done: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let value = body()?;
    log::info!(target: "bake", "{done} in {:.1} s", started.elapsed().as_secs_f64());
    Ok(value)
}

/// Every name for the certificate: ours, and the user's additional ones, separated by commas.
fn certificate_names(static_ip: &str, wanted: &str) -> Result<Vec<String>> {
    let mut names: Vec<String> = CERTIFICATE_NAMES.map(String::from).to_vec();
    names.push(static_ip.to_string());
    for name in wanted.split([',', ' ']).map(str::trim).filter(|name| !name.is_empty()) {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:*".contains(&byte);
        if !name.bytes().all(allowed) {
            return Err(Error::new(format!("invalid KIND_SANS: {name} is neither a host name nor an address"))
                .advise("Use names and addresses separated by commas"));
        }
        if !names.iter().any(|other| other == name) {
            names.push(name.to_string());
        }
    }
    Ok(names)
}

/// What the kubeadm phases that we run leave out: a default StorageClass, which kube-controller-manager serves
/// itself, without extra pods; and the API server's permission to access kubelet, for `kubectl exec` and `logs`.
/// kubeadm grants that together with join tokens, which nobody needs here.
const ADDITIONS: &str = "\
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
  annotations:
    storageclass.kubernetes.io/is-default-class: \"true\"
provisioner: kubernetes.io/host-path
reclaimPolicy: Delete
volumeBindingMode: Immediate
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: kubeadm:apiserver-kubelet-client
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: system:kubelet-api-admin
subjects:
- apiGroup: rbac.authorization.k8s.io
  kind: User
  name: kube-apiserver-kubelet-client
";

fn apply_text(manifest: &str) -> Result<()> {
    let path = Path::new(crate::config::RUN_DIR).join("manifest.yaml");
    files::write(&path, manifest)?;
    apply(&path)
}

fn apply(path: &Path) -> Result<()> {
    kubectl::apply(path, kubectl::APPLY_LIMIT).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_holds_our_names_and_the_users() {
        let names = certificate_names("172.99.99.1", "ci.example, 10.0.0.7,localhost,*.svc,172.99.99.1").unwrap();
        for name in ["localhost", "127.0.0.1", "kind", "docker", "kubernetes", "172.99.99.1", "ci.example", "10.0.0.7", "*.svc"] {
            assert_eq!(names.iter().filter(|have| *have == name).count(), 1, "{name}: {names:?}");
        }
        assert!(certificate_names("172.99.99.1", "a\nb").unwrap_err().to_string().contains("KIND_SANS"));
    }
}
