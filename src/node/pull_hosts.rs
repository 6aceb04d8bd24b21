//! What containerd, when it pulls for pods, is told about registries. It reads a registry's configuration at every pull.
//!
//! It is what /etc/docker/certs.d holds, which users fill, with two additions: registries that Docker is told to trust
//! without a certificate are trusted too, and images of a registry from which the node has images are asked of the node
//! first (`daemons::local_registry`), so that a pod runs what was built here.
//!
//! dockerd reads a `hosts.toml` below /etc/docker/certs.d too, and would push to the first host there, without its own
//! fallback from HTTPS to HTTP. So what is for containerd alone is in a directory of its own, with links to the rest.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::config::{CRI_CERTS_DIR, RUN_DIR};
use crate::error::{Error, Result};
use crate::files::{self, below, link};
use crate::node::registry::{CERTS_DIR, DOCKER_HUB_SERVER};
use crate::threads;

/// Below `RUN_DIR`, in turns: a pull that reads one finds it whole.
const OWN_DIRS: [&str; 2] = ["certs.d-1", "certs.d-2"];
const FILE: &str = "hosts.toml";
/// The directory that counts for registries that have none.
const DEFAULT: &str = "_default";
const CAPABILITIES: &str = "  capabilities = [\"pull\", \"resolve\"]\n";

/// What is added to Docker's directory.
#[derive(Clone)]
struct Additions {
    /// Registries that need no certificate (`HOST` or `HOST:PORT`).
    insecure: BTreeSet<String>,
    /// The URL of the node's own registry.
    own: Option<String>,
    /// The registries that images of this node are named after.
    of_images: BTreeSet<String>,
}

static ADDITIONS: Mutex<Additions> = Mutex::new(Additions { insecure: BTreeSet::new(), own: None, of_images: BTreeSet::new() });

/// Trusts each of `registries`, unless the user has configured it.
pub fn trust(registries: &[String]) -> Result<()> {
    let insecure: BTreeSet<String> = registries.iter().filter_map(|registry| host(registry)).map(str::to_string).collect();
    let dockers = Path::new(CERTS_DIR);
    for host in insecure.iter().filter(|host| has_own_file(user_directory(dockers, host).as_deref())) {
        log::info!(target: "registry", "{}/{host}/{FILE} is the user's own and stays as it is", dockers.display());
    }
    change(|additions| additions.insecure = insecure)
}

/// From now on the node's own registry is asked first.
pub fn ask_first(own: String) -> Result<()> {
    change(|additions| additions.own = Some(own))
}

/// The registries that images of this node are named after: `ask_first` is for them alone. Elsewhere a pull that fails says
/// what it always said.
pub fn set_hosts_of_images(hosts: BTreeSet<String>) -> Result<()> {
    let is_known = ADDITIONS.lock().unwrap_or_else(PoisonError::into_inner).of_images == hosts;
    if is_known {
        return Ok(());
    }
    change(|additions| additions.of_images = hosts)
}

fn change(change: impl FnOnce(&mut Additions)) -> Result<()> {
    let mut additions = ADDITIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut new = additions.clone();
    change(&mut new);
    write(Path::new("/"), &new)?;
    *additions = new;
    Ok(())
}

/// Follows what a job changes in Docker's directory, in a thread of its own.
///
/// # Errors
/// It can only be read, for example, and then nothing changes there.
pub fn watch() -> Result<()> {
    files::make_dir(CERTS_DIR)?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).map_err(|cause| Error::io("watch", CERTS_DIR, cause))?;
    watch_all(&inotify);
    let watch = move || loop {
        match inotify.read_events() {
            Ok(_) => {
                watch_all(&inotify);
                if let Err(error) = change(|_| ()) {
                    log::warn!(target: "registry", "what has changed in {CERTS_DIR} applies to Docker alone, not to pods: {error}");
                }
            }
            Err(Errno::EINTR) => {}
            Err(cause) => {
                return log::warn!(target: "registry", "cannot watch {CERTS_DIR}: {cause}. What changes there applies to Docker alone, not to pods")
            }
        }
    };
    threads::start("certs", watch)
}

/// The directory, those in it, and the one above, in case it is replaced. To watch one again changes nothing.
fn watch_all(inotify: &Inotify) {
    let changes = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE | AddWatchFlags::IN_CLOSE_WRITE;
    let dockers = Path::new(CERTS_DIR);
    let hosts = entries(dockers).into_iter().filter(|path| path.is_dir());
    for directory in dockers.parent().map(Path::to_path_buf).into_iter().chain([dockers.to_path_buf()]).chain(hosts) {
        // One that has gone is not there to be watched.
        let _ = inotify.add_watch(&directory, changes | AddWatchFlags::IN_ONLYDIR);
    }
}

/// The servers that a pull of a registry's images goes to, as `HOST:PORT`.
pub fn servers(host: &str) -> Vec<String> {
    servers_below(Path::new("/"), host)
}

fn servers_below(root: &Path, host: &str) -> Vec<String> {
    let dockers = below(root, CERTS_DIR);
    let additions = ADDITIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let text = description(user_directory(&dockers, host).as_deref(), host, additions.insecure.contains(host));
    let mut urls: Vec<&str> = text.split(['"', '\'']).filter(|part| part.starts_with("http://") || part.starts_with("https://")).collect();
    let default = if host == "docker.io" { DOCKER_HUB_SERVER.to_string() } else { format!("https://{host}") };
    if urls.is_empty() {
        urls.push(&default);
    }
    urls.into_iter().filter_map(server).collect()
}

/// `HOST:PORT` of a URL.
fn server(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split('/').next().filter(|host| !host.is_empty())?;
    let has_port = host.rsplit(':').next().is_some_and(|port| port != host && port.bytes().all(|byte| byte.is_ascii_digit()));
    Some(if has_port { host.to_string() } else { format!("{host}:{}", if scheme == "http" { 80 } else { 443 }) })
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    files::list(directory).unwrap_or_default()
}

/// Writes the directory anew below `root`, and puts it in the place of the one before.
fn write(root: &Path, additions: &Additions) -> Result<()> {
    let (dockers, to) = (below(root, CERTS_DIR), below(root, CRI_CERTS_DIR));
    let [one, other] = OWN_DIRS.map(|name| below(root, RUN_DIR).join(name));
    let (old, new) = if fs::read_link(&to).is_ok_and(|now| now == one) { (one, other) } else { (other, one) };
    files::remove_tree(&new)?;
    files::make_dir(&new)?;
    for host in additions.insecure.union(&additions.of_images) {
        let own = additions.own.as_ref().filter(|_| additions.of_images.contains(host));
        let is_insecure = additions.insecure.contains(host);
        let directory = user_directory(&dockers, host);
        if own.is_none() && (!is_insecure || has_own_file(directory.as_deref())) {
            continue;
        }
        let text = description(directory.as_deref(), host, is_insecure);
        let to = new.join(directory_name(host));
        files::make_dir(&to)?;
        // A path in the user's file may be relative to it.
        for entry in directory.iter().flat_map(|directory| entries(directory)).filter(|entry| !entry.ends_with(FILE)) {
            link(&entry, to.join(entry.file_name().unwrap_or_default()))?;
        }
        files::replace(to.join(FILE), own.map_or(text.clone(), |own| with_first(&text, own)), 0o644)?;
    }
    for entry in entries(&dockers) {
        let name = entry.file_name().unwrap_or_default();
        if !new.join(directory_name(&name.to_string_lossy())).exists() {
            link(&entry, new.join(name))?;
        }
    }
    link(&new, &to)?;
    files::remove_tree(&old)
}

/// The name of a registry's directory that containerd prefers to the one with a colon.
fn directory_name(host: &str) -> String {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() => format!("{name}_{port}_"),
        _ => host.to_string(),
    }
}

/// The directory in Docker's that counts for a registry.
fn user_directory(dockers: &Path, host: &str) -> Option<PathBuf> {
    [&directory_name(host), host, DEFAULT].map(|name| dockers.join(name)).into_iter().find(|directory| directory.exists())
}

/// A directory's file, unless containerd would look for certificates instead.
fn user_file(directory: &Path) -> Option<String> {
    fs::read_to_string(directory.join(FILE)).ok().filter(|text| !text.is_empty())
}

/// Whether the user has configured this registry, and not only all of them.
fn has_own_file(directory: Option<&Path>) -> bool {
    directory.is_some_and(|directory| !directory.ends_with(DEFAULT) && user_file(directory).is_some())
}

/// A registry's file, without ours. Where it names no server, containerd's default for the registry counts.
fn description(directory: Option<&Path>, host: &str, is_insecure: bool) -> String {
    if is_insecure && !has_own_file(directory) {
        return description_of_insecure(host);
    }
    directory.map(|directory| user_file(directory).unwrap_or_else(|| description_of_certificates(directory))).unwrap_or_default()
}

/// The same as Docker: HTTPS with any certificate, or plain HTTP if the registry does not support HTTPS.
fn description_of_insecure(host: &str) -> String {
    format!(
        "server = \"http://{host}\"\n[host.\"https://{host}\"]\n{CAPABILITIES}  skip_verify = true\n[host.\"http://{host}\"]\n{CAPABILITIES}"
    )
}

/// The certificates in a directory without a file, by the names that Docker knows: `*.crt` of authorities, `*.cert` and
/// `*.key` of a client.
fn description_of_certificates(directory: &Path) -> String {
    let mut paths = entries(directory);
    paths.sort();
    let with = |extension: &str| paths.iter().filter(|path| path.extension().is_some_and(|own| own == extension)).collect::<Vec<_>>();
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    let authorities: Vec<String> = with("crt").into_iter().map(|path| quoted(path)).collect();
    let clients = with("cert").into_iter().map(|path| {
        // Without a file of its own, the key is beside the certificate.
        let key = Some(path.with_extension("key")).filter(|key| key.exists());
        format!("[{}, {}]", quoted(path), quoted(key.as_ref().unwrap_or(path)))
    });
    let clients: Vec<String> = clients.collect();
    let line =
        |name: &str, values: &[String]| if values.is_empty() { String::new() } else { format!("{name} = [{}]\n", values.join(", ")) };
    line("ca", &authorities) + &line("client", &clients)
}

/// Puts our registry before all others. containerd asks them in the order in which their tables are in the file.
fn with_first(text: &str, own: &str) -> String {
    let first_word = |line: &str| line.trim_start().trim_start_matches('[').trim_start().starts_with("host");
    let table = |line: &str| line.trim_start().starts_with('[') && first_word(line);
    // A table cannot be added to keys with dots.
    if text.lines().take_while(|line| !table(line)).any(first_word) {
        return text.to_string();
    }
    let ours = format!("[host.\"{own}\"]\n{CAPABILITIES}");
    let before: usize = text.split_inclusive('\n').take_while(|line| !table(line)).map(str::len).sum();
    let (keys, tables) = text.split_at(before);
    let gap = if keys.is_empty() || keys.ends_with('\n') { "" } else { "\n" };
    format!("{keys}{gap}{ours}{tables}")
}

/// The host of a registry as dockerd takes it; `None` for what is none.
fn host(registry: &str) -> Option<&str> {
    // dockerd ignores the scheme too.
    let host = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    if host.contains('/') {
        log::warn!(target: "registry", "the insecure registries in {registry} apply only to Docker: for pods, name HOST or HOST:PORT");
        return None;
    }
    // The host becomes part of a path and of a quoted string.
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || ['"', '\\'].contains(&c);
    (!host.is_empty() && !host.starts_with('.') && !host.contains(is_odd)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "[host.\"http://127.0.0.1:1\"]\n  capabilities = [\"pull\", \"resolve\"]\n";

    fn set(hosts: &[&str]) -> BTreeSet<String> {
        hosts.iter().map(|host| host.to_string()).collect()
    }

    fn own() -> String {
        "http://127.0.0.1:1".into()
    }

    fn root(test: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("kind-pull-hosts-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for (path, text) in files {
            let path = root.join("etc/docker/certs.d").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            entries(directory).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn insecure_registries_are_described_for_containerd_alone_and_the_users_own_counts() {
        let root = root("insecure", &[("own.example/hosts.toml", "mine")]);
        let pulls = root.join("run/kind/certs.d");
        let none = Additions { insecure: set(&[]), own: None, of_images: set(&["docker.io"]) };
        write(&root, &none).unwrap();
        assert_eq!(names(&pulls), ["own.example"]);
        let registries = ["reg:5000", "http://plain.example/", "own.example", "10.0.0.0/8", "../x", "a\"b", ""];
        let insecure = registries.iter().filter_map(|registry| host(registry)).map(str::to_string).collect();
        for _ in 0..2 {
            write(&root, &Additions { insecure: BTreeSet::clone(&insecure), own: None, of_images: set(&[]) }).unwrap();
            assert_eq!(names(&pulls), ["own.example", "plain.example", "reg_5000_"]);
        }
        assert_eq!(names(&root.join("etc/docker/certs.d")), ["own.example"]);
        assert_eq!(names(&root.join("run/kind")).len(), 2, "one directory and the link to it");
        assert_eq!(fs::read_to_string(pulls.join("own.example/hosts.toml")).unwrap(), "mine");
        let text = fs::read_to_string(pulls.join("reg_5000_/hosts.toml")).unwrap();
        assert!(text.contains("[host.\"https://reg:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n  skip_verify = true\n"), "{text}");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn our_registry_comes_first_for_the_hosts_of_images_and_the_rest_is_as_the_user_has_it() {
        let files = [
            ("mirrored/hosts.toml", "server = \"https://m\"\n[host.\"https://a\"]\n"),
            ("ca:5000/ca.crt", ""),
            ("ca:5000/client.cert", ""),
            ("ca:5000/client.key", ""),
            ("other/hosts.toml", "other"),
            ("relative_1_/hosts.toml", "ca = \"my.pem\""),
            ("relative_1_/my.pem", "pem"),
        ];
        let root = root("first", &files);
        let pulls = root.join("run/kind/certs.d");
        let of_images = set(&["docker.io", "mirrored", "ca:5000", "relative:1", "insecure:2"]);
        let additions = Additions { insecure: set(&["insecure:2"]), own: Some(own()), of_images };
        write(&root, &additions).unwrap();
        assert_eq!(names(&pulls), ["ca_5000_", "docker.io", "insecure_2_", "mirrored", "other", "relative_1_"]);
        let text = |host: &str| fs::read_to_string(pulls.join(host).join(FILE)).unwrap();
        assert_eq!(text("docker.io"), OURS);
        assert_eq!(text("mirrored"), format!("server = \"https://m\"\n{OURS}[host.\"https://a\"]\n"));
        let ca = root.join("etc/docker/certs.d/ca:5000");
        let (ca, client) =
            (ca.join("ca.crt"), ["cert", "key"].map(|end| format!("{:?}", ca.join("client").with_extension(end))).join(", "));
        assert_eq!(text("ca_5000_"), format!("ca = [{ca:?}]\nclient = [[{client}]]\n{OURS}"));
        assert_eq!((text("relative_1_"), text("other")), (format!("ca = \"my.pem\"\n{OURS}"), "other".to_string()));
        assert_eq!(fs::read_to_string(pulls.join("relative_1_/my.pem")).unwrap(), "pem");
        let insecure = text("insecure_2_");
        assert!(insecure.starts_with(&format!("server = \"http://insecure:2\"\n{OURS}[host.\"https://insecure:2\"]\n")), "{insecure}");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_the_user_has_for_all_registries_counts_for_those_of_images_too() {
        let root = root("default", &[("_default/hosts.toml", "server = \"https://all\"\n"), ("ca/ca.crt", "")]);
        let pulls = root.join("run/kind/certs.d");
        let additions = Additions { insecure: set(&["insecure"]), own: Some(own()), of_images: set(&["docker.io", "ca", "insecure"]) };
        write(&root, &additions).unwrap();
        assert_eq!(names(&pulls), ["_default", "ca", "docker.io", "insecure"]);
        let text = |host: &str| fs::read_to_string(pulls.join(host).join(FILE)).unwrap();
        assert_eq!(text("docker.io"), format!("server = \"https://all\"\n{OURS}"));
        assert_eq!(text("_default"), "server = \"https://all\"\n");
        assert!(text("ca").starts_with("ca = [") && text("insecure").starts_with("server = \"http://insecure\"\n"));
        assert_eq!(servers_below(&root, "docker.io"), ["all:443"]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_table_goes_before_the_users_and_after_the_users_keys() {
        for (text, keys, tables) in [
            ("", "", ""),
            ("server = \"s\"", "server = \"s\"\n", ""),
            (
                "a = [\n  [\"x\", \"y\"]\n]\n  [ host.\"h\" ]\n[host.\"i\"]\n",
                "a = [\n  [\"x\", \"y\"]\n]\n",
                "  [ host.\"h\" ]\n[host.\"i\"]\n",
            ),
            ("[header]\n  a = \"b\"\n", "[header]\n  a = \"b\"\n", ""),
        ] {
            assert_eq!(with_first(text, &own()), format!("{keys}{OURS}{tables}"));
        }
        let dotted = "host.\"https://a\".skip_verify = true\n";
        assert_eq!(with_first(dotted, &own()), dotted);
    }

    #[test]
    fn a_pull_goes_to_the_servers_that_its_file_names_or_to_the_registry() {
        let files = [
            ("docker.io/hosts.toml", "server = \"https://registry-1.docker.io\"\n[host.\"http://mirror.example:5000/hub\"]\n"),
            ("ca/ca.crt", ""),
        ];
        let root = root("servers", &files);
        for (host, servers) in [
            ("docker.io", &["registry-1.docker.io:443", "mirror.example:5000"][..]),
            ("ca", &["ca:443"]),
            ("localhost:5000", &["localhost:5000"]),
            ("[::1]", &["[::1]:443"]),
            ("[::1]:5000", &["[::1]:5000"]),
        ] {
            assert_eq!(servers_below(&root, host), servers, "{host}");
        }
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(servers_below(&root, "docker.io"), ["registry-1.docker.io:443"]);
    }
}
