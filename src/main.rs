//! `kind`: the init of a container that holds Docker and a whole single-node Kubernetes cluster.
//!
//! `kind bake` builds the cluster into the image, `kind run` starts it. `bake` and `boot` hold the order of
//! the steps; `node` prepares the machine, `daemons` describes what runs on it, `cluster` talks to its API
//! server, and `readiness` decides what clients are told. `restore` has the control plane of a restored start, `save`
//! how it is saved, and `supervisor` what PID 1 has to do.
#![deny(unsafe_code)]

mod ask;
mod bake;
mod boot;
mod cli;
mod cluster;
mod config;
mod daemons;
mod error;
mod files;
mod http;
mod listen;
mod logger;
mod logs;
mod namesake;
mod node;
mod openssl;
mod readiness;
mod restore;
mod save;
mod status;
mod subnet;
mod supervisor;
mod sys;
mod threads;
mod versions;

use std::process::{Command, ExitCode};
use std::sync::Arc;

use log::LevelFilter;
use signal_hook::iterator::Signals;

use crate::bake::Bake;
use crate::cli::{Invocation, Output, Run};
use crate::cluster::certificates::ApiCertificate;
use crate::cluster::kubeconfig;
use crate::cluster::Cluster;
use crate::config::{Config, LOG_DIR, SECRETS, STATE_DIR};
use crate::daemons::client_variables;
use crate::daemons::docker_command;
use crate::daemons::settings::CommandLine;
use crate::error::{Error, Result};
use crate::node::registry::Registries;
use crate::node::{browser, store};
use crate::readiness::client_limits::Clients;
use crate::readiness::files::{WAIT_SCRIPT, WAIT_SCRIPT_TEXT};
use crate::readiness::server::{self, Answers};
use crate::readiness::target::Asked;
use crate::supervisor::{reaper, signals, stop, Init};

fn main() -> ExitCode {
    // Before anything else: the kernel drops signals that PID 1 has no handler for.
    let signals = signals::register();
    sys::unblock_and_unignore_signals();
    sys::share_one_heap();
    // A level that there is not is an error where the other settings are read.
    logger::init(config::log_level(|name| std::env::var(name).ok()).unwrap_or(LevelFilter::Info));
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let done = match cli::parse(&arguments) {
        Ok(Invocation::Run(Run::Command(argv))) => signals.and_then(|signals| run_command(argv, signals)),
        Ok(Invocation::Run(Run::Docker(line))) => signals.and_then(|signals| run_node(line, signals)),
        Ok(Invocation::Bake(bake)) => signals.and_then(|signals| bake_image(bake, signals)),
        Ok(Invocation::Status(Output::Text)) => status::text().map(|text| print(&text)),
        Ok(Invocation::Status(Output::Json)) => status::json().map(|text| print(&text)),
        Ok(Invocation::Healthcheck(service)) => {
            status::is_healthy(service).map(|is_healthy| if is_healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Ok(Invocation::Ask(operation)) => ask::run(operation).map(|text| print(&text)),
        Ok(Invocation::Logs) => Err(logs::run()),
        Ok(Invocation::Namesake(arguments)) => Err(namesake::run(&arguments)),
        Ok(Invocation::ExecWithSocket(argv)) => Err(daemons::dockerd::exec_with_socket(&argv)),
        Ok(Invocation::StandIn(name, argv)) => signals.and_then(|signals| restore::stand_in::run(&name, &argv, signals)),
        Ok(Invocation::AwaitKubeProxy) => {
            daemons::kube_proxy::wait();
            Ok(ExitCode::SUCCESS)
        }
        Ok(Invocation::Parent(programs)) => restore::parent::run(&programs).map(|()| ExitCode::SUCCESS),
        Ok(Invocation::Help) => Ok(print(cli::HELP)),
        Ok(Invocation::Version) => Ok(print(concat!("kind ", env!("CARGO_PKG_VERSION"), "\n"))),
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

fn print(text: &str) -> ExitCode {
    use std::io::Write;
    // A reader that has closed the pipe (`kind status | head -1`) is not an error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn run_node(line: CommandLine, signals: Signals) -> Result<ExitCode> {
    let init = node_init()?;
    let registries = Registries::from_env(|name| std::env::var(name).ok())?;
    SECRETS.iter().for_each(|name| sys::forget_variable(name));
    // dockerd takes the last of several flags, so the command line's flags go last.
    let line = line.after(init.config.dockerd_arguments.clone());
    let settings = boot::Settings { line, registries, ignored: client_variables::take() };
    let state = store::choose_state(&init.config.path("/"))?;
    let cluster = Cluster::load(&state.cluster_file())?;
    init.readiness.clear()?;
    init.readiness.update(|state| state.has_cluster = cluster.is_some());
    init.readiness.publish(WAIT_SCRIPT, WAIT_SCRIPT_TEXT);
    let certificate = cluster.as_ref().map(|cluster| Arc::new(ApiCertificate::new(cluster)));
    let answering = certificate.clone();
    let is_served = move |name: &str| answering.as_ref().is_some_and(|certificate| certificate.is_served_for(name));
    let rewrite = move |file: &str, asked: &Asked| kubeconfig::as_asked_for(file, asked, &is_served);
    let names = cluster.as_ref().map(|cluster| cluster.certificate_names.clone()).unwrap_or_default();
    let may_ask = Box::new(move |host: &str| browser::may_ask(host, &names));
    let clients = Clients { may_ask, send_logs: logs::send, unfit: boot::unfit_to_save };
    let answers = Answers { config: Box::new(rewrite), clients };
    server::serve(&init.config, &init.readiness, init.config.path(STATE_DIR), answers)?;
    in_boot_thread(&init, move |init| match (&cluster, certificate) {
        (Some(cluster), Some(certificate)) => boot::with_cluster(init, &state, cluster, certificate, settings),
        _ => boot::docker_alone(init, settings),
    })?;
    signals::serve(signals, &init, &boot::SIGNALS);
    Ok(ExitCode::SUCCESS)
}

fn bake_image(bake: Bake, signals: Signals) -> Result<ExitCode> {
    let init = node_init()?;
    client_variables::take();
    init.readiness.clear()?;
    in_boot_thread(&init, move |init| {
        bake::bake(init, &bake)?;
        std::process::exit(0);
    })?;
    signals::serve(signals, &init, &boot::SIGNALS);
    Ok(ExitCode::SUCCESS)
}

/// Reads the settings, checks privileges and enters our own cgroup namespace. Must run before any thread starts:
/// unshare(2) changes only the calling thread.
fn node_init() -> Result<Arc<Init>> {
    let config = Config::from_env(|name| std::env::var(name).ok())?;
    node::require_privileges()?;
    // Before anything is written.
    node::require_no_other(&config.path("/"))?;
    logger::copy_to(&config.path(LOG_DIR));
    config.warnings.iter().for_each(|warning| log::warn!(target: "kind", "{warning}"));
    node::cgroup::enter_own_namespace()?;
    become_subreaper();
    Ok(Arc::new(Init::new(config)))
}

/// Makes this process the parent of orphans, and keeps descriptors that it inherited from its children.
fn become_subreaper() {
    sys::close_descriptors_on_exec();
    if std::process::id() == 1 {
        return;
    }
    // With `docker run --init`, for example: orphans would go to that PID 1, and it may not reap them.
    if let Err(cause) = nix::sys::prctl::set_child_subreaper(true) {
        log::warn!(target: "kind", "this is not PID 1 and cannot become a subreaper ({cause}): orphans are left to PID 1");
    }
}

/// Runs `body` in the boot thread. An error there stops what was started and ends the process.
fn in_boot_thread(init: &Arc<Init>, body: impl FnOnce(&Arc<Init>) -> Result<()> + Send + 'static) -> Result<()> {
    let init = init.clone();
    let boot = move || {
        let error = match body(&init) {
            Ok(()) => return,
            Err(_) if init.shutdown.requested() => return,
            Err(error) => error,
        };
        init.fail(&error);
        // A bake stops the cluster itself: after that, the stop knows of no failure.
        let status = match stop::everything(&init, &boot::STOP_ORDER) {
            0 => error.status(),
            status => status,
        };
        std::process::exit(status.into());
    };
    threads::start("boot", boot)
}

/// Runs a command instead of the daemons, as dind's entrypoint does, and reaps and forwards signals for it.
fn run_command(argv: Vec<String>, signals: Signals) -> Result<ExitCode> {
    become_subreaper();
    let (argv, environment) = docker_command::complete(argv);
    let (program, arguments) = argv.split_first().ok_or_else(|| Error::new("no command"))?;
    let mut command = Command::new(program);
    command.args(arguments).envs(environment);
    sys::run_in_foreground_group(&mut command);
    let child = reaper::spawn_foreground(&mut command)?;
    let handle = child.handle();
    let wait = move || std::process::exit(reaper::exit_code(child.wait()).into());
    threads::start("command", wait)?;
    signals::forward(signals, handle);
    Ok(ExitCode::SUCCESS)
}
