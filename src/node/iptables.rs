//! iptables(8) has two backends, nft and legacy, which do not see each other's rules. All daemons in a network
//! namespace must use the same one; we choose it as docker:dind does.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::{Config, API_PORT, RUN_DIR};
use crate::error::{Error, Result};
use crate::files;
use crate::node::cluster_network::ClusterNetwork;
use crate::node::cni::BRIDGE;
use crate::supervisor::reaper;

/// Not empty: legacy. Empty: the image's default, which is nft. Not set: the one that works.
const VARIABLE: &str = "DOCKER_IPTABLES_LEGACY";
/// Where docker:dind has links to the legacy programs under the usual names.
const DIND_DIR: &str = "/usr/local/sbin/.iptables-legacy";
const PROGRAMS: [&str; 6] = ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];
/// These list the legacy backend's tables in this network namespace, if there are any.
const LEGACY_TABLES: [&str; 3] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names", "/proc/net/arp_tables_names"];

/// The backend that the daemons use.
#[derive(Clone, Debug, Default)]
pub struct Iptables {
    /// With the legacy backend, the directory that goes first on the daemons' PATH.
    legacy: Option<PathBuf>,
}

/// Decides which backend the daemons use.
pub fn choose(config: &Config) -> Result<Iptables> {
    let wanted = std::env::var(VARIABLE).ok();
    let tables = LEGACY_TABLES.iter().any(|path| fs::read_to_string(path).is_ok_and(|names| !names.trim().is_empty()));
    let works = |program: &str| reaper::run(Command::new(program).arg("-nL")).is_ok();
    let nft_works = || {
        works("iptables") || {
            load_modules(&["nf_tables"]);
            works("iptables")
        }
    };
    let legacy_works = || {
        load_modules(&["ip_tables", "ip6_tables"]);
        find("iptables-legacy").is_some_and(|program| works(&program.to_string_lossy()))
    };
    let Some(why) = why_legacy(wanted.as_deref(), tables, nft_works, legacy_works) else { return Ok(Iptables::default()) };
    load_modules(&["ip_tables", "ip6_tables"]);
    let legacy = legacy_directory(&config.path(RUN_DIR))?;
    match legacy {
        Some(_) => log::info!(target: "network", "iptables-legacy is used: {why}"),
        None => log::warn!(target: "network", "{why}, but this image has no iptables-legacy: using its iptables"),
    }
    Ok(Iptables { legacy })
}

impl Iptables {
    #[cfg(test)]
    pub fn legacy_in(directory: PathBuf) -> Iptables {
        Iptables { legacy: Some(directory) }
    }

    /// A program of iptables, of the chosen backend.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.put_on_path_of(&mut command);
        command
    }

    /// Makes a command and its children use the chosen backend.
    pub fn put_on_path_of(&self, command: &mut Command) {
        if let Some(directory) = &self.legacy {
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", directory.display()));
        }
    }
}

/// Redirects the API server's Service to the API server until kube-proxy does. Otherwise a pod that connects before
/// that, as CoreDNS does, loses its first packet, and TCP retransmits only after a second.
pub fn redirect_api_service(iptables: &Iptables, static_ip: Ipv4Addr, cluster: &ClusterNetwork) -> Result<()> {
    let to = format!("{static_ip}:{API_PORT}");
    let service = cluster.api_service_ip().to_string();
    let rule = |chain| [chain, "-d", &service, "-p", "tcp", "--dport", "443", "-j", "DNAT", "--to-destination", &to];
    ["PREROUTING", "OUTPUT"].into_iter().try_for_each(|chain| add_nat_rule(iptables, &rule(chain)))
}

/// Masquerades what pods on our bridge send to others: the bridge plugin's own way (`ipMasq`) calls iptables half a dozen
/// times for each pod that starts, and again when it ends. And lets pods reach containers of Docker's under their own
/// addresses, published ports or not: Docker 28 and newer drops what comes to a container from another interface than its
/// network's, in two tables (its `allow-direct-routing` is about published ports alone). Must run before dockerd starts.
pub fn prepare_for_pods(iptables: &Iptables, subnet: &str) -> Result<()> {
    // In a pod, the network namespace outlives the container, with our bridge and these rules.
    if Path::new("/sys/class/net").join(BRIDGE).exists() {
        return Ok(());
    }
    let multicast = "224.0.0.0/4";
    restore(
        iptables,
        &format!(
            "*nat\n-A POSTROUTING -s {subnet} ! -d {multicast} ! -o {BRIDGE} -j MASQUERADE\nCOMMIT\n\
             *filter\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -s {subnet} -j ACCEPT\nCOMMIT\n"
        ),
    )?;
    // A kernel may lack this table, which Docker then has to do without, too.
    if let Err(error) = restore(iptables, &format!("*raw\n-A PREROUTING -s {subnet} -j ACCEPT\nCOMMIT\n")) {
        log::warn!(target: "network", "pods may not reach Docker's containers by their addresses: {error}");
    }
    Ok(())
}

/// Adds rules, as iptables-save(8) writes them.
fn restore(iptables: &Iptables, rules: &str) -> Result<()> {
    files::make_dir(RUN_DIR)?;
    let file = Path::new(RUN_DIR).join("iptables-rules");
    files::write(&file, rules)?;
    reaper::run(iptables.command("iptables-restore").args(["--wait", "--noflush"]).arg(file)).map(drop)
}

/// A reset finds it there, and so does a start in a network namespace that has outlived a container.
fn add_nat_rule(iptables: &Iptables, rule: &[&str]) -> Result<()> {
    let run = |verb: &str| reaper::run(iptables.command("iptables").args(["--wait", "-t", "nat", verb]).args(rule));
    if run("--check").is_err() {
        run("--append")?;
    }
    Ok(())
}

/// Why the legacy backend must be used, or `None` for the default.
fn why_legacy(
    wanted: Option<&str>,
    tables: bool,
    nft_works: impl FnOnce() -> bool,
    legacy_works: impl FnOnce() -> bool,
) -> Option<&'static str> {
    match wanted {
        Some("") => None,
        Some(_) => Some("DOCKER_IPTABLES_LEGACY is set"),
        None if tables => Some("this network namespace has legacy rules"),
        None if nft_works() => None,
        None => legacy_works().then_some("nft does not work here"),
    }
}

/// Loads kernel modules even without /lib/modules: the kernel does so itself when asked for an interface of that name.
pub fn load_modules(modules: &[&str]) {
    for module in modules {
        // Always fails: there is no such interface.
        let _ = reaper::run(Command::new("ip").args(["link", "show", module]));
    }
}

/// A directory with the legacy programs under their usual names.
fn legacy_directory(run: &Path) -> Result<Option<PathBuf>> {
    if Path::new(DIND_DIR).join(PROGRAMS[0]).exists() {
        return Ok(Some(DIND_DIR.into()));
    }
    let directory = run.join("iptables-legacy");
    files::make_dir(&directory)?;
    for name in PROGRAMS {
        let Some(program) = find(&name.replace("tables", "tables-legacy")) else { return Ok(None) };
        let link = directory.join(name);
        match symlink(program, &link) {
            Err(cause) if cause.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::io("link", link, cause)),
            _ => {}
        }
    }
    Ok(Some(directory))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    directories.map(|directory| directory.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backend_is_chosen_as_dind_chooses_it() {
        for (wanted, tables, nft, legacy_works, expected) in [
            (Some("1"), false, true, true, true),
            (Some("0"), false, true, true, true),
            (Some(""), true, false, true, false),
            (None, true, true, true, true),
            (None, false, true, true, false),
            (None, false, false, true, true),
            (None, false, false, false, false),
        ] {
            let chosen = why_legacy(wanted, tables, || nft, || legacy_works);
            assert_eq!(chosen.is_some(), expected, "{wanted:?} {tables} {nft} {legacy_works}");
        }
    }
}
