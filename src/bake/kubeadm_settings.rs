//! The user's own kubeadm configuration (`KIND_KUBEADM`): documents in kubeadm's language, merged into ours. What a start
//! of the image depends on stays ours, and a warning names it.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files;

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

/// Fields and flags that stay ours, because a start of the image depends on them and would break without a word: the kind,
/// the path of what they are in, and their names. Others that do not fit make the bake fail.
const OURS: [(&str, &str, &str); 14] = [
    // Versions and images come from the bundle; names, addresses and files are the same in every image.
    (
        "ClusterConfiguration",
        "",
        "kubernetesVersion imageRepository controlPlaneEndpoint clusterName certificatesDir certificateValidityPeriod \
         caCertificateValidityPeriod",
    ),
    ("ClusterConfiguration", "/networking", "dnsDomain"),
    ("ClusterConfiguration", "/dns", "imageRepository imageTag"),
    ("ClusterConfiguration", "/etcd", "external"),
    ("ClusterConfiguration", "/etcd/local", "imageRepository imageTag dataDir"),
    ("ClusterConfiguration", "/etcd/local/extraArgs", "data-dir unsafe-no-fsync"),
    (
        "ClusterConfiguration",
        "/apiServer/extraArgs",
        "advertise-address bind-address secure-port tls-cert-file tls-private-key-file service-cluster-ip-range \
         kubelet-client-certificate kubelet-client-key allow-privileged anonymous-auth",
    ),
    (
        "ClusterConfiguration",
        "/controllerManager/extraArgs",
        "secure-port cluster-cidr service-cluster-ip-range allocate-node-cidrs leader-elect enable-hostpath-provisioner",
    ),
    ("ClusterConfiguration", "/scheduler/extraArgs", "secure-port leader-elect"),
    // KIND_NODE_TAINTS sets taints. No node joins, and the bake decides which phases run.
    ("InitConfiguration", "", "localAPIEndpoint bootstrapTokens certificateKey patches skipPhases"),
    ("InitConfiguration", "/nodeRegistration", "name criSocket taints"),
    (
        "InitConfiguration",
        "/nodeRegistration/kubeletExtraArgs",
        "config kubeconfig hostname-override node-ip container-runtime-endpoint cgroup-driver cgroup-root register-with-taints",
    ),
    (
        "KubeletConfiguration",
        "",
        "cgroupDriver cgroupRoot failSwapOn failCgroupV1 resolvConf staticPodPath containerRuntimeEndpoint port healthzPort \
         healthzBindAddress enableServer authentication authorization rotateCertificates serverTLSBootstrap tlsCertFile \
         tlsPrivateKeyFile clusterDNS clusterDomain",
    ),
    ("KubeProxyConfiguration", "/clientConnection", "kubeconfig"),
];

/// Lists of volumes whose files must be in the image.
const VOLUMES: [&str; 3] = ["/apiServer/extraVolumes", "/controllerManager/extraVolumes", "/scheduler/extraVolumes"];
/// What a bake does not keep (`bake::home`).
const NOT_KEPT: [&str; 4] = ["/root", "/tmp", "/var/tmp", "/run"];

#[derive(Debug, Default)]
pub struct KubeadmSettings {
    /// Kind and contents, without what stays ours.
    documents: Vec<(String, Value)>,
    /// What stays ours although the file sets it.
    overruled: Vec<String>,
}

impl KubeadmSettings {
    /// Reads the user's file, if build.sh was given one.
    ///
    /// # Errors
    /// It is not what kubeadm reads, or names files that will not be in the image.
    pub fn read(path: &Path) -> Result<KubeadmSettings> {
        let settings = KubeadmSettings::parse(&files::read_if_there(path)?.unwrap_or_default())?;
        if !settings.overruled.is_empty() {
            log::warn!(target: "bake", "{VARIABLE}: ignored, because a start of the image depends on it: {}", settings.overruled.join(", "));
        }
        Ok(settings)
    }

    fn parse(text: &str) -> Result<KubeadmSettings> {
        let mut settings = KubeadmSettings::default();
        for mut document in documents(text).map_err(|cause| bad(format!("invalid YAML: {cause}")))? {
            let kind = document["kind"].as_str().unwrap_or_default().to_string();
            let Some((_, prefix)) = KINDS.iter().find(|(known, _)| *known == kind) else {
                let kinds = KINDS.map(|(known, _)| known).join(", ");
                return Err(bad(format!("unsupported kind {kind:?}; supported kinds: {kinds}")));
            };
            let version = document["apiVersion"].as_str().unwrap_or_default();
            if !version.starts_with(prefix) {
                return Err(bad(format!("{kind} has the apiVersion {version:?}; expected one that begins with {prefix}")));
            }
            if settings.document(&kind).is_some() {
                return Err(bad(format!("there are two documents of kind {kind}")));
            }
            check_volumes(&document)?;
            settings.overruled.extend(take_ours(&kind, &mut document));
            settings.documents.push((kind, document));
        }
        Ok(settings)
    }

    fn document(&self, kind: &str) -> Option<&Value> {
        self.documents.iter().find(|(known, _)| known == kind).map(|(_, document)| document)
    }

    /// A text of the ClusterConfiguration, such as `/networking/podSubnet`.
    pub fn cluster_text(&self, path: &str) -> Option<String> {
        Some(self.document("ClusterConfiguration")?.pointer(path)?.as_str()?.to_string())
    }

    /// Whether an addon, `dns` or `proxy`, is disabled.
    pub fn disables(&self, addon: &str) -> bool {
        self.document("ClusterConfiguration").is_some_and(|document| document[addon]["disabled"] == true)
    }

    /// Our documents with the user's in them: fields of maps are replaced, lists are continued.
    pub fn merge_into(&self, ours: &str) -> Result<String> {
        let mut merged =
            documents(ours).map_err(|cause| Error::new(format!("the bake's own kubeadm configuration is invalid YAML: {cause}")))?;
        for (kind, document) in &self.documents {
            let own = merged.iter_mut().find(|own| own["kind"] == kind.as_str());
            let own = own.ok_or_else(|| Error::new(format!("the bake's own kubeadm configuration has no {kind}")))?;
            if own["apiVersion"] != document["apiVersion"] {
                return Err(bad(format!(
                    "{kind} has the apiVersion {}, but this Kubernetes reads {}",
                    document["apiVersion"], own["apiVersion"]
                )));
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

fn check_volumes(document: &Value) -> Result<()> {
    for path in VOLUMES {
        for volume in document.pointer(path).and_then(Value::as_array).into_iter().flatten() {
            let host = volume["hostPath"].as_str().unwrap_or_default();
            if NOT_KEPT.iter().any(|directory| Path::new(host).starts_with(directory)) {
                return Err(bad(format!("{host} in {path} will not be in the image: a bake does not keep {}", NOT_KEPT.join(", "))));
            }
        }
    }
    Ok(())
}

/// Removes what stays ours, and returns the paths of what was there.
fn take_ours(kind: &str, document: &mut Value) -> Vec<String> {
    let mut taken = vec![];
    for (_, parent, names) in OURS.iter().filter(|(of, _, _)| *of == kind) {
        for name in names.split_whitespace() {
            let found = match document.pointer_mut(parent) {
                Some(Value::Object(fields)) => fields.remove(name).is_some(),
                // Flags, which are a list of names and values since v1beta4.
                Some(Value::Array(flags)) => {
                    let before = flags.len();
                    flags.retain(|flag| flag["name"] != name);
                    flags.len() < before
                }
                _ => false,
            };
            if found {
                taken.push(format!("{kind}{parent}/{name}").replace('/', "."));
            }
        }
    }
    taken
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.iter().for_each(|(name, value)| merge(into.entry(name).or_insert(Value::Null), value));
        }
        (Value::Array(into), Value::Array(from)) => into.extend(from.iter().cloned()),
        (into, from) => *into = from.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUR_DOCUMENTS: &str = "apiVersion: kubeadm.k8s.io/v1beta4
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
        assert_eq!(settings.cluster_text("/networking/podSubnet").as_deref(), Some("10.200.0.0/16"));
        assert_eq!(settings.cluster_text("/networking/serviceSubnet"), None);
        let merged = documents(&settings.merge_into(OUR_DOCUMENTS).unwrap()).unwrap();
        assert_eq!(merged[0]["apiServer"]["certSANs"], serde_json::json!(["kind", "mine"]));
        assert_eq!(merged[0]["apiServer"]["extraArgs"][0]["value"], "4");
        assert_eq!(merged[0]["kubernetesVersion"], "v1.36.2");
        assert_eq!((&merged[1]["imageGCHighThresholdPercent"], &merged[1]["maxPods"]), (&90.into(), &50.into()));
    }

    #[test]
    fn without_a_file_ours_stays_as_it_is() {
        let settings = KubeadmSettings::read(Path::new("/nonexistent/kubeadm.yaml")).unwrap();
        assert_eq!(documents(&settings.merge_into(OUR_DOCUMENTS).unwrap()).unwrap(), documents(OUR_DOCUMENTS).unwrap());
        assert!(!settings.disables("proxy"));
        assert!(KubeadmSettings::parse(&cluster("proxy: {disabled: true}")).unwrap().disables("proxy"));
    }

    #[test]
    fn what_a_start_depends_on_stays_ours_and_is_named() {
        let init = |fields: &str| format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n{fields}\n");
        let kubelet = |fields: &str| format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{fields}\n");
        for (text, overruled) in [
            (cluster("kubernetesVersion: v1.30.0"), "ClusterConfiguration.kubernetesVersion"),
            (cluster("etcd: {external: {endpoints: []}}"), "ClusterConfiguration.etcd.external"),
            (
                cluster("apiServer: {extraArgs: [{name: secure-port, value: '1'}, {name: v, value: '4'}]}"),
                "ClusterConfiguration.apiServer.extraArgs.secure-port",
            ),
            (cluster("apiServer: {extraArgs: {bind-address: x, v: '4'}}"), "ClusterConfiguration.apiServer.extraArgs.bind-address"),
            (cluster("apiServer: {extraArgs: {v: '4'}, certSANs: [mine]}"), ""),
            (cluster("etcd: {local: {extraArgs: [{name: listen-metrics-urls, value: 'http://0.0.0.0:2381'}]}}"), ""),
            (init("localAPIEndpoint: {bindPort: 6443}"), "InitConfiguration.localAPIEndpoint"),
            (
                init("nodeRegistration: {taints: [], name: a}"),
                "InitConfiguration.nodeRegistration.name InitConfiguration.nodeRegistration.taints",
            ),
            (init("nodeRegistration: {kubeletExtraArgs: [{name: node-labels, value: a=b}]}"), ""),
            (kubelet("cgroupDriver: systemd"), "KubeletConfiguration.cgroupDriver"),
        ] {
            let settings = KubeadmSettings::parse(&text).unwrap();
            assert_eq!(settings.overruled.join(" "), overruled, "{text}");
            let left = settings.documents[0].1.to_string();
            for name in overruled.split_whitespace().filter_map(|path| path.rsplit('.').next()) {
                assert!(!left.contains(&format!("\"{name}\"")), "{name} is still in {left}");
            }
            assert_eq!(left.contains("\"v\""), text.contains("v: '4'") || text.contains("name: v"), "{left}");
        }
    }

    #[test]
    fn what_kubeadm_does_not_read_and_files_that_are_not_kept_are_refused() {
        for (text, why) in [
            (cluster("apiServer: {extraVolumes: [{name: a, hostPath: /root/audit.yaml, mountPath: /a}]}"), "/root/audit.yaml"),
            (
                "kind: JoinConfiguration\napiVersion: kubeadm.k8s.io/v1beta4\n".into(),
                "unsupported kind \"JoinConfiguration\"; supported kinds: ClusterConfiguration, ",
            ),
            ("networking: {}\n".into(), "unsupported kind \"\""),
            ("kind: ClusterConfiguration\napiVersion: kind.x-k8s.io/v1alpha4\n".into(), "expected one that begins with kubeadm.k8s.io/"),
            (cluster("") + "---\n" + &cluster(""), "two documents of kind ClusterConfiguration"),
            ("a: [\n".into(), "invalid YAML"),
        ] {
            let message = KubeadmSettings::parse(&text).err().unwrap_or_else(|| panic!("accepted: {text}")).to_string();
            assert!(message.starts_with("KIND_KUBEADM: ") && message.contains(why), "{why} is not in: {message}");
        }
        let older = cluster("").replace("v1beta4", "v1beta2");
        let message = KubeadmSettings::parse(&older).unwrap().merge_into(OUR_DOCUMENTS).unwrap_err().to_string();
        assert!(message.contains("v1beta2") && message.contains("this Kubernetes reads \"kubeadm.k8s.io/v1beta4\""), "{message}");
    }
}
