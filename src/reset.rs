//! `kind reset`: asks the init in this container for a reset, and waits until the cluster is ready again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ureq::Agent;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::readiness::server::GUARD;
use crate::readiness::target::{MAX_WAIT, RESET};

/// For the answer to arrive after `MAX_WAIT`.
const MORE: Duration = Duration::from_secs(10);

/// Returns what to tell the user.
///
/// # Errors
/// The cluster cannot be reset now, or it failed; the error has the reason.
pub fn run() -> Result<String> {
    let config = Config::from_env(|name| std::env::var(name).ok())?;
    let began = Instant::now();
    let address = loopback(config.files_address);
    let url = format!("http://{address}{RESET}?wait={MAX_WAIT}");
    let limit = Duration::from_secs(MAX_WAIT) + MORE;
    let agent: Agent = Agent::config_builder().proxy(None).http_status_as_error(false).timeout_global(Some(limit)).build().into();
    let (name, value) = GUARD;
    let answer = agent.post(&url).header(name, value).send_empty();
    let mut answer = answer
        .map_err(|cause| Error::new(format!("nothing answers at {address}: {cause}")).advise("Is this a container that runs kind?"))?;
    let text = answer.body_mut().read_to_string().unwrap_or_default();
    match answer.status().as_u16() {
        200 => Ok(format!("the cluster is as it was baked, and ready after {:.1} s\n", began.elapsed().as_secs_f64())),
        _ => Err(Error::new(text.trim().to_string())),
    }
}

/// Where a server that listens on `address` is reached from here.
fn loopback(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port()),
        _ => address,
    }
}
