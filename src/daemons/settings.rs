//! dockerd's command line, as a user of docker:dind writes it, combined with what the cluster needs. dockerd refuses
//! to start if a setting is both in its daemon.json and among its flags.

use serde_json::{Map, Value};

/// Lists that may be partly in the file and partly in flags, and the flag for one item.
const JOINED: [(&str, &str); 2] = [("registry-mirrors", "--registry-mirror"), ("insecure-registries", "--insecure-registry")];

/// Options of networks that are created later, by driver, and the flag for one option.
pub const NETWORK_OPTIONS: &str = "default-network-opts";
const NETWORK_OPTION: &str = "--default-network-opt";

/// The feature that has Docker keep its images in our containerd.
pub const IMAGE_STORE: &str = "containerd-snapshotter";

/// The arguments of `kind run`, read as docker:dind's entrypoint reads them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CommandLine {
    pub flags: Vec<String>,
    /// The first word is `dockerd`: no host and no TLS is added.
    pub explicit: bool,
}

impl CommandLine {
    /// Puts other flags before these, so that these win: dockerd takes the last of several.
    pub fn after(mut self, flags: Vec<String>) -> CommandLine {
        self.flags.splice(0..0, flags);
        self
    }

    pub fn names_hosts(&self) -> bool {
        self.flags.iter().any(|flag| ["-H", "--host"].iter().any(|name| is_flag(flag, name)))
    }

    /// Values of a flag without a short name, in order: dockerd takes the last of several.
    pub fn values_of(&self, flag: &str) -> Vec<String> {
        take(&mut self.flags.clone(), &[flag])
    }

    /// The flags that dockerd gets with a cluster, and the user's own `--config-file`.
    /// Flags that would hide the cluster's images are left out, with a warning.
    pub fn for_cluster(&self) -> (Vec<String>, Option<String>) {
        let mut flags = self.flags.clone();
        let file = take(&mut flags, &["--config-file"]).pop();
        for names in [&["--storage-driver", "-s"][..], &["--containerd"], &["--containerd-namespace"]] {
            for value in take(&mut flags, names) {
                log::warn!(target: "dockerd", "{} {value} is not used: baked images lie in the cluster's containerd", names[0]);
            }
        }
        (flags, file)
    }
}

/// Removes from the settings what the flags set too. Registries of both are joined; otherwise the flag wins.
pub fn without_duplicates(settings: &mut Map<String, Value>, flags: &mut Vec<String>) {
    for feature in take(flags, &["--feature"]) {
        let (name, value) = feature.split_once('=').unwrap_or((&feature, "true"));
        if let Some(Value::Object(features)) = settings.get_mut("features").filter(|_| name != IMAGE_STORE) {
            // As dockerd reads it (Go's ParseBool).
            features.insert(name.into(), ["1", "t", "true"].contains(&value.to_lowercase().as_str()).into());
        }
    }
    let given = |key: &str| flags.iter().any(|flag| names_key(flag, key));
    let doubles: Vec<String> = settings.keys().filter(|key| given(key)).cloned().collect();
    for key in doubles {
        let Some(value) = settings.remove(&key) else { continue };
        if key == NETWORK_OPTIONS {
            // Of several flags for one option, dockerd takes the last: the user's.
            flags.splice(0..0, network_options(&value));
            continue;
        }
        match JOINED.iter().find(|(name, _)| *name == key) {
            Some((_, flag)) => {
                let values = value.as_array().into_iter().flatten().filter_map(Value::as_str);
                flags.extend(values.flat_map(|value| [flag.to_string(), value.to_string()]));
            }
            None => log::info!(target: "dockerd", "the flag for {key} is used instead of daemon.json's setting"),
        }
    }
}

/// The registries that dockerd's file or flags tell it to trust without a certificate.
pub fn insecure_registries(settings: &Map<String, Value>, flags: &[String]) -> Vec<String> {
    let of_file = settings.get("insecure-registries").and_then(Value::as_array).into_iter().flatten();
    let of_flags = take(&mut flags.to_vec(), &["--insecure-registry"]);
    of_file.filter_map(Value::as_str).map(str::to_string).chain(of_flags).collect()
}

/// The flags that correspond to daemon.json's object.
fn network_options(options: &Value) -> Vec<String> {
    let drivers = options.as_object().into_iter().flatten();
    let all = drivers.flat_map(|(driver, options)| options.as_object().into_iter().flatten().map(move |(key, value)| (driver, key, value)));
    all.filter_map(|(driver, key, value)| Some([NETWORK_OPTION.to_string(), format!("{driver}={key}={}", value.as_str()?)]))
        .flatten()
        .collect()
}

/// Whether a flag sets what daemon.json calls `key`: lists are plural there, so `--label` is `labels`.
fn names_key(flag: &str, key: &str) -> bool {
    const SHORT: [(&str, &str); 5] = [("-D", "debug"), ("-l", "log-level"), ("-G", "group"), ("-b", "bridge"), ("-p", "pidfile")];
    if SHORT.iter().any(|(short, long)| *long == key && flag.starts_with(short) && !flag.starts_with("--")) {
        return true;
    }
    // dockerd merges these two itself.
    let Some(name) = flag.strip_prefix("--").and_then(|flag| flag.split('=').next()).filter(|_| key != "runtimes") else { return false };
    let plural = name.strip_suffix('y').map(|stem| format!("{stem}ies"));
    key == name || key.strip_suffix('s') == Some(name) || plural.as_deref() == Some(key)
}

fn is_flag(word: &str, name: &str) -> bool {
    let Some(rest) = word.strip_prefix(name) else { return false };
    // `-Htcp://…` is `-H tcp://…`.
    rest.is_empty() || rest.starts_with('=') || !name.starts_with("--")
}

/// Removes every occurrence of a flag from a command line, and returns the values.
fn take(flags: &mut Vec<String>, names: &[&str]) -> Vec<String> {
    let (mut values, mut rest) = (Vec::new(), Vec::new());
    let mut words = std::mem::take(flags).into_iter();
    while let Some(word) = words.next() {
        match names.iter().find(|name| is_flag(&word, name)) {
            Some(name) if word == **name => values.extend(words.next()),
            Some(name) => values.push(word[name.len()..].trim_start_matches('=').to_string()),
            None => rest.push(word),
        }
    }
    *flags = rest;
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_string).collect()
    }

    #[test]
    fn flags_that_would_hide_the_baked_images_are_left_out() {
        for (line, kept, file) in [
            ("--debug -s overlay2 --mtu 1400", "--debug --mtu 1400", None),
            ("--storage-driver=vfs --containerd /x.sock --containerd-namespace moby -D", "-D", None),
            ("-soverlay2 --config-file /my.json", "", Some("/my.json")),
            ("--config-file=/a --label s=1", "--label s=1", Some("/a")),
        ] {
            let command_line = CommandLine { flags: words(line), explicit: false };
            assert_eq!(command_line.for_cluster(), (words(kept), file.map(String::from)), "{line}");
        }
    }

    #[test]
    fn hosts_are_seen_however_they_are_written() {
        for (line, hosts) in
            [("-H tcp://0.0.0.0:1", true), ("-Hfd://", true), ("--host=unix:///x", true), ("--host-gateway-ip 1.2.3.4", false), ("", false)]
        {
            assert_eq!(CommandLine { flags: words(line), explicit: true }.names_hosts(), hosts, "{line}");
        }
    }

    #[test]
    fn a_flag_wins_over_the_same_setting_of_the_file() {
        let all = json!({"mtu": 1, "dns": ["1.1.1.1"], "debug": true, "labels": ["a"], "runtimes": {}, "tlscert": "/c"});
        for (line, gone) in [
            ("--mtu 1400", vec!["mtu"]),
            ("--dns=8.8.8.8 -D", vec!["dns", "debug"]),
            ("--label b --tlscert /d", vec!["labels", "tlscert"]),
            ("--add-runtime a=b --dns-opt x --default-runtime y", vec![]),
        ] {
            let mut settings = all.as_object().unwrap().clone();
            let mut flags = words(line);
            without_duplicates(&mut settings, &mut flags);
            let mut expected = all.as_object().unwrap().clone();
            gone.iter().for_each(|key| drop(expected.remove(*key)));
            assert_eq!((settings, flags), (expected, words(line)), "{line}");
        }
    }

    #[test]
    fn registries_of_both_are_joined() {
        let mut settings = json!({"registry-mirrors": ["https://a"], "insecure-registries": ["b", "c"]}).as_object().unwrap().clone();
        let mut flags = words("--insecure-registry x --debug");
        assert_eq!(insecure_registries(&settings, &flags), ["b", "c", "x"]);
        without_duplicates(&mut settings, &mut flags);
        assert_eq!(flags, words("--insecure-registry x --debug --insecure-registry b --insecure-registry c"));
        assert_eq!(Value::Object(settings), json!({"registry-mirrors": ["https://a"]}));
    }

    #[test]
    fn options_of_networks_of_both_are_joined_and_the_users_flag_is_the_last() {
        let mut settings = json!({"default-network-opts": {"bridge": {"mtu": "1400", "a": "b=c"}}}).as_object().unwrap().clone();
        let mut flags = words("--default-network-opt=bridge=mtu=1300 --debug");
        without_duplicates(&mut settings, &mut flags);
        let ours = "--default-network-opt bridge=a=b=c --default-network-opt bridge=mtu=1400";
        assert_eq!((settings.len(), flags), (0, words(&format!("{ours} --default-network-opt=bridge=mtu=1300 --debug"))));
    }

    #[test]
    fn features_of_both_are_joined_and_ours_stay() {
        let mut settings = json!({"features": {"containerd-snapshotter": true, "cdi": false}}).as_object().unwrap().clone();
        let mut flags = words("--feature containerd-snapshotter=false --feature=cdi --feature buildkit=0 --debug");
        without_duplicates(&mut settings, &mut flags);
        assert_eq!(flags, words("--debug"));
        assert_eq!(Value::Object(settings), json!({"features": {"containerd-snapshotter": true, "cdi": true, "buildkit": false}}));
    }
}
