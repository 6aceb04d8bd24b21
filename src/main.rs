//! `kind`: the init of a container that holds Docker and a whole single-node Kubernetes cluster.
//!
//! `kind run` starts what is baked into the image, `kind bake` is how it gets there. What either does
//! in which order is in `boot` and `bake`; what a node needs is in `node`, what runs on it in
//! `daemons`, what its API server says in `cluster`.
#![deny(unsafe_code)]

mod bake;
mod boot;
mod cli;
mod cluster;
mod config;
mod daemons;
mod docker_command;
mod error;
mod files;
mod gate;
mod init;
mod logger;
mod node;
mod openssl;
mod readiness;
mod reaper;
mod scripts;
mod signals;
mod status;
mod stop;
mod sys;

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread;

use signal_hook::iterator::Signals;

use crate::cli::{Bake, Invocation, Run};
use crate::cluster::Cluster;
use crate::config::{Config, CLUSTER_FILE, STATE_DIR};
use crate::daemons::settings::CommandLine;
use crate::error::{Error, Result};
use crate::init::Init;
use crate::readiness::{WAIT_SCRIPT, WAIT_SCRIPT_TEXT};

/// Our own hidden subcommand, which hands a listening socket on to a daemon.
const EXEC_WITH_SOCKET: &str = "exec-with-socket";
/// Another, which shows kubelet the container's limits.
const EXEC_WITH_CAPACITY: &str = "exec-with-capacity";

fn main() -> ExitCode {
    // First of all: as PID 1, a signal that nobody has asked for is lost.
    let signals = signals::register();
    sys::unblock_and_unignore_signals();
    sys::share_one_heap();
    logger::init();
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let done = match cli::parse(&arguments) {
        Ok(Invocation::Run(Run::Command(argv))) => signals.and_then(|signals| run_command(argv, signals)),
        Ok(Invocation::Run(Run::Docker(line))) => signals.and_then(|signals| run_node(line, signals)),
        Ok(Invocation::Bake(bake)) => signals.and_then(|signals| bake_image(bake, signals)),
        Ok(Invocation::Status) => status::print(),
        Ok(Invocation::Healthcheck) => status::healthcheck(),
        Ok(Invocation::ExecWithSocket(argv)) => Err(daemons::dockerd::exec_with_socket(&argv)),
        Ok(Invocation::ExecWithCapacity(argv)) => Err(node::capacity::exec(&argv)),
        Ok(Invocation::Help) => say(cli::HELP),
        Ok(Invocation::Version) => say(concat!("kind ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            log::error!(target: "kind", "{error}");
            return ExitCode::from(2);
        }
    };
    done.unwrap_or_else(|error| {
        log::error!(target: "kind", "{error}");
        ExitCode::from(error.status())
    })
}

pub fn say(text: &str) -> Result<ExitCode> {
    use std::io::Write;
    // A reader that went away is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn run_node(line: CommandLine, signals: Signals) -> Result<ExitCode> {
    let init = node_init()?;
    // The last of several flags wins: the command's.
    let line = line.after(init.config.dockerd_arguments.clone());
    let cluster = Cluster::load(&init.config.path(CLUSTER_FILE))?;
    init.readiness.clear()?;
    init.readiness.publish(WAIT_SCRIPT, WAIT_SCRIPT_TEXT)?;
    let names = cluster.as_ref().map(|cluster| cluster.certificate_names.clone()).unwrap_or_default();
    files::serve(&init.config, init.config.path(STATE_DIR), names)?;
    in_boot_thread(&init, move |init| match &cluster {
        Some(cluster) => boot::with_cluster(init, cluster, line),
        None => boot::docker_alone(init, line),
    })?;
    signals::serve(signals, &init);
    Ok(ExitCode::SUCCESS)
}

fn bake_image(bake: Bake, signals: Signals) -> Result<ExitCode> {
    let init = node_init()?;
    init.readiness.clear()?;
    in_boot_thread(&init, move |init| {
        bake::bake(init, &bake)?;
        std::process::exit(0);
    })?;
    signals::serve(signals, &init);
    Ok(ExitCode::SUCCESS)
}

/// What must be right before anything else is tried, and done before any thread starts.
fn node_init() -> Result<Arc<Init>> {
    let config = Config::from_env(|name| std::env::var(name).ok())?;
    node::require_privileges()?;
    node::cgroup::enter_own_namespace()?;
    take_pid_1s_part();
    Ok(Arc::new(Init::new(config)))
}

/// What a process owes its children, whoever started it.
fn take_pid_1s_part() {
    sys::close_descriptors_on_exec();
    if std::process::id() == 1 {
        return;
    }
    // As with `docker run --init`: orphans would go to the real PID 1, which may not reap them.
    if let Err(cause) = nix::sys::prctl::set_child_subreaper(true) {
        log::warn!(target: "kind", "this is not PID 1 and cannot become a subreaper ({cause}): orphans are left to PID 1");
    }
}

/// Runs `body` in the boot thread. An error there ends the process: nothing that was started can go on.
fn in_boot_thread(init: &Arc<Init>, body: impl FnOnce(&Arc<Init>) -> Result<()> + Send + 'static) -> Result<()> {
    let init = init.clone();
    let boot = move || {
        let error = match body(&init) {
            Ok(()) => return,
            Err(_) if init.stop_requested() => return,
            Err(error) => error,
        };
        init.fail(&error, error.status());
        stop::everything(&init);
        std::process::exit(init.status().into());
    };
    let started = thread::Builder::new().name("boot".into()).spawn(boot);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the boot thread: {cause}")))
}

/// Any other command in place of the daemons, as dind's entrypoint allows, under an init.
fn run_command(argv: Vec<String>, signals: Signals) -> Result<ExitCode> {
    take_pid_1s_part();
    let (argv, environment) = docker_command::complete(argv);
    let (program, arguments) = argv.split_first().ok_or_else(|| Error::new("no command"))?;
    let mut command = Command::new(program);
    command.args(arguments).envs(environment);
    sys::lead_foreground(&mut command);
    let child = reaper::spawn_foreground(&mut command)?;
    let handle = child.handle();
    let wait = move || std::process::exit(reaper::exit_code(child.wait()).into());
    let waiting = thread::Builder::new().name("command".into()).spawn(wait);
    waiting.map_err(|cause| Error::new(format!("cannot start the thread that waits for {program}: {cause}")))?;
    signals::forward(signals, handle);
    Ok(ExitCode::SUCCESS)
}
