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
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
/// The longest name, value, or part of a domain (characters).
const LONGEST: usize = 63;
const LONGEST_DOMAIN: usize = 253;

#[derive(Debug, Default, PartialEq)]
pub struct NodeSettings {
    /// `key=value`
    labels: Vec<String>,
    /// `key=value:effect`, or without `=value`
    taints: Vec<String>,
}

impl NodeSettings {
    /// Reads the environment.
    ///
    /// # Errors
    /// A label or taint that the API server or kubelet would refuse or undo.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<NodeSettings> {
        let items = |name| items(&get(name).unwrap_or_default());
        let settings = NodeSettings { labels: items(LABELS), taints: items(TAINTS) };
        settings.labels.iter().try_for_each(|label| check_label(label))?;
        settings.taints.iter().try_for_each(|taint| check_taint(taint))?;
        Ok(settings)
    }

    pub fn has_taints(&self) -> bool {
        !self.taints.is_empty()
    }

    pub fn apply(&self) -> Result<()> {
        for (verb, items) in [("label", &self.labels), ("taint", &self.taints)] {
            if !items.is_empty() {
                let items: Vec<&str> = items.iter().map(String::as_str).collect();
                kubectl::run(&[&[verb, "node", NODE_NAME, "--overwrite"], items.as_slice()].concat(), kubectl::APPLY_LIMIT)?;
            }
        }
        Ok(())
    }
}

fn items(text: &str) -> Vec<String> {
    text.split([',', ' ', '\n']).map(str::trim).filter(|item| !item.is_empty()).map(str::to_string).collect()
}

fn check_label(label: &str) -> Result<()> {
    let bad =
        |why: &str| Error::new(format!("{LABELS}: {label} {why}")).advise("Give labels such as tier=ci,disk=ssd, separated by commas");
    let (key, value) = label.split_once('=').ok_or_else(|| bad("has no value"))?;
    if OF_KUBELET.contains(&key) {
        return Err(bad("is set by kubelet itself"));
    }
    check_key(key).and_then(|()| check_value(value)).map_err(bad)
}

fn check_taint(taint: &str) -> Result<()> {
    let bad = |why: &str| {
        Error::new(format!("{TAINTS}: {taint} {why}")).advise("Give taints such as dedicated=ci:NoSchedule, separated by commas")
    };
    let (rest, effect) = taint.rsplit_once(':').ok_or_else(|| bad("has no effect"))?;
    if !EFFECTS.contains(&effect) {
        return Err(bad(&format!("has none of the effects {}", EFFECTS.join(", "))));
    }
    let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
    if key.starts_with(OF_CONTROLLER) {
        return Err(bad("is one of the node controller's own"));
    }
    check_key(key).and_then(|()| check_value(value)).map_err(bad)
}

/// `name` or `domain/name`, as the API server requires it (labels and selectors, in Kubernetes' documentation).
fn check_key(key: &str) -> std::result::Result<(), &'static str> {
    let (domain, name) = key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    let is_part = |part: &str| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !part.is_empty() && part.len() <= LONGEST && part.bytes().all(allowed) && !part.starts_with('-') && !part.ends_with('-')
    };
    if domain.is_some_and(|domain| domain.len() > LONGEST_DOMAIN || !domain.split('.').all(is_part)) {
        return Err("has a key whose part before the slash is no domain");
    }
    if name.is_empty() || !is_name(name) {
        return Err("has a key that is no name");
    }
    Ok(())
}

fn check_value(value: &str) -> std::result::Result<(), &'static str> {
    if value.is_empty() || is_name(value) {
        Ok(())
    } else {
        Err("has a value that is no name")
    }
}

/// At most 63 letters, digits, and `-`, `_` or `.` between them.
fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= LONGEST && bytes.iter().copied().all(is_inner) && is_outer(bytes.first()) && is_outer(bytes.last())
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
    fn what_cannot_be_set_is_refused_by_name() {
        let long = format!("{}=x", "k".repeat(64));
        for (label, why) in [
            ("tier", "has no value"),
            ("=ci", "no name"),
            ("tier=c i", "has no value"),
            ("tier=-ci", "value that is no name"),
            ("a/b/c=1", "no name"),
            ("Example/disk=ssd", "no domain"),
            ("kubernetes.io/hostname=other", "set by kubelet"),
            (&long, "no name"),
        ] {
            let message = settings(label, "").unwrap_err().to_string();
            assert!(message.contains("KIND_NODE_LABELS: ") && message.contains(why), "{label}: {message}");
        }
        for (taint, why) in [
            ("dedicated=ci", "has no effect"),
            ("dedicated=ci:Never", "none of the effects NoSchedule"),
            (":NoSchedule", "no name"),
            ("node.kubernetes.io/not-ready:NoSchedule", "node controller"),
        ] {
            let message = settings("", taint).unwrap_err().to_string();
            assert!(message.contains(&format!("KIND_NODE_TAINTS: {taint}")) && message.contains(why), "{taint}: {message}");
        }
    }
}
