//! `kind`: the init of a container that holds Docker and a whole single-node Kubernetes cluster.
//!
//! `kind run` starts what is baked into the image, `kind bake` is how it gets there. What either does
//! in which order is in `boot` and `bake`; what a node needs is in `node`, what runs on it in
//! `daemons`, what its API server says in `cluster`.
#![deny(unsafe_code)]

mod bake;
mod boot;
mod cli;
mod clock;
mod cluster;
mod config;
mod daemons;
mod error;
mod listen;
mod logger;
mod node;
mod openssl;
mod readiness;
mod status;
mod supervisor;
mod sys;

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread;

use signal_hook::iterator::Signals;

use crate::bake::Bake;
use crate::cli::{Invocation, Run};
use crate::cluster::{kubeconfig, Cluster};
use crate::config::{Config, CLUSTER_FILE, STATE_DIR};
use crate::daemons::docker_command;
use crate::daemons::settings::CommandLine;
use crate::error::{Error, Result};
use crate::readiness::files::{WAIT_SCRIPT, WAIT_SCRIPT_TEXT};
use crate::readiness::server;
use crate::supervisor::{reaper, signals, stop, Init};

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
        Ok(Invocation::Status) => status::text().map(|text| say(&text)),
        Ok(Invocation::Healthcheck) => {
            status::is_healthy().map(|is_healthy| if is_healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Ok(Invocation::ExecWithSocket(argv)) => Err(daemons::dockerd::exec_with_socket(&argv)),
        Ok(Invocation::ExecWithCapacity(argv)) => Err(node::capacity::exec(&argv)),
        Ok(Invocation::Help) => Ok(say(cli::HELP)),
        Ok(Invocation::Version) => Ok(say(concat!("kind ", env!("CARGO_PKG_VERSION"), "\n"))),
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

fn say(text: &str) -> ExitCode {
    use std::io::Write;
    // A reader that went away is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn run_node(line: CommandLine, signals: Signals) -> Result<ExitCode> {
    let init = node_init()?;
    // The last of several flags wins: the command's.
    let line = line.after(init.config.dockerd_arguments.clone());
    let cluster = Cluster::load(&init.config.path(CLUSTER_FILE))?;
    init.readiness.clear()?;
    init.readiness.publish(WAIT_SCRIPT, WAIT_SCRIPT_TEXT);
    let names = cluster.as_ref().map(|cluster| cluster.certificate_names.clone()).unwrap_or_default();
    let rewrite = move |file: &str, host: Option<&str>, port| kubeconfig::as_asked_for(file, host, port, &names);
    server::serve(&init.config, init.config.path(STATE_DIR), Box::new(rewrite))?;
    in_boot_thread(&init, move |init| match &cluster {
        Some(cluster) => boot::with_cluster(init, cluster, line),
        None => boot::docker_alone(init, line),
    })?;
    signals::serve(signals, &init, &boot::SIGNALS);
    Ok(ExitCode::SUCCESS)
}

fn bake_image(bake: Bake, signals: Signals) -> Result<ExitCode> {
    let init = node_init()?;
    init.readiness.clear()?;
    in_boot_thread(&init, move |init| {
        bake::bake(init, &bake)?;
        std::process::exit(0);
    })?;
    signals::serve(signals, &init, &boot::SIGNALS);
    Ok(ExitCode::SUCCESS)
}

/// What must be right before anything else is tried, and done before any thread starts.
fn node_init() -> Result<Arc<Init>> {
    let config = Config::from_env(|name| std::env::var(name).ok())?;
    node::require_privileges()?;
    node::cgroup::enter_own_namespace()?;
    become_subreaper();
    Ok(Arc::new(Init::new(config)))
}

/// What a process owes its children, whoever started it.
fn become_subreaper() {
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
            Err(_) if init.shutdown.requested() => return,
            Err(error) => error,
        };
        init.fail(&error);
        let status = stop::everything(&init, &boot::STOP_ORDER);
        std::process::exit(status.into());
    };
    let started = thread::Builder::new().name("boot".into()).spawn(boot);
    started.map(drop).map_err(|cause| Error::new(format!("cannot start the boot thread: {cause}")))
}

/// Any other command in place of the daemons, as dind's entrypoint allows, under an init.
fn run_command(argv: Vec<String>, signals: Signals) -> Result<ExitCode> {
    become_subreaper();
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
