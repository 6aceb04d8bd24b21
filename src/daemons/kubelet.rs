//! kubelet, as kubeadm configured it in the bake.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use crate::config::{KUBELET_DIR, KUBELET_HEALTH_PORT, KUBERNETES_DIR, NODE_NAME};
use crate::daemons::{answers_ok, connect, prepare, without_proxy};
use crate::files;
use crate::node::iptables::Iptables;
use crate::node::lowest_oom_score;
use crate::supervisor::daemon::Spec;

pub const KUBELET: &str = "kubelet";
const HEALTH_LIMIT: Duration = Duration::from_secs(1);

/// `more` are the user's flags: the last of several wins, and flags win over kubelet's file.
pub fn spec(node_ip: Ipv4Addr, iptables: Iptables, more: Vec<String>) -> Spec {
    Spec {
        name: KUBELET,
        command: Box::new(move || {
            let directory = Path::new(KUBELET_DIR);
            let text = files::read(directory.join("kubeadm-flags.env"))?;
            let mut command = Command::new(KUBELET);
            prepare(&mut command, &iptables);
            command.arg(format!("--kubeconfig={KUBERNETES_DIR}/kubelet.conf"));
            command.arg(format!("--config={}", directory.join("config.yaml").display()));
            command.args(kubeadm_flags(&text));
            // The container's name and first address change with every start; the node's do not.
            command.args([format!("--hostname-override={NODE_NAME}"), format!("--node-ip={node_ip}")]);
            // Otherwise kubelet would spend 0.2 s trying to set a score that it is not allowed to set.
            if let Some(score) = lowest_oom_score() {
                command.arg(format!("--oom-score-adj={score}"));
            }
            command.args(&more);
            without_proxy(&mut command);
            Ok(command)
        }),
        answers: Box::new(is_healthy),
        before_reload: None,
        condition: |state| &mut state.kubelet,
        first_start: Mutex::default(),
    }
}

/// The flags in kubeadm's `KUBELET_KUBEADM_ARGS="…"`, which a shell would split at spaces.
fn kubeadm_flags(text: &str) -> Vec<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("KUBELET_KUBEADM_ARGS="));
    value.unwrap_or_default().trim_matches('"').split_whitespace().map(str::to_string).collect()
}

/// kubelet's own endpoint on loopback, which needs no certificate.
fn is_healthy() -> bool {
    connect(KUBELET_HEALTH_PORT, HEALTH_LIMIT).is_ok_and(|stream| answers_ok(stream, "/healthz"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeadms_flags_are_taken_over() {
        let text = "KUBELET_KUBEADM_ARGS=\"--container-runtime=remote --pod-infra-container-image=registry.k8s.io/pause:3.2\"\n";
        assert_eq!(kubeadm_flags(text), ["--container-runtime=remote", "--pod-infra-container-image=registry.k8s.io/pause:3.2"]);
        assert!(kubeadm_flags("").is_empty());
    }
}
