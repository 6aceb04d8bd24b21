//! Saves the control plane for `restore`: its programs run once more, from the final data, and CRIU saves them. Whatever goes
//! wrong here is said in one line, and leaves a cluster whose control plane is started the plain way.
//!
//! They run in a network namespace of their own, where nobody else can connect to them: what is connected would be saved
//! as well, and nobody would be at the other end when it is restored.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{unshare, CloneFlags};

use crate::cluster::api::Api;
use crate::cluster::{API_SERVER, CONTROLLERS, ETCD, PROGRAMS};
use crate::config::{CREDENTIALS_DIR, ETCD_DIR, PARENT, POLL, RESTORED_DIR, RUN_DIR};
use crate::error::{Error, Result};
use crate::files;
use crate::node::state_dir::StateDir;
use crate::restore::machine::{self, Machine, GLIBC_TUNABLES};
use crate::restore::parent::start_file;
use crate::restore::saved::{self, log_of, Program, Saved, Start};
use crate::restore::{criu, tree};
use crate::save::{controller_tokens, finish};
use crate::supervisor::descendants;
use crate::supervisor::reaper;
use crate::versions::SAVED_GODEBUG;

/// How long etcd and the API server may take to answer: several times what a busy machine needs.
const API_SERVER_LIMIT: Duration = Duration::from_secs(60);
/// How long the controllers may take. A machine that needs more would save a cluster that has lost its node: the
/// controller-manager gives up kubelet, which does not run now, after 40 s.
const LIMIT: Duration = Duration::from_secs(15);
/// Where the controller-manager and the scheduler listen (their defaults).
const HEALTH_PORTS: [u16; 2] = [10257, 10259];
/// How long the programs have to finish what they have begun: the controllers their first work, and then the API server what the
/// last answer has left, such as closing the connection.
const SETTLING: Duration = Duration::from_secs(2);
/// The capabilities of a container's processes (docs.docker.com, "Runtime privilege and Linux capabilities"): the
/// programs have no others as pods, and a machine may withhold others. CRIU needs one more, because it asks each process
/// for a /proc of its own PID namespace, which only CAP_SYS_ADMIN may mount.
const CAPABILITIES: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap,+sys_admin";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
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
/// Has Go's runtime collect what the API server's start has left, up to a fifth of its memory. Not served with `--profiling=false`.
const COLLECT_GARBAGE: &str = "/debug/pprof/heap?gc=1";
/// How many times: each gives pages back up to the size that the heap had at the end of the one before (mgcscavenge.go), and
/// after the fourth nothing more was seen to come.
const COLLECTIONS: usize = 6;

/// Settings of the network that decide which addresses there are, the same in the programs' own network.
const SAME_IN_BOTH: [&str; 3] = ["ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6", "ipv6/conf/lo/disable_ipv6"];
/// The local ports of the connections that are saved: above those that Linux gives to anybody's (`ip_local_port_range`), so that
/// no connection of a running node has one of them when they are restored.
const LOCAL_PORTS: (&str, &str) = ("ipv4/ip_local_port_range", "61000 65535");

/// How the programs are to be started when the cluster is saved again: as in the bake.
///
/// # Errors
/// The bake has not saved them, or what they have read then is another now.
pub fn starts() -> Result<Vec<Start>> {
    let saved = Saved::load(StateDir::baked().restore())?.ok_or_else(|| Error::new("the image was baked without a saved state"))?;
    match saved.changed_input() {
        Some(why) => Err(Error::new(why)),
        None => Ok(saved.programs.into_iter().map(|program| program.start).collect()),
    }
}

/// Saves the control plane. Nothing else of the cluster may run. The data that a plain start begins with stays as it is.
pub fn control_plane(state: &StateDir, programs: Result<Vec<Start>>, static_ip: Ipv4Addr) {
    let began = Instant::now();
    let (clean, restore) = (Path::new(RUN_DIR).join("etcd"), state.restore());
    let done = programs.and_then(|programs| {
        copy(Path::new(ETCD_DIR), &clean)?;
        let saved = save(&restore, &programs, static_ip);
        files::clear(ETCD_DIR)?;
        copy(&clean, Path::new(ETCD_DIR))?;
        saved
    });
    let _ = fs::remove_dir_all(&clean);
    match done {
        Ok(bytes) => {
            let (megabytes, seconds) = (bytes / 1_000_000, began.elapsed().as_secs_f64());
            log::info!(target: "save", "control plane saved in {seconds:.1} s ({megabytes} MB)");
        }
        Err(error) => {
            let _ = fs::remove_dir_all(restore);
            log::warn!(target: "save", "the control plane could not be saved, so starts will be cold: {error}");
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    files::make_dir(to)?;
    reaper::run(Command::new("cp").args(["-a", "--sparse=always"]).arg(from.join(".")).arg(to)).map(drop)
}

fn save(restore: &Path, programs: &[Start], static_ip: Ipv4Addr) -> Result<u64> {
    let machine = Machine::here();
    if let Some(why) = machine.lacks() {
        return Err(Error::new(why));
    }
    // The memory that is saved has the cluster's keys in it.
    files::make_dir(restore)?;
    let private = fs::set_permissions(restore, Permissions::from_mode(0o700));
    private.map_err(|cause| Error::io("make private", restore, cause))?;
    files::make_dir(saved::images_in(restore))?;
    files::make_dir(RESTORED_DIR)?;
    let saved = thread::scope(|scope| {
        // A thread, and what it starts, may have a network of their own.
        let run = scope.spawn(move || {
            enter_own_network(static_ip)?;
            let root = start_parent(programs, &machine)?;
            let saved = run_and_dump(restore, programs, root, machine, static_ip);
            tree::kill(root);
            saved
        });
        run.join().unwrap_or_else(|_| Err(Error::new("a thread has panicked")))
    });
    let _ = fs::remove_dir_all(RESTORED_DIR);
    let saved = saved?;
    saved.write()?;
    Ok(saved.images.values().sum())
}

/// Puts this thread into a network of its own, with the node's address.
fn enter_own_network(static_ip: Ipv4Addr) -> Result<()> {
    let setting = |name: &str| Path::new("/proc/sys/net").join(name);
    let same: Vec<_> = SAME_IN_BOTH.iter().filter_map(|name| Some((setting(name), fs::read_to_string(setting(name)).ok()?))).collect();
    unshare(CloneFlags::CLONE_NEWNET).map_err(|cause| Error::new(format!("cannot make a network namespace: {cause}")))?;
    same.iter().try_for_each(|(path, value)| files::write(path, value))?;
    files::write(setting(LOCAL_PORTS.0), LOCAL_PORTS.1)?;
    let ip = |arguments: &[&str]| reaper::run(Command::new("ip").args(arguments)).map(drop);
    ip(&["link", "set", "lo", "up"])?;
    ip(&["address", "add", &format!("{static_ip}/32"), "dev", "lo"])
}

fn start_parent(programs: &[Start], machine: &Machine) -> Result<i32> {
    let go_debug = format!("{SAVED_GODEBUG}{}", machine.go_debug());
    let variables = [("PATH", PATH), ("GODEBUG", &go_debug), ("GLIBC_TUNABLES", GLIBC_TUNABLES)];
    let variables = variables.map(|(name, value)| (name.to_string(), value.to_string()));
    let start = |program: &Start| Start { environment: [&variables, program.environment.as_slice()].concat(), ..program.clone() };
    let programs: Vec<Start> = programs.iter().map(start).collect();
    let programs = serde_json::to_string(&programs).expect("strings can always be written as JSON");
    // A name of its own, since CRIU wants the same file again, and /usr/local/bin/kind may be replaced by a newer one. That of
    // the bake is there for every save.
    let parent = StateDir::baked().restore().join("parent");
    if !parent.exists() {
        let ours = std::env::current_exe().map_err(|cause| Error::new(format!("cannot find this program: {cause}")))?;
        let made = fs::hard_link(&ours, &parent).or_else(|_| fs::copy(&ours, &parent).map(drop));
        made.map_err(|cause| Error::io("write", &parent, cause))?;
    }
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "setpriv", &format!("--bounding-set={CAPABILITIES}"), "--inh-caps=-all"]);
    command.arg(&parent).arg(PARENT).arg(programs);
    command.env_clear().envs(variables).stdout(Stdio::null()).stderr(Stdio::null());
    let unshare = reaper::spawn(&mut command)?.handle().pid();
    let root = || descendants::children(unshare).ok()?.first().copied();
    reaper::poll(POLL, LIMIT, root).ok_or_else(|| Error::new("the process above the control plane's programs did not start"))
}

fn run_and_dump(restore: &Path, starts: &[Start], root: i32, machine: Machine, static_ip: Ipv4Addr) -> Result<Saved> {
    let begin = |name: &str| fs::write(start_file(name), "").map_err(|cause| Error::io("write", start_file(name), cause));
    begin(ETCD)?;
    begin(API_SERVER)?;
    let api = Api::new(Path::new(CREDENTIALS_DIR), static_ip)?;
    wait(API_SERVER, API_SERVER_LIMIT, || api.is_ready())?;
    controller_tokens::with_long_lived_tokens(&api, SETTLING, || {
        CONTROLLERS.iter().try_for_each(|name| begin(name))?;
        wait("the controllers", LIMIT, || HEALTH_PORTS.iter().all(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_ok()))?;
        for path in FIRST_QUESTIONS.into_iter().chain([COLLECT_GARBAGE; COLLECTIONS]) {
            // An older API server does not know every path.
            if let Err(error) = api.ask(path) {
                log::debug!(target: "save", "{error}");
            }
        }
        Ok(())
    })?;
    // Once more: the controllers have run since.
    finish::delete_events(&api);
    // Closes its connections, which would be saved with the others.
    drop(api);
    thread::sleep(SETTLING);
    let programs = programs(starts, root)?;
    let ports = ports_of(root)?;
    reaper::run(&mut criu::dump(root, &saved::images_in(restore), Path::new(RESTORED_DIR))).map_err(|error| {
        let log = fs::read_to_string(Path::new(RESTORED_DIR).join(criu::LOG)).unwrap_or_default();
        Error::new(criu::error_in(&log).map_or_else(|| error.to_string(), |error| format!("CRIU: {error}")))
    })?;
    Saved::describe(restore, machine, programs, ports)
}

fn wait(what: &str, limit: Duration, mut answers: impl FnMut() -> bool) -> Result<()> {
    let answered = reaper::poll(POLL, limit, || answers().then_some(()));
    answered.ok_or_else(|| Error::new(format!("{what} did not answer within {} s", limit.as_secs())))
}

/// The programs' processes, in the order of `PROGRAMS`.
fn processes(root: i32) -> Result<Vec<i32>> {
    let pids = descendants::children(root)?;
    if pids.len() != PROGRAMS.len() {
        return Err(Error::new(format!("{} of {} programs run", pids.len(), PROGRAMS.len())));
    }
    Ok(pids)
}

fn programs(starts: &[Start], root: i32) -> Result<Vec<Program>> {
    let describe = |(pid, start): (i32, &Start)| {
        let log = log_of(&start.name);
        let logged = fs::metadata(&log).map_err(|cause| Error::io("read", &log, cause))?.len();
        let pid = tree::inner_pid(pid).ok_or_else(|| Error::new(format!("{} has ended", start.name)))?;
        Ok(Program { name: start.name.clone(), pid, start: start.clone(), logged })
    };
    processes(root)?.into_iter().zip(starts).map(describe).collect()
}

/// The local ports of the programs' sockets.
fn ports_of(root: i32) -> Result<BTreeSet<u16>> {
    let mut inodes = BTreeSet::new();
    for pid in processes(root)? {
        let descriptors = files::list(Path::new(&format!("/proc/{pid}/fd")))?;
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
