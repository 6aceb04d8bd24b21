//! `kind reset` and `kind save`: ask the init in this container, and wait until it is done.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use ureq::Agent;

use crate::config::{Config, POLL, STATE_DIR};
use crate::error::{Error, Result};
use crate::node::state_dir::StateDir;
use crate::readiness::files::FAILED;
use crate::readiness::operations::GUARD;
use crate::readiness::target::{BAKED, MAX_WAIT, RESET, SAVE, STOP};
use crate::readiness::Operation;

/// For the answer to arrive after `MAX_WAIT`.
const MORE: Duration = Duration::from_secs(10);
/// Variables that the image itself sets, and that the engine does.
const NOT_PASSED: [&str; 6] = ["PATH", "HOME", "HOSTNAME", "TERM", "DOCKER_TLS_CERTDIR", "KUBECONFIG"];

/// Docker 20.10 writes the container's own configuration into the image, beside the image's; 28.5 does not.
const NOTE: &str =
    "\n\nIt blanks what was passed with -e. An old engine (seen with Docker 20.10) keeps the values in the image all the same, under
ContainerConfig: pass no secret to `docker run`, but to `docker exec`.";

/// Returns what to tell the user.
///
/// # Errors
/// It cannot be done now, or it failed; the error has the reason.
pub fn run(operation: Operation) -> Result<String> {
    let config = Config::from_env(|name| std::env::var(name).ok())?;
    let (began, before) = (Instant::now(), StateDir::current());
    let target = match operation {
        Operation::Reset => format!("{RESET}?wait={MAX_WAIT}"),
        Operation::ResetToBaked => format!("{RESET}?{BAKED}&wait={MAX_WAIT}"),
        Operation::Save => format!("{SAVE}?wait={MAX_WAIT}"),
        Operation::SaveAndStop => format!("{SAVE}?{STOP}"),
    };
    ask(&config, &target, operation)?;
    let took = format!("after {:.1} s", began.elapsed().as_secs_f64());
    Ok(match operation {
        Operation::Save => format!("the cluster is saved, and ready {took}: resets and restarts of this container return to it\n"),
        Operation::Reset | Operation::ResetToBaked => {
            let how = if StateDir::current().is_saved() { "saved" } else { "baked" };
            format!("the cluster is as it was {how}, and ready {took}\n")
        }
        Operation::SaveAndStop => {
            wait_until_saved(&config, &before)?;
            let took = began.elapsed().as_secs_f64();
            format!(
                "the cluster is saved after {took:.1} s, and the container ends. An image of it starts with this cluster:\n\n{}\n",
                commit()
            )
        }
    })
}

fn ask(config: &Config, target: &str, operation: Operation) -> Result<()> {
    let address = loopback(config.files_address());
    let url = format!("http://{address}{target}");
    let limit = Duration::from_secs(MAX_WAIT) + MORE;
    let agent: Agent = Agent::config_builder().proxy(None).http_status_as_error(false).timeout_global(Some(limit)).build().into();
    let answer = agent.post(&url).header(GUARD, operation.name()).send_empty();
    let mut answer = answer.map_err(|cause| match cause {
        ureq::Error::Io(cause) if cause.kind() == ErrorKind::ConnectionRefused => Error::does_not_run_here(),
        cause => Error::new(format!("nothing answers at {address}: {cause}")),
    })?;
    let text = answer.body_mut().read_to_string().unwrap_or_default();
    match answer.status().as_u16() {
        200 | 202 => Ok(()),
        _ => Err(Error::new(text.trim().to_string())),
    }
}

fn wait_until_saved(config: &Config, before: &StateDir) -> Result<()> {
    while StateDir::current() == *before {
        if let Ok(why) = fs::read_to_string(config.path(STATE_DIR).join(FAILED)) {
            return Err(Error::new(why.trim().to_string()));
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// The command that makes an image of this container, without the values that were passed to it with -e: its configuration
/// has them, and an image gets that.
fn commit() -> String {
    let environment = fs::read("/proc/1/environ").unwrap_or_default();
    let environment = String::from_utf8_lossy(&environment);
    let names = environment.split('\0').filter_map(|variable| variable.split_once('=')).map(|(name, _)| name);
    let container = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let blanks = names.filter(|name| !name.is_empty() && !NOT_PASSED.contains(name)).map(|name| format!("--change 'ENV {name}=' "));
    let blanks: String = blanks.collect();
    let note = if blanks.is_empty() { "" } else { NOTE };
    format!("docker commit {blanks}{} IMAGE{note}", container.trim())
}

/// Where a server that listens on `address` is reached from here.
fn loopback(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port()),
        _ => address,
    }
}
