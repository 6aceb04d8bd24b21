//! containerd's configuration, in the form that each generation of it wants.
//!
//! An older form works too, but is migrated at each start, with a warning. The forms are those of containerd's
//! `version.ConfigVersion`; docs/PLUGINS.md and internal/cri/config in its source describe them.

use serde::{Deserialize, Serialize};

use crate::config::{CNI_BIN_DIR, CNI_CONF_DIR, CONTAINERD_ROOT, CRI_CERTS_DIR};

const CRI_PLUGIN: &str = "io.containerd.grpc.v1.cri";
/// What CRI_PLUGIN's configuration was split into.
const IMAGES_PLUGIN: &str = "io.containerd.cri.v1.images";
const RUNTIME_PLUGIN: &str = "io.containerd.cri.v1.runtime";

/// A version of the configuration's format.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Form {
    /// Of containerd 1.7. Every later one, up to now, migrates it.
    #[default]
    V2,
    /// Since containerd 2.0: CRI's plugin became several.
    V3,
    /// Since containerd 2.3: the server's addresses moved to plugins of their own. We give them as flags.
    V4,
}

impl Form {
    /// The newest form that a containerd of this major and minor version reads.
    pub fn of(major: u32, minor: u32) -> Form {
        match (major, minor) {
            (2, 3..) | (3.., _) => Form::V4,
            (2, _) => Form::V3,
            _ => Form::V2,
        }
    }

    fn number(self) -> u32 {
        match self {
            Form::V2 => 2,
            Form::V3 => 3,
            Form::V4 => 4,
        }
    }
}

/// The configuration of a containerd without the CRI plugin.
pub fn without_cri(form: Form) -> String {
    base(form, &[CRI_PLUGIN])
}

fn base(form: Form, disabled_plugins: &[&str]) -> String {
    format!(
        r#"version = {}
root = "{CONTAINERD_ROOT}"
state = "/run/containerd"
disabled_plugins = {disabled_plugins:?}
"#,
        form.number()
    )
}

/// `runtime` is the OCI runtime of pods, by the name that RuntimeClasses know, `runc`.
pub fn with_cri(form: Form, pause_image: &str, restrict_oom_score_adj: bool, runtime: &str) -> String {
    let cri = match form {
        Form::V2 => cri_in_one(pause_image, restrict_oom_score_adj, runtime),
        Form::V3 | Form::V4 => cri_in_parts(pause_image, restrict_oom_score_adj, runtime),
    };
    base(form, &[]) + &cri
}

fn cri_in_one(pause_image: &str, restrict_oom_score_adj: bool, runtime: &str) -> String {
    format!(
        r#"[plugins."{CRI_PLUGIN}"]
  sandbox_image = "{pause_image}"
  # Without CAP_SYS_RESOURCE every pod would fail to start because of its oom_score_adj.
  restrict_oom_score_adj = {restrict_oom_score_adj}
  tolerate_missing_hugetlb_controller = true
  [plugins."{CRI_PLUGIN}".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."{CRI_PLUGIN}".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."{CRI_PLUGIN}".containerd.runtimes.runc.options]
        BinaryName = "{runtime}"
        SystemdCgroup = false
  [plugins."{CRI_PLUGIN}".cni]
    bin_dir = "{CNI_BIN_DIR}"
    conf_dir = "{CNI_CONF_DIR}"
  # Docker's directory is used for kubelet's pulls too.
  [plugins."{CRI_PLUGIN}".registry]
    config_path = "{CRI_CERTS_DIR}"
"#
    )
}

/// The directories of CNI are containerd's own default: from 2.1 on it complains about `bin_dir`, and 2.0 does not
/// know `bin_dirs`.
fn cri_in_parts(pause_image: &str, restrict_oom_score_adj: bool, runtime: &str) -> String {
    format!(
        r#"[plugins."{IMAGES_PLUGIN}"]
  snapshotter = "overlayfs"
  [plugins."{IMAGES_PLUGIN}".pinned_images]
    sandbox = "{pause_image}"
  # Docker's directory is used for kubelet's pulls too.
  [plugins."{IMAGES_PLUGIN}".registry]
    config_path = "{CRI_CERTS_DIR}"
[plugins."{RUNTIME_PLUGIN}"]
  # Without CAP_SYS_RESOURCE every pod would fail to start because of its oom_score_adj.
  restrict_oom_score_adj = {restrict_oom_score_adj}
  tolerate_missing_hugetlb_controller = true
  [plugins."{RUNTIME_PLUGIN}".containerd]
    default_runtime_name = "runc"
    [plugins."{RUNTIME_PLUGIN}".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."{RUNTIME_PLUGIN}".containerd.runtimes.runc.options]
        BinaryName = "{runtime}"
        SystemdCgroup = false
  [plugins."{RUNTIME_PLUGIN}".cni]
    # The loopback plugin would be two more processes for each pod.
    use_internal_loopback = true
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_gets_its_form() {
        for ((major, minor), form) in [
            ((1, 6), Form::V2),
            ((1, 7), Form::V2),
            ((2, 0), Form::V3),
            ((2, 2), Form::V3),
            ((2, 3), Form::V4),
            ((2, 11), Form::V4),
            ((3, 0), Form::V4),
        ] {
            assert_eq!(Form::of(major, minor), form, "{major}.{minor}");
        }
    }

    #[test]
    fn a_form_names_no_plugin_of_another() {
        for (form, version, has, lacks) in [
            (Form::V2, "version = 2\n", CRI_PLUGIN, IMAGES_PLUGIN),
            (Form::V3, "version = 3\n", IMAGES_PLUGIN, CRI_PLUGIN),
            (Form::V4, "version = 4\n", RUNTIME_PLUGIN, CRI_PLUGIN),
        ] {
            let text = with_cri(form, "registry.k8s.io/pause:3.10", true, "crun");
            assert!(text.starts_with(version), "{text}");
            assert!(text.contains(has) && !text.contains(lacks), "{text}");
            assert!(!text.contains("[grpc]"), "in version 4 it is a plugin's: {text}");
            for words in ["pause:3.10", "restrict_oom_score_adj = true", "SystemdCgroup = false", "BinaryName = \"crun\"", CRI_CERTS_DIR] {
                assert!(text.contains(words), "{words} is not in: {text}");
            }
            // containerd 1.7 does not know it.
            assert_eq!(text.contains("use_internal_loopback = true"), form != Form::V2, "{text}");
            assert!(without_cri(form).contains(&format!("disabled_plugins = [\"{CRI_PLUGIN}\"]")));
        }
    }

    /// The forms of containerd 2 leave them out.
    #[test]
    fn cni_is_where_containerd_looks_by_default() {
        assert_eq!((CNI_BIN_DIR, CNI_CONF_DIR), ("/opt/cni/bin", "/etc/cni/net.d"));
    }
}
