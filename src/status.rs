//! `kind status` and `kind healthcheck`: what the files under `/var/kind` say.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::{Config, CLUSTER_FILE, STATE_DIR};
use crate::error::Result;
use crate::readiness::{DOCKER_READY, FAILED, KUBERNETES_READY, TIMELINE};
use crate::say;

/// Shows the states and the timeline.
pub fn print() -> Result<ExitCode> {
    let states = States::read()?;
    let yes_no = |name| if states.exists(name) { "yes" } else { "no" };
    let mut text = format!("docker-ready      {}\nkubernetes-ready  {}\n", yes_no(DOCKER_READY), yes_no(KUBERNETES_READY));
    if let Some(why) = states.text(FAILED) {
        text.push_str(&format!("failed            {}\n", why.trim_end()));
    }
    if let Some(timeline) = states.text(TIMELINE) {
        text.push_str("\nseconds  milestone\n");
        let lines = timeline.lines().filter_map(|line| line.split_once(' '));
        text.extend(lines.map(|(seconds, name)| format!("{seconds:>7}  {name}\n")));
    }
    say(&text)
}

/// 0 when everything that the image holds is ready, as Docker's HEALTHCHECK wants it.
pub fn healthcheck() -> Result<ExitCode> {
    let states = States::read()?;
    let wanted = if states.has_cluster { KUBERNETES_READY } else { DOCKER_READY };
    Ok(if states.exists(wanted) && !states.exists(FAILED) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct States {
    dir: PathBuf,
    has_cluster: bool,
}

impl States {
    fn read() -> Result<States> {
        let config = Config::from_env(|name| std::env::var(name).ok())?;
        Ok(States { dir: config.path(STATE_DIR), has_cluster: config.path(CLUSTER_FILE).exists() })
    }

    fn exists(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(name)).ok()
    }
}
