//! Saves the control plane for `restore`, at the end of the bake. Whatever goes wrong here is said in one line, and
//! leaves an image whose control plane is started the plain way.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bake::bundle::BIN_DIR;
use crate::bake::{control_plane, manifest};
use crate::cluster::api::Api;
use crate::config::{CREDENTIALS_DIR, ETCD_DIR, INIT, PARENT, POLL, RESTORED_DIR, RESTORE_DIR, RUN_DIR, STAND_IN, STORE_DIR};
use crate::error::{Error, Result};
use crate::files;
use crate::node::mounts;
use crate::node::store::{self, SNAPSHOTS};
use crate::restore::machine::{self, Machine, GLIBC_TUNABLES};
use crate::restore::parent::{start_file, Start};
use crate::restore::saved::{self, log_of, Program, Saved};
use crate::restore::{criu, kubelet_log, tree, API_SERVER, CONTROLLERS, ETCD, PROGRAMS};
use crate::supervisor::descendants;
use crate::supervisor::reaper;
use crate::versions::SAVED_GODEBUG;

/// How long each of the programs may take to answer. A machine that needs more would save a cluster that has lost its
/// node: the controller-manager gives up kubelet, which does not run now, after 40 s.
const LIMIT: Duration = Duration::from_secs(15);
/// Where the controller-manager and the scheduler listen (their defaults).
const HEALTH_PORTS: [u16; 2] = [10257, 10259];
/// How long the programs have after their last answer to finish what it began, such as closing the connection.
const SETTLING: Duration = Duration::from_secs(2);
/// The capabilities of a container's processes (docs.docker.com, "Runtime privilege and Linux capabilities"): the
/// programs have no others as pods, and a machine may withhold others. CRIU needs one more, because it asks each process
/// for a /proc of its own PID namespace, which only CAP_SYS_ADMIN may mount.
const CAPABILITIES: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap,+sys_admin";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Variables of the containers that the programs keep.
const KEPT_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
/// What the first questions of kubectl, kubelet and kube-proxy make the API server compute, and keep.
const FIRST_QUESTIONS: [&str; 18] = [
    "/version",
    "/api",
    "/apis",
    "/openapi/v3",
    "/openapi/v3/api/v1",
    "/openapi/v3/apis/apps/v1",
    "/api/v1",
    "/apis/apps/v1",
    "/api/v1/nodes",
    "/api/v1/pods",
    "/api/v1/services",
    "/api/v1/namespaces",
    "/api/v1/configmaps",
    "/api/v1/secrets",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/apis/storage.k8s.io/v1/csidrivers",
    "/apis/node.k8s.io/v1/runtimeclasses",
    "/apis/coordination.k8s.io/v1/leases",
];

/// A program as it runs in its container, by which it is found again in the store.
pub struct Running {
    name: &'static str,
    argv: Vec<String>,
    environment: Vec<(String, String)>,
    /// The path in the container.
    path: PathBuf,
    size: u64,
    modified: i64,
}

/// Makes the control plane's containers run `kind stand-in`, which waits for the restored program or becomes the program.
pub fn put_stand_ins() -> Result<()> {
    kubelet_log::check(Path::new(BIN_DIR));
    let put = |name: &&str| {
        manifest::edit(name, |pod| {
            pod.run_through(&[INIT, STAND_IN, name]);
            pod.mount_file("kind", INIT);
            pod.mount("restored", RESTORED_DIR);
            Ok(())
        })
    };
    PROGRAMS.iter().try_for_each(put)
}

/// Looks at the running control plane. Called before it is stopped.
pub fn look() -> Result<Vec<Running>> {
    PROGRAMS.iter().map(|name| look_at(name)).collect()
}

fn look_at(name: &'static str) -> Result<Running> {
    let pod = manifest::read(name)?;
    if let Some(path) = pod.path_of_its_own() {
        return Err(Error::new(format!("{path} in the static pod {name} is not the node's {path}")));
    }
    let own_variables = pod.variables();
    let proc = control_plane::one(name)?.proc();
    let read = |file: &str| fs::read(proc.join(file)).map_err(|cause| Error::io("read", proc.join(file), cause));
    let strings = |bytes: Vec<u8>| -> Vec<String> {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.split_terminator('\0').map(str::to_string).collect()
    };
    let variables = strings(read("environ")?);
    let kept = variables.iter().filter_map(|variable| variable.split_once('='));
    let kept = kept.filter(|(name, _)| KEPT_VARIABLES.contains(name) || own_variables.contains(name));
    let environment = kept.map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let executable = proc.join("exe");
    let path = fs::read_link(&executable).map_err(|cause| Error::io("read", &executable, cause))?;
    let metadata = fs::metadata(&executable).map_err(|cause| Error::io("read", &executable, cause))?;
    let user = fs::metadata(&proc).map_err(|cause| Error::io("read", &proc, cause))?.uid();
    if user != 0 {
        // Its stand-in could not reach the owner.
        return Err(Error::new(format!("{name} runs as user {user}, and only programs that run as root can be saved")));
    }
    Ok(Running { name, argv: strings(read("cmdline")?), environment, path, size: metadata.len(), modified: metadata.mtime() })
}

impl Running {
    /// The same executable among the layers of the store, from which it runs when it is restored.
    fn in_store(&self) -> Result<PathBuf> {
        let path = self.path.strip_prefix("/").unwrap_or(&self.path);
        let layers = store::read_dir(&Path::new(STORE_DIR).join(SNAPSHOTS))?;
        let is_same = |file: &PathBuf| {
            fs::symlink_metadata(file).is_ok_and(|found| found.is_file() && (found.len(), found.mtime()) == (self.size, self.modified))
        };
        let found = layers.iter().map(|layer| layer.join("fs").join(path)).find(is_same);
        found.ok_or_else(|| Error::new(format!("{} is in none of the image's layers", self.path.display())))
    }
}

/// Saves the control plane. Nothing else of the cluster may run. The data that a plain start begins with stays as it is.
pub fn control_plane(running: Result<Vec<Running>>, static_ip: Ipv4Addr) {
    let began = Instant::now();
    let clean = Path::new(RUN_DIR).join("etcd");
    let done = running.and_then(|running| {
        copy(Path::new(ETCD_DIR), &clean)?;
        let saved = save(&running, static_ip);
        files::clear(ETCD_DIR)?;
        copy(&clean, Path::new(ETCD_DIR))?;
        saved
    });
    let _ = fs::remove_dir_all(&clean);
    match done {
        Ok(bytes) => {
            let (megabytes, seconds) = (bytes / 1_000_000, began.elapsed().as_secs_f64());
            log::info!(target: "bake", "control plane saved in {seconds:.1} s ({megabytes} MB): starts will restore it");
        }
        Err(error) => {
            let _ = fs::remove_dir_all(RESTORE_DIR);
            log::warn!(target: "bake", "the control plane could not be saved, so starts will be cold: {error}");
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    mounts::make_dir(to)?;
    reaper::run(Command::new("cp").args(["-a", "--sparse=always"]).arg(from.join(".")).arg(to)).map(drop)
}

fn save(running: &[Running], static_ip: Ipv4Addr) -> Result<u64> {
    let machine = Machine::here();
    if let Some(why) = machine.lacks() {
        return Err(Error::new(why));
    }
    // The memory that is saved has the cluster's keys in it.
    mounts::make_dir(RESTORE_DIR)?;
    let private = fs::set_permissions(RESTORE_DIR, Permissions::from_mode(0o700));
    private.map_err(|cause| Error::io("make private", RESTORE_DIR, cause))?;
    mounts::make_dir(saved::images_dir())?;
    mounts::make_dir(RESTORED_DIR)?;
    let root = start_parent(running, &machine)?;
    let saved = run_and_dump(running, root, machine, static_ip);
    tree::kill(root);
    let _ = fs::remove_dir_all(RESTORED_DIR);
    let saved = saved?;
    saved.write()?;
    Ok(saved.images.values().sum())
}

fn start_parent(running: &[Running], machine: &Machine) -> Result<i32> {
    let go_debug = format!("{SAVED_GODEBUG}{}", machine.go_debug());
    let variables = [("PATH", PATH), ("GODEBUG", &go_debug), ("GLIBC_TUNABLES", GLIBC_TUNABLES)];
    let variables = variables.map(|(name, value)| (name.to_string(), value.to_string()));
    let start = |program: &Running| {
        let environment = [&variables, program.environment.as_slice()].concat();
        Ok(Start { name: program.name.into(), executable: program.in_store()?, argv: program.argv.clone(), environment })
    };
    let programs: Vec<Start> = running.iter().map(start).collect::<Result<_>>()?;
    let programs = serde_json::to_string(&programs).expect("strings can always be written as JSON");
    // A name of its own, since CRIU wants the same file again, and /usr/local/bin/kind may be replaced by a newer one.
    let parent = Path::new(RESTORE_DIR).join("parent");
    let ours = std::env::current_exe().map_err(|cause| Error::new(format!("cannot find this program: {cause}")))?;
    fs::hard_link(&ours, &parent).or_else(|_| fs::copy(&ours, &parent).map(drop)).map_err(|cause| Error::io("write", &parent, cause))?;
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "setpriv", &format!("--bounding-set={CAPABILITIES}"), "--inh-caps=-all"]);
    command.arg(&parent).arg(PARENT).arg(programs);
    command.env_clear().envs(variables).stdout(Stdio::null()).stderr(Stdio::null());
    let unshare = reaper::spawn(&mut command)?.handle().pid();
    let root = || descendants::children(unshare).ok()?.first().copied();
    reaper::poll(POLL, LIMIT, root).ok_or_else(|| Error::new("the process above the control plane's programs did not start"))
}

fn run_and_dump(running: &[Running], root: i32, machine: Machine, static_ip: Ipv4Addr) -> Result<Saved> {
    let begin = |name: &str| fs::write(start_file(name), "").map_err(|cause| Error::io("write", start_file(name), cause));
    begin(ETCD)?;
    begin(API_SERVER)?;
    let api = Api::new(Path::new(CREDENTIALS_DIR), static_ip)?;
    wait(API_SERVER, || api.is_ready())?;
    CONTROLLERS.iter().try_for_each(|name| begin(name))?;
    wait("the controllers", || HEALTH_PORTS.iter().all(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_ok()))?;
    for path in FIRST_QUESTIONS {
        // An older API server does not know every path.
        if let Err(error) = api.get::<Value>(path) {
            log::debug!(target: "bake", "{error}");
        }
    }
    // Closes its connections, which would be saved with the others.
    drop(api);
    thread::sleep(SETTLING);
    let programs = programs(running, root)?;
    let ports = ports_of(root)?;
    reaper::run(&mut criu::dump(root, Path::new(RESTORED_DIR))).map_err(|error| {
        let log = fs::read_to_string(Path::new(RESTORED_DIR).join(criu::LOG)).unwrap_or_default();
        Error::new(criu::error_in(&log).map_or_else(|| error.to_string(), |error| format!("CRIU: {error}")))
    })?;
    Saved::describe(machine, programs, ports)
}

fn wait(what: &str, mut answers: impl FnMut() -> bool) -> Result<()> {
    let answered = reaper::poll(POLL, LIMIT, || answers().then_some(()));
    answered.ok_or_else(|| Error::new(format!("{what} did not answer within {} s", LIMIT.as_secs())))
}

/// The programs' processes, in the order of `PROGRAMS`.
fn processes(root: i32) -> Result<Vec<i32>> {
    let pids = descendants::children(root)?;
    if pids.len() != PROGRAMS.len() {
        return Err(Error::new(format!("{} of {} programs run", pids.len(), PROGRAMS.len())));
    }
    Ok(pids)
}

fn programs(running: &[Running], root: i32) -> Result<Vec<Program>> {
    let describe = |(pid, program): (i32, &Running)| {
        let log = log_of(program.name);
        let logged = fs::metadata(&log).map_err(|cause| Error::io("read", &log, cause))?.len();
        let pid = tree::inner_pid(pid).ok_or_else(|| Error::new(format!("{} has ended", program.name)))?;
        Ok(Program { name: program.name.into(), pid, argv: program.argv.clone(), logged })
    };
    processes(root)?.into_iter().zip(running).map(describe).collect()
}

/// The local ports of the programs' sockets.
fn ports_of(root: i32) -> Result<BTreeSet<u16>> {
    let mut inodes = BTreeSet::new();
    for pid in processes(root)? {
        let descriptors = store::read_dir(Path::new(&format!("/proc/{pid}/fd")))?;
        inodes.extend(descriptors.iter().filter_map(|fd| socket_inode(&fs::read_link(fd).ok()?)));
    }
    Ok(machine::sockets().filter(|socket| inodes.contains(&socket.inode)).map(|socket| socket.port).collect())
}

/// The inode of a socket, from the link in /proc/PID/fd.
fn socket_inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_have_an_inode() {
        for (link, inode) in [("socket:[4711]", Some(4711)), ("pipe:[4711]", None), ("/dev/null", None), ("socket:[]", None)] {
            assert_eq!(socket_inode(Path::new(link)), inode, "{link}");
        }
    }
}
