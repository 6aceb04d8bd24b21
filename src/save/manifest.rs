//! The static pods of the control plane: their manifests are read as kubeadm wrote them, changed, and written back.
//!
//! What a manifest contains differs from version to version, so changes are made to what is there.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{json, Map, Value};

use crate::config::STATIC_POD_DIR;
use crate::error::{Error, Result};

/// A static pod with one container, which has the pod's name.
pub struct StaticPod {
    path: PathBuf,
    pod: Value,
    /// The container's index in the pod.
    container: usize,
}

/// Reads the static pod of this name, such as `etcd`.
pub fn read(name: &str) -> Result<StaticPod> {
    read_from(Path::new(STATIC_POD_DIR), name)
}

/// Changes the static pod of this name. If kubelet runs, it starts the pod again.
pub fn edit(name: &str, change: impl FnOnce(&mut StaticPod) -> Result<()>) -> Result<()> {
    edit_in(Path::new(STATIC_POD_DIR), name, change)
}

fn read_from(directory: &Path, name: &str) -> Result<StaticPod> {
    let path = directory.join(format!("{name}.yaml"));
    let text = fs::read_to_string(&path).map_err(|cause| Error::io("read", &path, cause))?;
    StaticPod::parse(&path, name, &text)
}

fn edit_in(directory: &Path, name: &str, change: impl FnOnce(&mut StaticPod) -> Result<()>) -> Result<()> {
    let mut pod = read_from(directory, name)?;
    change(&mut pod)?;
    // kubelet never sees half a file: it ignores names that begin with a dot.
    let new = directory.join(format!(".{name}.new"));
    let written = fs::copy(&pod.path, &new).and_then(|_| fs::write(&new, pod.to_yaml()?)).and_then(|()| fs::rename(&new, &pod.path));
    written.map_err(|cause| Error::io("write", &pod.path, cause))
}

impl StaticPod {
    fn parse(path: &Path, name: &str, text: &str) -> Result<StaticPod> {
        let fail = |cause: &dyn std::fmt::Display| Error::new(format!("{} is not a static pod: {cause}", path.display()));
        let pod: Value = yaml_serde::from_str(text).map_err(|cause| fail(&cause))?;
        let container = pod
            .pointer("/spec/containers")
            .and_then(Value::as_array)
            .and_then(|containers| containers.iter().position(|container| container["name"] == name && container["command"].is_array()));
        let container = container.ok_or_else(|| fail(&format!("it has no container {name} with a command")))?;
        Ok(StaticPod { path: path.to_path_buf(), pod, container })
    }

    fn to_yaml(&self) -> std::io::Result<String> {
        yaml_serde::to_string(&self.pod).map_err(std::io::Error::other)
    }

    fn container(&mut self) -> &mut Map<String, Value> {
        self.pod["spec"]["containers"][self.container].as_object_mut().expect("parse() has found a container with fields")
    }

    fn command(&self) -> &Vec<Value> {
        self.pod["spec"]["containers"][self.container]["command"].as_array().expect("parse() has found a command")
    }

    /// The value of a flag `--NAME=VALUE` of the container's command.
    pub fn flag(&self, name: &str) -> Option<&str> {
        self.command().iter().filter_map(Value::as_str).find_map(|argument| value_of(argument, name))
    }

    /// Sets a flag of the container's command, in place of any value that it has.
    pub fn set_flag(&mut self, name: &str, value: &str) {
        let mut command = self.command().clone();
        command.retain(|argument| argument.as_str().is_none_or(|argument| value_of(argument, name).is_none()));
        command.push(json!(format!("--{name}={value}")));
        self.container().insert("command".into(), command.into());
    }

    /// Sets how much of the CPU is requested for the container, such as `100m`.
    pub fn request_cpu(&mut self, cpu: &str) {
        self.pod["spec"]["containers"][self.container]["resources"]["requests"]["cpu"] = cpu.into();
    }

    /// Mounts a directory of the node into the container, at the same path. The node's is created if it is missing.
    pub fn mount(&mut self, name: &str, directory: &str) {
        self.mount_from_node(json!({"name": name, "mountPath": directory}), "DirectoryOrCreate");
    }

    /// Mounts a file of the node into the container, at the same path.
    pub fn mount_file(&mut self, name: &str, file: &str) {
        self.mount_from_node(json!({"name": name, "mountPath": file, "readOnly": true}), "File");
    }

    fn mount_from_node(&mut self, mount: Value, kind: &str) {
        let volume = json!({"name": mount["name"], "hostPath": {"path": mount["mountPath"], "type": kind}});
        push(self.container(), "volumeMounts", mount);
        push(self.pod["spec"].as_object_mut().expect("parse() has found containers in it"), "volumes", volume);
    }

    /// Puts words in front of the container's command.
    pub fn run_through(&mut self, words: &[&str]) {
        let command: Vec<Value> = words.iter().map(|word| json!(word)).chain(self.command().iter().cloned()).collect();
        self.container().insert("command".into(), command.into());
    }

    /// The names of the variables that the container is given.
    pub fn variables(&self) -> Vec<&str> {
        let variables = self.pod["spec"]["containers"][self.container]["env"].as_array();
        variables.into_iter().flatten().filter_map(|variable| variable["name"].as_str()).collect()
    }

    /// The first path in the container that is another one on the node, or is not the node's.
    pub fn path_of_its_own(&self) -> Option<&str> {
        let volumes = self.pod["spec"]["volumes"].as_array();
        let on_node = |name: &Value| volumes?.iter().find(|volume| &volume["name"] == name)?["hostPath"]["path"].as_str();
        let mounts = self.pod["spec"]["containers"][self.container]["volumeMounts"].as_array();
        let differs = |mount: &&Value| mount.get("subPath").is_some() || on_node(&mount["name"]) != mount["mountPath"].as_str();
        mounts.into_iter().flatten().find(differs).map(|mount| mount["mountPath"].as_str().unwrap_or("?"))
    }

    /// Makes the pod Ready as soon as it is, with a probe every second. kubeadm has a startup probe every 10 s, and in
    /// some pods a readiness probe that waits for it. The startup probe takes the place of a readiness probe that is
    /// missing; the liveness probe waits for as long as the startup probe was allowed to fail.
    pub fn probe_readiness_every_second(&mut self) {
        let container = self.container();
        let startup = container.remove("startupProbe");
        let seconds = |field: &str| startup.as_ref().and_then(|probe| probe[field].as_u64());
        // What the API server takes for fields that are left out.
        let patience =
            seconds("initialDelaySeconds").unwrap_or(0) + seconds("periodSeconds").unwrap_or(10) * seconds("failureThreshold").unwrap_or(3);
        if let Some(liveness) = container.get_mut("livenessProbe").and_then(Value::as_object_mut).filter(|_| startup.is_some()) {
            liveness.insert("initialDelaySeconds".into(), patience.into());
        }
        let Some(mut readiness) = container.remove("readinessProbe").or(startup) else { return };
        for (field, value) in [("initialDelaySeconds", 0), ("periodSeconds", 1), ("failureThreshold", 3)] {
            readiness[field] = value.into();
        }
        container.insert("readinessProbe".into(), readiness);
    }
}

fn value_of<'a>(argument: &'a str, flag: &str) -> Option<&'a str> {
    argument.strip_prefix("--")?.strip_prefix(flag)?.strip_prefix('=')
}

/// Appends to a list, which may not exist yet.
fn push(map: &mut Map<String, Value>, list: &str, item: Value) {
    match map.get_mut(list).and_then(Value::as_array_mut) {
        Some(list) => list.push(item),
        None => drop(map.insert(list.into(), json!([item]))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const VERSIONS: [&str; 3] = ["1.20", "1.31", "1.36"];
    const NAMES: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

    /// The manifests that kubeadm writes.
    fn written_by_kubeadm(version: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubeadm").join(version)
    }

    fn each(check: impl Fn(&str, &str, StaticPod)) {
        for version in VERSIONS {
            for name in NAMES {
                check(version, name, read_from(&written_by_kubeadm(version), name).unwrap());
            }
        }
    }

    fn again(pod: &StaticPod, name: &str) -> StaticPod {
        StaticPod::parse(&pod.path, name, &pod.to_yaml().unwrap()).unwrap()
    }

    #[test]
    fn a_manifest_that_nobody_changed_is_written_back_as_it_was() {
        each(|version, name, pod| {
            assert_eq!(again(&pod, name).pod, pod.pod, "{version} {name}");
            let text = fs::read_to_string(&pod.path).unwrap();
            assert_eq!(pod.to_yaml().unwrap(), text, "{version} {name}: not kubeadm's layout");
        });
    }

    #[test]
    fn what_is_requested_of_the_cpu_is_changed_alone() {
        each(|version, name, mut pod| {
            let memory = pod.container()["resources"]["requests"].get("memory").cloned();
            pod.request_cpu("10m");
            let requests = again(&pod, name).container()["resources"]["requests"].clone();
            assert_eq!((&requests["cpu"], requests.get("memory")), (&json!("10m"), memory.as_ref()), "{version} {name}");
        });
    }

    #[test]
    fn a_flag_has_the_new_value_alone() {
        each(|version, name, mut pod| {
            let before = pod.command().len();
            pod.set_flag("leader-elect", "false");
            pod.set_flag("leader-elect", "false");
            let pod = again(&pod, name);
            assert_eq!(pod.flag("leader-elect"), Some("false"));
            let had_it = ["kube-controller-manager", "kube-scheduler"].contains(&name);
            assert_eq!(pod.command().len(), before + usize::from(!had_it), "{version} {name}: {:?}", pod.command());
            assert_eq!(pod.command()[0], name);
        });
        let etcd = read_from(&written_by_kubeadm("1.36"), "etcd").unwrap();
        assert_eq!(etcd.flag("name"), Some("kind"));
        assert_eq!(etcd.flag("initial-cluster"), Some("kind=https://172.99.99.1:2380"));
        assert_eq!(etcd.flag("initial"), None, "part of a flag's name");
    }

    #[test]
    fn a_directory_is_mounted_whether_or_not_there_are_others() {
        let mount = |mut pod: StaticPod, name: &str| {
            pod.mount("data", "/tmp/data");
            let pod = again(&pod, name).pod;
            let last = |list: &Value| list.as_array().unwrap().last().unwrap().clone();
            assert_eq!(last(&pod["spec"]["volumes"])["hostPath"]["path"], "/tmp/data");
            assert_eq!(last(&pod["spec"]["containers"][0]["volumeMounts"])["mountPath"], "/tmp/data");
        };
        each(|_, name, pod| mount(pod, name));
        mount(StaticPod::parse(Path::new("a.yaml"), "a", "spec: {containers: [{name: a, command: [a]}]}").unwrap(), "a");
    }

    #[test]
    fn a_command_runs_through_another_one_and_flags_are_still_found() {
        each(|version, name, mut pod| {
            let before = pod.command().len();
            pod.run_through(&["/usr/local/bin/kind", "stand-in", name]);
            pod.mount_file("init", "/usr/local/bin/kind");
            let pod = again(&pod, name);
            assert_eq!(pod.command()[..4], ["/usr/local/bin/kind", "stand-in", name, name], "{version} {name}");
            assert_eq!(pod.command().len(), before + 3);
            assert_eq!(pod.flag("data-dir"), (name == "etcd").then_some("/var/lib/etcd"));
            assert_eq!(pod.path_of_its_own(), None, "{version} {name}");
        });
    }

    #[test]
    fn a_path_that_only_the_container_has_is_found() {
        let pod = |mount: &str, volume: &str| {
            let text = format!("spec: {{containers: [{{name: a, command: [a], env: [{{name: X, value: x}}], volumeMounts: [{{name: v, {mount}}}]}}], volumes: [{{name: v, {volume}}}]}}");
            StaticPod::parse(Path::new("a.yaml"), "a", &text).unwrap()
        };
        for (mount, volume, own) in [
            ("mountPath: /etc/audit", "hostPath: {path: /etc/audit}", None),
            ("mountPath: /etc/audit", "hostPath: {path: /srv/audit}", Some("/etc/audit")),
            ("mountPath: /etc/audit", "emptyDir: {}", Some("/etc/audit")),
            ("mountPath: /etc/audit, subPath: x", "hostPath: {path: /etc/audit}", Some("/etc/audit")),
        ] {
            assert_eq!(pod(mount, volume).path_of_its_own(), own, "{mount} {volume}");
            assert_eq!(pod(mount, volume).variables(), ["X"]);
        }
    }

    #[test]
    fn each_static_pod_has_one_readiness_probe_every_second_and_a_patient_liveness_probe() {
        each(|version, name, mut pod| {
            let old = pod.container().clone();
            pod.probe_readiness_every_second();
            let new = again(&pod, name).container().clone();
            let whose = format!("{version} {name}");
            assert!(!new.contains_key("startupProbe"), "{whose}");
            let readiness = &new["readinessProbe"];
            let handler = old.get("readinessProbe").unwrap_or(&old["startupProbe"]);
            assert_eq!(readiness["httpGet"], handler["httpGet"], "{whose}");
            assert_eq!(readiness["timeoutSeconds"], 15, "{whose}");
            assert_eq!((&readiness["periodSeconds"], &readiness["failureThreshold"]), (&json!(1), &json!(3)), "{whose}");
            assert_eq!(readiness["initialDelaySeconds"], 0, "{whose}");
            assert_eq!(new["livenessProbe"]["httpGet"], old["livenessProbe"]["httpGet"], "{whose}");
            assert_eq!(new["livenessProbe"]["initialDelaySeconds"], 250, "{whose}: 24 failures, one every 10 s, after 10 s");
        });
    }

    #[test]
    fn which_probes_a_version_has_makes_no_difference() {
        for (probes, readiness) in [
            ("", Value::Null),
            ("startupProbe: {exec: {command: [up]}}", json!({"exec": {"command": ["up"]}})),
            ("readinessProbe: {exec: {command: [ready]}}", json!({"exec": {"command": ["ready"]}})),
            ("readinessProbe: {exec: {command: [ready]}}, startupProbe: {exec: {command: [up]}}", json!({"exec": {"command": ["ready"]}})),
        ] {
            let text = format!("spec: {{containers: [{{name: beside}}, {{name: a, command: [a], {probes}}}]}}");
            let mut pod = StaticPod::parse(Path::new("a.yaml"), "a", &text).unwrap();
            pod.probe_readiness_every_second();
            let found = pod.container().get("readinessProbe").cloned().unwrap_or_default();
            assert_eq!(found["exec"], readiness["exec"], "{probes}");
            assert!(!pod.container().contains_key("startupProbe") && !pod.container().contains_key("livenessProbe"), "{probes}");
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_mode() {
        let directory = std::env::temp_dir().join(format!("kind-manifest-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("etcd.yaml");
        fs::copy(written_by_kubeadm("1.36").join("etcd.yaml"), &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        edit_in(&directory, "etcd", |pod| {
            pod.set_flag("unsafe-no-fsync", "true");
            Ok(())
        })
        .unwrap();
        assert_eq!(read_from(&directory, "etcd").unwrap().flag("unsafe-no-fsync"), Some("true"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(edit_in(&directory, "etcd", |_| Err(Error::new("no"))).is_err());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "a temporary file is left");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_is_not_a_static_pod_is_named() {
        for text in
            ["", "a: [", "spec: {containers: []}", "spec: {containers: [{name: b, command: [b]}]}", "spec: {containers: [{name: a}]}"]
        {
            let error = StaticPod::parse(Path::new("/m/a.yaml"), "a", text).err().expect(text).to_string();
            assert!(error.contains("/m/a.yaml is not a static pod"), "{error}");
        }
    }
}
