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
mod error;
mod files;
mod gate;
mod init;
mod logger;
mod node;
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

use crate::cli::{Bake, Invocation, Run};
use crate::cluster::Cluster;
use crate::config::{Config, CLUSTER_FILE, STATE_DIR};
use crate::error::{Error, Result};
use crate::init::Init;
use crate::readiness::{WAIT_SCRIPT, WAIT_SCRIPT_TEXT};

/// Our own hidden subcommand, which hands a listening socket on to a daemon.
const EXEC_WITH_SOCKET: &str = "exec-with-socket";

fn main() -> ExitCode {
    sys::share_one_heap();
    logger::init();
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let done = match cli::parse(&arguments) {
        Ok(Invocation::Run(run)) => run_node(run),
        Ok(Invocation::Bake(bake)) => bake_image(bake),
        Ok(Invocation::Status) => status::print(),
        Ok(Invocation::Healthcheck) => status::healthcheck(),
        Ok(Invocation::ExecWithSocket(argv)) => Err(daemons::dockerd::exec_with_socket(&argv)),
        Ok(Invocation::Help) => say(cli::HELP),
        Ok(Invocation::Version) => say(concat!("kind ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            log::error!(target: "kind", "{error}");
            return ExitCode::from(2);
        }
    };
    done.unwrap_or_else(|error| {
        log::error!(target: "kind", "{error}");
        ExitCode::FAILURE
    })
}

pub fn say(text: &str) -> Result<ExitCode> {
    use std::io::Write;
    // A reader that went away is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn run_node(run: Run) -> Result<ExitCode> {
    let flags = match run {
        Run::Command(argv) => return run_command(&argv),
        Run::Docker(flags) => flags,
    };
    let init = node_init()?;
    // The last of several flags wins: the command's.
    let flags = [init.config.dockerd_arguments.clone(), flags].concat();
    let cluster = Cluster::load(&init.config.path(CLUSTER_FILE))?;
    let signals = signals::register()?;
    init.readiness.clear()?;
    init.readiness.publish(WAIT_SCRIPT, WAIT_SCRIPT_TEXT)?;
    let names = cluster.as_ref().map(|cluster| cluster.certificate_names.clone()).unwrap_or_default();
    files::serve(&init.config, init.config.path(STATE_DIR), names)?;
    in_boot_thread(&init, move |init| match &cluster {
        Some(cluster) => boot::with_cluster(init, cluster, flags),
        None => boot::docker_alone(init, flags),
    })?;
    signals::serve(signals, &init);
    Ok(ExitCode::SUCCESS)
}

fn bake_image(bake: Bake) -> Result<ExitCode> {
    let init = node_init()?;
    let signals = signals::register()?;
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
    if std::process::id() != 1 {
        // Orphans would go to the real PID 1, which may not reap them.
        nix::sys::prctl::set_child_subreaper(true).map_err(|cause| Error::new(format!("cannot become a subreaper: {cause}")))?;
    }
    Ok(Arc::new(Init::new(config)))
}

/// Runs `body` in the boot thread. An error there ends the process: nothing that was started can go on.
fn in_boot_thread(init: &Arc<Init>, body: impl FnOnce(&Arc<Init>) -> Result<()> + Send + 'static) -> Result<()> {
    let init = init.clone();
    let boot = move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&init)));
        let error = match result {
            Ok(Ok(())) => return,
            Ok(Err(_)) if init.stop_requested() => return,
            Ok(Err(error)) => error,
            Err(_) => Error::new("the boot thread panicked"),
        };
        init.fail(&error, 1);
        stop::everything(&init);
        std::process::exit(init.status().into());
    };
    let started = thread::Builder::new().name("boot".into()).spawn(boot);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the boot thread: {cause}")))
}

/// Any other command in place of the daemons, as dind's entrypoint allows, under an init.
fn run_command(argv: &[String]) -> Result<ExitCode> {
    let signals = signals::register()?;
    let (program, arguments) = argv.split_first().ok_or_else(|| Error::new("no command"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    sys::lead_foreground(&mut command);
    let child = match reaper::spawn_foreground(&mut command) {
        Ok(child) => child,
        Err(cause) => {
            log::error!(target: "kind", "cannot run {program}: {cause}");
            // As shells have it: not found, or found and not executable.
            return Ok(ExitCode::from(if cause.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }));
        }
    };
    let handle = child.handle();
    thread::spawn(move || std::process::exit(reaper::exit_code(child.wait()).into()));
    signals::forward(signals, handle);
    Ok(ExitCode::SUCCESS)
}
