//! The node's labels and taints (`KIND_NODE_LABELS`, `KIND_NODE_TAINTS`), which are baked in: etcd keeps the node
//! with them, and kubelet only adds its own.

use crate::cluster::kubectl;
use crate::config::NODE_NAME;
use crate::error::{Error, Result};

const LABELS: &str = "KIND_NODE_LABELS";
const TAINTS: &str = "KIND_NODE_TAINTS";
/// kubelet sets these labels at every start.
const OF_KUBELET: [&str; 5] =
    ["kubernetes.io/hostname", "kubernetes.io/arch", "kubernetes.io/os", "beta.kubernetes.io/arch", "beta.kubernetes.io/os"];
/// The node controller sets and removes taints of this domain, such as not-ready.
const OF_CONTROLLER: &str = "node.kubernetes.io/";

#[derive(Debug, Default, PartialEq)]
pub struct NodeSettings {
    /// `key=value`
    labels: Vec<String>,
    /// `key=value:effect`, or without `=value`
    taints: Vec<String>,
}

impl NodeSettings {
    /// Reads the environment. kubectl judges keys, values and effects when it sets them.
    ///
    /// # Errors
    /// A label without a value, a taint without an effect, or one that Kubernetes would set back.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<NodeSettings> {
        let items = |name| items(&get(name).unwrap_or_default());
        let settings = NodeSettings { labels: items(LABELS), taints: items(TAINTS) };
        for label in &settings.labels {
            let why = match label.split_once('=') {
                None => "has no value",
                Some((key, _)) if OF_KUBELET.contains(&key) => "is set by kubelet itself",
                Some(_) => continue,
            };
            return Err(Error::new(format!("{LABELS}: {label} {why}")).advise("An example: tier=ci,disk=ssd"));
        }
        for taint in &settings.taints {
            let why = match (taint.contains(':'), taint.starts_with(OF_CONTROLLER)) {
                (false, _) => "has no effect",
                (true, true) => "is set by the node controller itself",
                (true, false) => continue,
            };
            return Err(Error::new(format!("{TAINTS}: {taint} {why}")).advise("An example: dedicated=ci:NoSchedule"));
        }
        Ok(settings)
    }

    pub fn has_taints(&self) -> bool {
        !self.taints.is_empty()
    }

    pub fn apply(&self) -> Result<()> {
        for (verb, setting, items) in [("label", LABELS, &self.labels), ("taint", TAINTS, &self.taints)] {
            if !items.is_empty() {
                let items: Vec<&str> = items.iter().map(String::as_str).collect();
                let arguments = [&[verb, "node", NODE_NAME, "--overwrite", "--"], items.as_slice()].concat();
                kubectl::run(&arguments, kubectl::APPLY_LIMIT).map_err(|error| Error::new(format!("{setting}: {error}")))?;
            }
        }
        Ok(())
    }
}

fn items(text: &str) -> Vec<String> {
    text.split([',', ' ', '\n']).map(str::trim).filter(|item| !item.is_empty()).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(labels: &str, taints: &str) -> Result<NodeSettings> {
        NodeSettings::from_env(|name| Some(if name == LABELS { labels } else { taints }.to_string()))
    }

    #[test]
    fn labels_and_taints_are_lists() {
        assert_eq!(settings("", "").unwrap(), NodeSettings::default());
        let read = settings("tier=ci, example.com/disk=ssd,empty=", "dedicated=ci:NoSchedule,gpu:NoExecute").unwrap();
        assert_eq!(read.labels, ["tier=ci", "example.com/disk=ssd", "empty="]);
        assert_eq!(read.taints, ["dedicated=ci:NoSchedule", "gpu:NoExecute"]);
        assert!(read.has_taints());
        assert!(settings("node-role.kubernetes.io/worker=", "node-role.kubernetes.io/control-plane:NoSchedule").is_ok());
    }

    #[test]
    fn what_would_not_stay_set_is_refused_by_name() {
        for (labels, taints, message) in [
            ("tier", "", "KIND_NODE_LABELS: tier has no value"),
            ("a=b,kubernetes.io/hostname=other", "", "KIND_NODE_LABELS: kubernetes.io/hostname=other is set by kubelet itself"),
            ("", "dedicated=ci", "KIND_NODE_TAINTS: dedicated=ci has no effect"),
            ("", "node.kubernetes.io/not-ready:NoSchedule", "KIND_NODE_TAINTS: node.kubernetes.io/not-ready:NoSchedule is set by the node"),
        ] {
            let error = settings(labels, taints).unwrap_err().to_string();
            assert!(error.starts_with(message) && error.contains("An example: "), "{message}: {error}");
        }
    }
}
