//! The user's own kubeadm configuration (`KIND_KUBEADM`): documents in kubeadm's language, merged into ours. What would
//! break what the image promises is refused, by name.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Where build.sh puts the file.
pub const PATH: &str = "/hooks/kubeadm.yaml";
const VARIABLE: &str = "KIND_KUBEADM";

/// The kinds of documents that kubeadm reads and a bake uses, and the prefix of their API versions. kubeadm's own
/// version must be that of our documents.
const KINDS: [(&str, &str); 4] = [
    ("ClusterConfiguration", "kubeadm.k8s.io/"),
    ("InitConfiguration", "kubeadm.k8s.io/"),
    ("KubeletConfiguration", "kubelet.config.k8s.io/"),
    ("KubeProxyConfiguration", "kubeproxy.config.k8s.io/"),
];

const FIXED_ADDRESS: &str = "the node's name, address and ports are the same in every image";
const FROM_BUNDLE: &str = "the version and the images come from the bundle";
const OUR_FILES: &str = "the bake decides where files and sockets are";
const OUR_START: &str = "a start of the image depends on it";

/// Fields that cannot be changed, as paths below a kind, and why. What is below them cannot be changed either.
const FIXED: [(&str, &str, &str); 42] = [
    ("ClusterConfiguration", "kubernetesVersion", FROM_BUNDLE),
    ("ClusterConfiguration", "imageRepository", FROM_BUNDLE),
    ("ClusterConfiguration", "dns.imageRepository", FROM_BUNDLE),
    ("ClusterConfiguration", "dns.imageTag", FROM_BUNDLE),
    ("ClusterConfiguration", "etcd.local.imageRepository", FROM_BUNDLE),
    ("ClusterConfiguration", "etcd.local.imageTag", FROM_BUNDLE),
    ("ClusterConfiguration", "etcd.local.dataDir", OUR_FILES),
    ("ClusterConfiguration", "etcd.external", "the cluster's data is in the image"),
    ("ClusterConfiguration", "controlPlaneEndpoint", FIXED_ADDRESS),
    ("ClusterConfiguration", "certificatesDir", OUR_FILES),
    ("ClusterConfiguration", "clusterName", "/config names the cluster kind"),
    ("ClusterConfiguration", "networking.dnsDomain", "readiness asks the DNS for names of cluster.local"),
    ("ClusterConfiguration", "certificateValidityPeriod", "certificates are valid for a hundred years, so that an image does not expire"),
    ("ClusterConfiguration", "caCertificateValidityPeriod", "certificates are valid for a hundred years, so that an image does not expire"),
    ("InitConfiguration", "localAPIEndpoint", FIXED_ADDRESS),
    ("InitConfiguration", "nodeRegistration.name", FIXED_ADDRESS),
    ("InitConfiguration", "nodeRegistration.criSocket", OUR_FILES),
    ("InitConfiguration", "nodeRegistration.taints", "set KIND_NODE_TAINTS instead"),
    ("InitConfiguration", "bootstrapTokens", "no node can join"),
    ("InitConfiguration", "certificateKey", "no node can join"),
    ("InitConfiguration", "patches", "change the files in /etc/kubernetes/manifests in hooks/after-cluster.sh instead"),
    ("InitConfiguration", "skipPhases", "the bake decides which phases run"),
    ("KubeletConfiguration", "cgroupDriver", OUR_START),
    ("KubeletConfiguration", "cgroupRoot", OUR_START),
    ("KubeletConfiguration", "failSwapOn", OUR_START),
    ("KubeletConfiguration", "failCgroupV1", OUR_START),
    ("KubeletConfiguration", "resolvConf", OUR_FILES),
    ("KubeletConfiguration", "staticPodPath", OUR_FILES),
    ("KubeletConfiguration", "containerRuntimeEndpoint", OUR_FILES),
    ("KubeletConfiguration", "port", FIXED_ADDRESS),
    ("KubeletConfiguration", "healthzPort", OUR_START),
    ("KubeletConfiguration", "healthzBindAddress", OUR_START),
    ("KubeletConfiguration", "enableServer", OUR_START),
    ("KubeletConfiguration", "authentication", OUR_START),
    ("KubeletConfiguration", "authorization", OUR_START),
    ("KubeletConfiguration", "rotateCertificates", "certificates are valid for a hundred years, so that an image does not expire"),
    ("KubeletConfiguration", "serverTLSBootstrap", OUR_START),
    ("KubeletConfiguration", "tlsCertFile", OUR_FILES),
    ("KubeletConfiguration", "tlsPrivateKeyFile", OUR_FILES),
    ("KubeletConfiguration", "clusterDNS", "kubeadm derives it from networking.serviceSubnet"),
    ("KubeletConfiguration", "clusterDomain", "readiness asks the DNS for names of cluster.local"),
    ("KubeProxyConfiguration", "clientConnection.kubeconfig", OUR_FILES),
];

/// Where flags of a component are, and the flags that cannot be changed; a `*` at the end stands for anything.
const FLAGS: [(&str, &str, &[&str]); 5] = [
    (
        "ClusterConfiguration",
        "apiServer.extraArgs",
        &[
            "advertise-address",
            "bind-address",
            "secure-port",
            "etcd-*",
            "client-ca-file",
            "tls-cert-file",
            "tls-private-key-file",
            "service-cluster-ip-range",
            "service-account-key-file",
            "service-account-signing-key-file",
            "kubelet-client-*",
            "proxy-client-*",
            "requestheader-client-ca-file",
            "allow-privileged",
            "anonymous-auth",
        ],
    ),
    (
        "ClusterConfiguration",
        "controllerManager.extraArgs",
        &[
            "kubeconfig",
            "authentication-kubeconfig",
            "authorization-kubeconfig",
            "cluster-cidr",
            "service-cluster-ip-range",
            "allocate-node-cidrs",
            "leader-elect",
            "enable-hostpath-provisioner",
            "root-ca-file",
            "cluster-signing-cert-file",
            "cluster-signing-key-file",
            "service-account-private-key-file",
            "secure-port",
        ],
    ),
    (
        "ClusterConfiguration",
        "scheduler.extraArgs",
        &["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig", "leader-elect", "secure-port"],
    ),
    (
        "ClusterConfiguration",
        "etcd.local.extraArgs",
        &[
            "name",
            "data-dir",
            "listen-*",
            "advertise-*",
            "initial-*",
            "cert-file",
            "key-file",
            "trusted-ca-file",
            "peer-*",
            "client-cert-auth",
            "unsafe-no-fsync",
            "force-new-cluster",
        ],
    ),
    (
        "InitConfiguration",
        "nodeRegistration.kubeletExtraArgs",
        &[
            "config",
            "kubeconfig",
            "bootstrap-kubeconfig",
            "hostname-override",
            "node-ip",
            "container-runtime*",
            "cgroup-*",
            "register-node",
            "node-labels",
            "register-with-taints",
        ],
    ),
];

/// Lists of volumes whose files must be in the image.
const VOLUMES: [&str; 3] = ["apiServer.extraVolumes", "controllerManager.extraVolumes", "scheduler.extraVolumes"];
/// What a bake does not keep (`bake::home`).
const NOT_KEPT: [&str; 4] = ["/root", "/tmp", "/var/tmp", "/run"];

#[derive(Debug, Default)]
pub struct KubeadmSettings {
    /// Kind and contents.
    documents: Vec<(String, Value)>,
}

impl KubeadmSettings {
    /// Reads the user's file, if build.sh was given one.
    ///
    /// # Errors
    /// It is not what kubeadm reads, or changes what cannot be changed.
    pub fn read(path: &Path) -> Result<KubeadmSettings> {
        match fs::read_to_string(path) {
            Ok(text) => KubeadmSettings::parse(&text),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(KubeadmSettings::default()),
            Err(cause) => Err(Error::io("read", path, cause)),
        }
    }

    fn parse(text: &str) -> Result<KubeadmSettings> {
        let mut settings = KubeadmSettings::default();
        for document in documents(text).map_err(|cause| bad(format!("it is not YAML: {cause}")))? {
            let kind = document["kind"].as_str().unwrap_or_default().to_string();
            if !KINDS.iter().any(|(known, _)| *known == kind) {
                let kinds = KINDS.map(|(known, _)| known).join(", ");
                return Err(bad(format!("a document has the kind {kind:?}, but a bake reads {kinds}")));
            }
            if settings.documents.iter().any(|(known, _)| *known == kind) {
                return Err(bad(format!("there are two documents of the kind {kind}")));
            }
            check(&kind, &document)?;
            settings.documents.push((kind, document));
        }
        Ok(settings)
    }

    /// A text of the ClusterConfiguration, such as `networking.podSubnet`.
    pub fn cluster_text(&self, path: &str) -> Option<String> {
        let (_, document) = self.documents.iter().find(|(kind, _)| kind == "ClusterConfiguration")?;
        Some(at(document, path)?.as_str()?.to_string())
    }

    /// Whether an addon, `dns` or `proxy`, is disabled.
    pub fn disables(&self, addon: &str) -> bool {
        let cluster = self.documents.iter().find(|(kind, _)| kind == "ClusterConfiguration");
        cluster.and_then(|(_, document)| at(document, &format!("{addon}.disabled"))) == Some(&Value::Bool(true))
    }

    /// Our documents with the user's in them: fields of maps are replaced, lists are continued.
    pub fn merge_into(&self, ours: &str) -> Result<String> {
        let mut merged = documents(ours).map_err(|cause| Error::new(format!("our configuration of kubeadm is not YAML: {cause}")))?;
        for (kind, document) in &self.documents {
            let own = merged.iter_mut().find(|own| own["kind"] == kind.as_str());
            let own = own.ok_or_else(|| Error::new(format!("our configuration of kubeadm has no {kind}")))?;
            if own["apiVersion"] != document["apiVersion"] {
                return Err(bad(format!("its {kind} is of {}, but this Kubernetes reads {}", document["apiVersion"], own["apiVersion"])));
            }
            merge(own, document);
        }
        let texts: std::result::Result<Vec<String>, _> = merged.iter().map(yaml_serde::to_string).collect();
        texts.map(|texts| texts.join("---\n")).map_err(|cause| Error::new(format!("cannot write kubeadm's configuration: {cause}")))
    }
}

fn bad(why: String) -> Error {
    Error::new(format!("{VARIABLE}: {why}")).advise("docs/cluster.md describes the file")
}

/// The documents of a file, without empty ones.
fn documents(text: &str) -> std::result::Result<Vec<Value>, yaml_serde::Error> {
    let all: std::result::Result<Vec<Value>, _> = yaml_serde::Deserializer::from_str(text).map(Value::deserialize).collect();
    Ok(all?.into_iter().filter(|document| !document.is_null()).collect())
}

fn check(kind: &str, document: &Value) -> Result<()> {
    let version = document["apiVersion"].as_str().unwrap_or_default();
    let prefix = KINDS.iter().find(|(known, _)| *known == kind).map_or("", |(_, prefix)| prefix);
    if !version.starts_with(prefix) {
        return Err(bad(format!("its {kind} has the apiVersion {version:?}, not one that begins with {prefix}")));
    }
    if let Some((_, path, why)) = FIXED.iter().find(|(of, path, _)| *of == kind && at(document, path).is_some()) {
        return Err(bad(format!("{kind}.{path} cannot be changed: {why}")));
    }
    for (_, path, fixed) in FLAGS.iter().filter(|(of, _, _)| *of == kind) {
        let flags = at(document, path).map_or(vec![], names_of_flags);
        if let Some(flag) = flags.iter().find(|flag| fixed.iter().any(|pattern| matches(pattern, flag))) {
            return Err(bad(format!("the flag {flag} in {kind}.{path} cannot be changed: the bake sets it, or a start depends on it")));
        }
    }
    for path in VOLUMES {
        for volume in at(document, path).and_then(Value::as_array).into_iter().flatten() {
            let host = volume["hostPath"].as_str().unwrap_or_default();
            if NOT_KEPT.iter().any(|directory| Path::new(host).starts_with(directory)) {
                return Err(bad(format!("{host} in {kind}.{path} will not be in the image: a bake does not keep {}", NOT_KEPT.join(", "))));
            }
        }
    }
    Ok(())
}

/// From a list of `name` and `value` (since v1beta4), or a map.
fn names_of_flags(flags: &Value) -> Vec<String> {
    let names: Vec<&str> = match flags {
        Value::Array(list) => list.iter().filter_map(|flag| flag["name"].as_str()).collect(),
        Value::Object(map) => map.keys().map(String::as_str).collect(),
        _ => vec![],
    };
    names.into_iter().map(str::to_string).collect()
}

fn matches(pattern: &str, flag: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == flag, |prefix| flag.starts_with(prefix))
}

/// The value at a path such as `etcd.local.dataDir`.
fn at<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(document, |value, name| value.get(name))
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => merge_maps(into, from),
        (Value::Array(into), Value::Array(from)) => into.extend(from.iter().cloned()),
        (into, from) => *into = from.clone(),
    }
}

fn merge_maps(into: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (name, value) in from {
        match into.get_mut(name) {
            Some(own) => merge(own, value),
            None => drop(into.insert(name.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.36.2
apiServer:
  certSANs:
  - kind
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
imageGCHighThresholdPercent: 100
";

    fn cluster(fields: &str) -> String {
        format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n{fields}\n")
    }

    #[test]
    fn fields_are_replaced_or_added_and_lists_are_continued() {
        let user = cluster("apiServer: {certSANs: [mine], extraArgs: [{name: v, value: '4'}]}\nnetworking: {podSubnet: 10.200.0.0/16}")
            + "---\n---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nimageGCHighThresholdPercent: 90\nmaxPods: 50\n";
        let settings = KubeadmSettings::parse(&user).unwrap();
        assert_eq!(settings.cluster_text("networking.podSubnet").as_deref(), Some("10.200.0.0/16"));
        assert_eq!(settings.cluster_text("networking.serviceSubnet"), None);
        let merged = documents(&settings.merge_into(OURS).unwrap()).unwrap();
        assert_eq!(merged[0]["apiServer"]["certSANs"], serde_json::json!(["kind", "mine"]));
        assert_eq!(merged[0]["apiServer"]["extraArgs"][0]["value"], "4");
        assert_eq!(merged[0]["kubernetesVersion"], "v1.36.2");
        assert_eq!((&merged[1]["imageGCHighThresholdPercent"], &merged[1]["maxPods"]), (&90.into(), &50.into()));
    }

    #[test]
    fn without_a_file_ours_stays_as_it_is() {
        let settings = KubeadmSettings::read(Path::new("/nonexistent/kubeadm.yaml")).unwrap();
        assert_eq!(documents(&settings.merge_into(OURS).unwrap()).unwrap(), documents(OURS).unwrap());
        assert!(!settings.disables("proxy"));
        assert!(KubeadmSettings::parse(&cluster("proxy: {disabled: true}")).unwrap().disables("proxy"));
    }

    #[test]
    fn what_breaks_the_image_is_refused_by_name() {
        let init = |fields: &str| format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n{fields}\n");
        let kubelet = |fields: &str| format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{fields}\n");
        for (text, why) in [
            (cluster("kubernetesVersion: v1.30.0"), "ClusterConfiguration.kubernetesVersion cannot be changed: the version"),
            (cluster("etcd: {external: {endpoints: []}}"), "ClusterConfiguration.etcd.external"),
            (cluster("networking: {dnsDomain: example.com}"), "networking.dnsDomain"),
            (
                cluster("apiServer: {extraArgs: [{name: secure-port, value: '6443'}]}"),
                "the flag secure-port in ClusterConfiguration.apiServer.extraArgs",
            ),
            (cluster("apiServer: {extraArgs: {etcd-servers: x}}"), "the flag etcd-servers"),
            (cluster("apiServer: {extraVolumes: [{name: a, hostPath: /root/audit.yaml, mountPath: /a}]}"), "/root/audit.yaml"),
            (init("localAPIEndpoint: {bindPort: 6443}"), "InitConfiguration.localAPIEndpoint cannot be changed: the node's name, address"),
            (init("nodeRegistration: {taints: []}"), "set KIND_NODE_TAINTS"),
            (init("nodeRegistration: {kubeletExtraArgs: [{name: node-ip, value: '::1'}]}"), "the flag node-ip"),
            (kubelet("cgroupDriver: systemd"), "KubeletConfiguration.cgroupDriver"),
            (
                "kind: JoinConfiguration\napiVersion: kubeadm.k8s.io/v1beta4\n".into(),
                "the kind \"JoinConfiguration\", but a bake reads ClusterConfiguration, ",
            ),
            ("networking: {}\n".into(), "the kind \"\""),
            ("kind: ClusterConfiguration\napiVersion: kind.x-k8s.io/v1alpha4\n".into(), "not one that begins with kubeadm.k8s.io/"),
            (cluster("") + "---\n" + &cluster(""), "two documents of the kind ClusterConfiguration"),
            ("a: [\n".into(), "it is not YAML"),
        ] {
            let message = KubeadmSettings::parse(&text).err().unwrap_or_else(|| panic!("accepted: {text}")).to_string();
            assert!(message.starts_with("KIND_KUBEADM: ") && message.contains(why), "{why} is not in: {message}");
        }
        let older = cluster("").replace("v1beta4", "v1beta2");
        let message = KubeadmSettings::parse(&older).unwrap().merge_into(OURS).unwrap_err().to_string();
        assert!(message.contains("v1beta2") && message.contains("this Kubernetes reads \"kubeadm.k8s.io/v1beta4\""), "{message}");
    }
}
