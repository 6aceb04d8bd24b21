//! Sets up a private registry, its CA and a mirror, as the environment names them: once, before
//! the daemons start, for both Docker and kubelet.
//!
//! Credentials go to the configuration files of docker and kubelet, CAs to the directory that
//! dockerd and containerd both read. No secret is logged.

use std::fs;
use std::path::Path;

use base64::prelude::{Engine, BASE64_STANDARD};
use serde_json::{json, Value};

use crate::config::{
    older_name, settings, KUBELET_DIR, REGISTRY, REGISTRY_CA, REGISTRY_MIRROR, REGISTRY_PASSWORD, REGISTRY_PASSWORD_FILE, REGISTRY_USER,
};
use crate::error::{Error, Result};
use crate::files;

/// Where dockerd looks for registries' CAs, and containerd too, as configured. A single directory, because
/// containerd 2.1 treats a list of them as one name when it pulls.
pub const CERTS_DIR: &str = "/etc/docker/certs.d";
/// Every Go program trusts the certificates in here. Docker 28 does not look for a mirror's CA in `CERTS_DIR`.
const SYSTEM_CERTS_DIR: &str = "/etc/ssl/certs";
/// root's configuration, because the daemons run as root; dockerd itself pulls with the credentials its client sends.
const DOCKER_CONFIG: &str = "/root/.docker/config.json";
/// kubelet's, in its directory.
pub const KUBELET_LOGIN: &str = "config.json";
const CA_FILE: &str = "kind-registry-ca.crt";

/// Docker Hub's name in a configuration file.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// Docker Hub's server.
pub const DOCKER_HUB_SERVER: &str = "https://registry-1.docker.io";
const DOCKER_HUB_NAMES: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

#[derive(Default)]
pub struct Registries {
    /// Host, with a port if it has one; `None` for Docker Hub.
    registry: Option<String>,
    login: Option<Login>,
    /// PEM.
    ca: Option<Vec<u8>>,
    /// A URL.
    mirror: Option<String>,
    /// For the log: settings that make no sense.
    warnings: Vec<String>,
}

struct Login {
    user: String,
    password: String,
}

impl Registries {
    /// Reads the environment, and the files that it names. The registry and its login are read either all from the names
    /// that begin with KIND_ or all from the older ones, which a job may use for something else. This way a password is
    /// never sent to a registry from the other set of names.
    ///
    /// # Errors
    /// A variable is invalid, or one that it needs is missing; the message names the variable and never the password.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Registries> {
        let get = settings(get);
        let is_ours = [REGISTRY, REGISTRY_USER, REGISTRY_PASSWORD, REGISTRY_PASSWORD_FILE].iter().any(|name| get(name).is_some());
        let mut warnings = vec![];
        let (registry, login) = match registry_and_login(&get, |name| if is_ours { name } else { older_name(name) }) {
            Err(error) if !is_ours => {
                warnings
                    .push(format!("{error}. It is ignored: the names of kind's own settings are {REGISTRY}, {REGISTRY_USER} and so on"));
                (None, None)
            }
            named => named?,
        };
        let mirror = get(REGISTRY_MIRROR).map(|text| mirror(&text)).transpose()?;
        let ca = get(REGISTRY_CA).map(|text| ca(&text)).transpose()?;
        if ca.is_some() && registry.is_none() && mirror.is_none() {
            return Err(Error::new(format!("{REGISTRY_CA} is set, but neither {REGISTRY} nor {REGISTRY_MIRROR}, to which it would apply")));
        }
        Ok(Registries { registry, login, ca, mirror, warnings })
    }

    /// Writes the daemons' files, below `root`. The directories of this start must be mounted.
    pub fn prepare(&self, root: &Path, with_kubelet: bool) -> Result<()> {
        self.warnings.iter().for_each(|warning| log::warn!(target: "registry", "{warning}"));
        let path = |path: &str| files::below(root, path);
        if let (Some(host), Some(ca)) = (&self.registry, &self.ca) {
            let directory = path(CERTS_DIR).join(host);
            files::make_dir(&directory)?;
            files::replace(directory.join(CA_FILE), ca, 0o644)?;
        }
        if let Some(mirror) = &self.mirror {
            let directory = path(CERTS_DIR).join("docker.io");
            files::make_dir(&directory)?;
            let trusted = path(SYSTEM_CERTS_DIR).join(CA_FILE);
            if let Some(ca) = &self.ca {
                files::make_dir(path(SYSTEM_CERTS_DIR))?;
                files::replace(&trusted, ca, 0o644)?;
            }
            files::replace(directory.join("hosts.toml"), hosts(mirror, self.ca.as_ref().map(|_| &*trusted)), 0o644)?;
        }
        if let Some(login) = &self.login {
            let registry = self.registry.as_deref().unwrap_or(DOCKER_HUB);
            let kubelet = with_kubelet.then(|| path(KUBELET_DIR).join(KUBELET_LOGIN));
            log_in(&path(DOCKER_CONFIG), kubelet.as_deref(), registry, login)?;
            log::info!(target: "registry", "logged in to {registry} as {}", login.user);
        }
        if let Some(mirror) = &self.mirror {
            log::info!(target: "registry", "images of Docker Hub are pulled through {mirror}");
        }
        Ok(())
    }

    /// The URL of a mirror of Docker Hub.
    pub fn mirror(&self) -> Option<&str> {
        self.mirror.as_deref()
    }
}

/// The passwords that this node has been given for registries, with their users and without, and as they are in the files:
/// for keeping them out of what others read.
pub fn passwords() -> Vec<String> {
    let read = |path: &Path| -> Option<Value> { serde_json::from_str(&fs::read_to_string(path).ok()?).ok() };
    let files = [Path::new(DOCKER_CONFIG).to_path_buf(), Path::new(KUBELET_DIR).join(KUBELET_LOGIN)];
    let mut passwords: Vec<String> = files.iter().filter_map(|path| read(path)).flat_map(|config| passwords_in(&config)).collect();
    // The longest first: a shorter one may be a part of it.
    passwords.sort_by_key(|password| std::cmp::Reverse(password.len()));
    passwords.dedup();
    passwords
}

fn passwords_in(config: &Value) -> Vec<String> {
    let logins = config["auths"].as_object().into_iter().flatten();
    let encoded: Vec<&str> = logins.filter_map(|(_, login)| login["auth"].as_str()).collect();
    let decoded = encoded.iter().filter_map(|auth| String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok());
    let alone = decoded.filter_map(|login| login.split_once(':').map(|(_, password)| password.to_string()));
    alone.chain(encoded.iter().map(|auth| auth.to_string())).filter(|password| !password.is_empty()).collect()
}

/// Reads the registry and the login from the variables to which `name` maps our names.
fn registry_and_login(
    get: &impl Fn(&str) -> Option<String>,
    name: impl Fn(&'static str) -> &'static str,
) -> Result<(Option<String>, Option<Login>)> {
    let [registry, user, password, file] = [REGISTRY, REGISTRY_USER, REGISTRY_PASSWORD, REGISTRY_PASSWORD_FILE].map(name);
    let host = get(registry).map(|text| host(registry, &text)).transpose()?;
    let secret = match (get(password), get(file)) {
        (Some(_), Some(_)) => return Err(Error::new(format!("{password} and {file} are both set")).advise("Give one")),
        (Some(password), None) => Some(password),
        (None, Some(path)) => {
            let text = fs::read_to_string(&path).map_err(|cause| Error::io(&format!("read {file}"), &path, cause))?;
            // Editors add a line break at the end.
            Some(text.trim_end_matches(['\r', '\n']).to_string())
        }
        (None, None) => None,
    };
    let login = match (get(user), secret) {
        (Some(user), Some(password)) if !user.contains(':') => Some(Login { user, password }),
        (Some(_), Some(_)) => return Err(Error::new(format!("{user} must not contain a colon, which ends a user name"))),
        (Some(_), None) => return Err(Error::new(format!("{user} is set, but neither {password} nor {file}"))),
        (None, Some(_)) => return Err(Error::new(format!("{password} or {file} is set, but no {user}"))),
        (None, None) => None,
    };
    Ok((host.filter(|host| !DOCKER_HUB_NAMES.contains(&host.as_str())), login))
}

/// Adds the login to those that root's docker already has. kubelet reads only the first file that it
/// finds, which is its own, so that file contains all of them.
fn log_in(docker: &Path, kubelet: Option<&Path>, registry: &str, login: &Login) -> Result<()> {
    let text = files::read_if_there(docker)?.unwrap_or_else(|| "{}".into());
    let config = serde_json::from_str(&text).ok().filter(Value::is_object);
    let mut config =
        config.ok_or_else(|| Error::new(format!("{} is not a JSON object", docker.display())).advise("Fix it or remove it"))?;
    if !config.get("auths").is_some_and(Value::is_object) {
        config["auths"] = json!({});
    }
    config["auths"][registry] = json!({"auth": BASE64_STANDARD.encode(format!("{}:{}", login.user, login.password))});
    let text = config.to_string();
    for file in Some(docker).into_iter().chain(kubelet) {
        files::make_dir(file.parent().unwrap_or(Path::new("/")))?;
        files::replace(file, &text, 0o600)?;
    }
    Ok(())
}

/// `HOST` or `HOST:PORT`, even if it was written as a URL.
fn host(name: &str, text: &str) -> Result<String> {
    let bare = text.trim().trim_start_matches("https://").trim_end_matches('/');
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if bare.is_empty() || !bare.bytes().all(allowed) {
        // A URL may contain a password.
        let text = if text.contains('@') { "…" } else { text };
        return Err(
            Error::new(format!("{name}={text} is not HOST or HOST:PORT")).advise(format!("An example: {REGISTRY}=registry.example.com"))
        );
    }
    Ok(bare.to_string())
}

fn mirror(text: &str) -> Result<String> {
    let bare = text.trim().trim_end_matches('/');
    let rest = bare.strip_prefix("https://").or_else(|| bare.strip_prefix("http://"));
    // A quote would end the string that it is written into.
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains(['"', '\\', '@', ' ', '\n', '?', '#']) => Ok(bare.to_string()),
        _ => Err(Error::new(format!("{REGISTRY_MIRROR} must be an http or https URL without a login"))
            .advise(format!("An example: {REGISTRY_MIRROR}=https://mirror.example.com"))),
    }
}

/// PEM, or the path of a file that contains it.
fn ca(text: &str) -> Result<Vec<u8>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    if text.contains(BEGIN) {
        return Ok(format!("{}\n", text.trim()).into_bytes());
    }
    let contents = fs::read(text).map_err(|cause| {
        Error::io(&format!("read {REGISTRY_CA}"), text, cause)
            .advise("Give certificates as PEM, or the path of a file with them in the container")
    })?;
    if !String::from_utf8_lossy(&contents).contains(BEGIN) {
        return Err(Error::new(format!("{REGISTRY_CA}={text} contains no PEM certificate")));
    }
    Ok(contents)
}

/// containerd's configuration for Docker Hub: first the mirror, then Docker Hub itself if the mirror does not answer.
fn hosts(mirror: &str, ca: Option<&Path>) -> String {
    let ca = ca.map(|path| format!("  ca = \"{}\"\n", path.display())).unwrap_or_default();
    format!("server = \"{DOCKER_HUB_SERVER}\"\n[host.\"{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n{ca}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----";

    fn registries(settings: &[(&str, &str)]) -> Result<Registries> {
        Registries::from_env(|asked| settings.iter().find(|(name, _)| *name == asked).map(|(_, value)| value.to_string()))
    }

    fn root(test: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("kind-registry-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        root
    }

    #[test]
    fn passwords_are_found_alone_and_as_they_are_encoded() {
        let auth = |login: &str| BASE64_STANDARD.encode(login);
        for (config, passwords) in [
            (json!({"auths": {"r.example": {"auth": auth("ci:pa:ss")}}}), vec!["pa:ss".to_string(), auth("ci:pa:ss")]),
            (json!({"auths": {"a": {"auth": auth("ci:")}, "b": {"auth": "?"}, "c": {}}}), vec![auth("ci:"), "?".into()]),
            (json!({"credsStore": "desktop"}), vec![]),
            (json!([]), vec![]),
        ] {
            assert_eq!(passwords_in(&config), passwords, "{config}");
        }
    }

    #[test]
    fn both_files_hold_the_login_beside_those_that_were_there() {
        let root = root("login");
        let docker = root.join("root/.docker/config.json");
        fs::create_dir_all(docker.parent().unwrap()).unwrap();
        fs::write(&docker, r#"{"auths": {"other.example": {"auth": "eDp5"}}, "currentContext": "c"}"#).unwrap();
        let settings =
            [("KIND_REGISTRY", "https://registry.example:5000/"), ("KIND_REGISTRY_USER", "ci"), ("KIND_REGISTRY_PASSWORD", "pa:ss")];
        registries(&settings).unwrap().prepare(&root, true).unwrap();
        for file in [docker, root.join("var/lib/kubelet/config.json")] {
            let config: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
            assert_eq!(config["auths"]["registry.example:5000"]["auth"], BASE64_STANDARD.encode("ci:pa:ss"));
            assert_eq!((&config["auths"]["other.example"]["auth"], &config["currentContext"]), (&json!("eDp5"), &json!("c")));
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_password_may_lie_in_a_file_and_no_registry_means_docker_hub() {
        let root = root("file");
        fs::write(root.join("secret"), "from-file\n").unwrap();
        for registry in ["", "docker.io"] {
            let file = root.join("secret").display().to_string();
            let settings = [("KIND_REGISTRY", registry), ("KIND_REGISTRY_USER", "ci"), ("KIND_REGISTRY_PASSWORD_FILE", &file)];
            registries(&settings).unwrap().prepare(&root, true).unwrap();
            let text = fs::read_to_string(root.join("root/.docker/config.json")).unwrap();
            assert_eq!(text, json!({"auths": {DOCKER_HUB: {"auth": BASE64_STANDARD.encode("ci:from-file")}}}).to_string());
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_ca_is_for_the_registry_and_for_the_mirror() {
        let root = root("ca");
        fs::write(root.join("ca.pem"), PEM).unwrap();
        for ca in [PEM, &root.join("ca.pem").display().to_string()] {
            let settings =
                [("KIND_REGISTRY", "r.example"), ("KIND_REGISTRY_CA", ca), ("KIND_REGISTRY_MIRROR", "https://m.example:5000/hub/")];
            let registries = registries(&settings).unwrap();
            registries.prepare(&root, true).unwrap();
            for file in [root.join("etc/docker/certs.d/r.example"), root.join("etc/ssl/certs")] {
                assert_eq!(fs::read_to_string(file.join(CA_FILE)).unwrap().trim(), PEM, "{}", file.display());
            }
            let hosts = fs::read_to_string(root.join("etc/docker/certs.d/docker.io/hosts.toml")).unwrap();
            assert!(
                hosts.contains("[host.\"https://m.example:5000/hub\"]\n") && hosts.contains("etc/ssl/certs/kind-registry-ca.crt"),
                "{hosts}"
            );
            assert_eq!(registries.mirror(), Some("https://m.example:5000/hub"));
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn nothing_set_is_nothing_done() {
        let root = root("nothing");
        registries(&[("KIND_REGISTRY", "registry.example")]).unwrap().prepare(&root, true).unwrap();
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_named_and_the_password_is_not() {
        let secret = "hunter2";
        for (settings, name) in [
            (&[("KIND_REGISTRY", "a b")][..], "KIND_REGISTRY=a b"),
            (&[("KIND_REGISTRY", "host/path")], "KIND_REGISTRY=host/path"),
            (&[("KIND_REGISTRY", "https://u:hunter2@host")], "KIND_REGISTRY=…"),
            // The job's own variable does not complete it.
            (&[("KIND_REGISTRY_USER", "u"), ("REGISTRY_PASSWORD", secret)], "neither KIND_REGISTRY_PASSWORD nor"),
            (&[("KIND_REGISTRY_USER", "u")], "neither KIND_REGISTRY_PASSWORD nor"),
            (&[("KIND_REGISTRY_PASSWORD", secret)], "no KIND_REGISTRY_USER"),
            (&[("KIND_REGISTRY_USER", "u:v"), ("KIND_REGISTRY_PASSWORD", secret)], "KIND_REGISTRY_USER"),
            (&[("KIND_REGISTRY_USER", "u"), ("KIND_REGISTRY_PASSWORD", secret), ("KIND_REGISTRY_PASSWORD_FILE", "/f")], "both set"),
            (&[("KIND_REGISTRY_USER", "u"), ("KIND_REGISTRY_PASSWORD_FILE", "/no/such")], "/no/such"),
            (&[("KIND_REGISTRY_CA", PEM)], "neither KIND_REGISTRY nor"),
            (&[("KIND_REGISTRY", "r"), ("KIND_REGISTRY_CA", "/no/such")], "/no/such"),
            (&[("KIND_REGISTRY", "r"), ("KIND_REGISTRY_CA", "/dev/null")], "no PEM certificate"),
            (&[("KIND_REGISTRY_MIRROR", "mirror.example")], "KIND_REGISTRY_MIRROR"),
            (&[("KIND_REGISTRY_MIRROR", "https://u:hunter2@m")], "without a login"),
        ] {
            let message = registries(settings).err().unwrap().to_string();
            assert!(message.contains(name) && !message.contains(secret), "{message}");
        }
    }

    #[test]
    fn what_a_job_has_under_an_older_name_is_used_where_it_makes_sense_and_else_a_warning() {
        let root = root("older");
        let settings = [("REGISTRY", "r.example"), ("REGISTRY_USER", "ci"), ("REGISTRY_PASSWORD", "pass")];
        let found = registries(&settings).unwrap();
        found.prepare(&root, false).unwrap();
        assert!(found.warnings.is_empty());
        let config = fs::read_to_string(root.join("root/.docker/config.json")).unwrap();
        assert_eq!(config, json!({"auths": {"r.example": {"auth": BASE64_STANDARD.encode("ci:pass")}}}).to_string());
        fs::remove_dir_all(&root).unwrap();
        for (settings, said) in [
            (&[("REGISTRY", "registry.example.com/team/app")][..], "REGISTRY=registry.example.com/team/app is not HOST"),
            // Its password is not sent to Docker Hub instead.
            (&[("REGISTRY", "host/path"), ("REGISTRY_USER", "ci"), ("REGISTRY_PASSWORD", "hunter2")], "REGISTRY=host/path"),
            (&[("REGISTRY_USER", "ci")], "REGISTRY_USER is set, but neither REGISTRY_PASSWORD nor REGISTRY_PASSWORD_FILE"),
            (&[("REGISTRY_PASSWORD", "hunter2")], "no REGISTRY_USER"),
            (&[("REGISTRY_USER", "u"), ("REGISTRY_PASSWORD_FILE", "/no/such")], "/no/such"),
        ] {
            let found = registries(settings).unwrap();
            assert!(found.warnings.len() == 1 && found.warnings[0].contains(said), "{:?}", found.warnings);
            assert!(!found.warnings[0].contains("hunter2") && found.login.is_none() && found.registry.is_none());
        }
        // Ours are set, so the older names are ignored.
        let both = [("REGISTRY", "host/path"), ("KIND_REGISTRY", "r.example"), ("REGISTRY_USER", "u")];
        let found = registries(&both).unwrap();
        assert!(found.warnings.is_empty() && found.registry.as_deref() == Some("r.example") && found.login.is_none());
    }
}
