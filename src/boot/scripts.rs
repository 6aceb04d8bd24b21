//! Runs the user's scripts in a node that is up: their environment, and where their output goes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

use crate::config::{ADMIN_KUBECONFIG, NODE_NAME, POLL};
use crate::error::{Error, Result};
use crate::node::cluster_network::ClusterNetwork;
use crate::supervisor::reaper;
use crate::threads;

/// Lines of a failed script's output that its error includes.
const TAIL_LINES: usize = 15;
/// Longest line that is logged in one piece (bytes); longer output without line breaks is split.
const MAX_LINE: u64 = 16 * 1024;
/// How long to wait for a script's last lines after it has ended: a process it left in the background may hold the
/// pipe open forever.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What every script has in its environment, in addition to ours.
pub fn environment(static_ip: Ipv4Addr, cluster: &ClusterNetwork) -> Vec<(&'static str, String)> {
    // A proxy may be needed for pulls, but not to reach the API server.
    let ClusterNetwork { pod_subnet, service_subnet, .. } = cluster;
    let mut direct = format!("localhost,127.0.0.1,{NODE_NAME},{static_ip},{service_subnet},{pod_subnet},.svc,.cluster.local");
    if let Some(more) = std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy")).ok().filter(|more| !more.is_empty()) {
        direct = format!("{direct},{more}");
    }
    vec![("KUBECONFIG", ADMIN_KUBECONFIG.to_string()), ("NO_PROXY", direct.clone()), ("no_proxy", direct)]
}

/// Runs a script with bash, whether it is executable or not, and logs each line of its output.
///
/// # Errors
/// The script ends with a status other than 0, or not within `limit`, or it `is_over` before; the error includes the end of its output.
pub fn run(path: &Path, environment: &[(&'static str, String)], limit: Duration, is_over: impl Fn() -> bool) -> Result<()> {
    let name = path.display();
    log::info!(target: "script", "running {name}");
    let started = Instant::now();
    let (reader, writer) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|cause| Error::new(format!("cannot make a pipe for {name}: {cause}")))?;
    let errors = writer.try_clone().map_err(|cause| Error::new(format!("cannot make a pipe for {name}: {cause}")))?;
    let mut command = Command::new("bash");
    command.arg(path).envs(environment.iter().cloned()).stdout(writer).stderr(errors);
    let child = reaper::spawn(&mut command)?;
    // It holds our write ends of the pipe, so the pipe would never reach its end.
    drop(command);
    let last = Arc::new(Mutex::new(VecDeque::new()));
    let (keeps, ended) = channel::<()>();
    let lines = last.clone();
    threads::start("script", move || {
        // Keeps reading after the script has ended: otherwise SIGPIPE would kill what it left in the background.
        for line in lines_of(File::from(reader)) {
            log::info!(target: "script", "{line}");
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.push_back(line);
            if lines.len() > TAIL_LINES {
                lines.pop_front();
            }
        }
        drop(keeps);
    })?;
    let status = reaper::poll(Duration::ZERO, limit, || match child.wait_timeout(POLL) {
        None if is_over() => Some(None),
        None => None,
        ended => Some(ended),
    });
    let status = status.flatten();
    if status.is_none() {
        child.handle().kill_group();
    }
    let _ = ended.recv_timeout(LAST_LINES);
    let how = match status {
        Some(status) if status.success() => {
            log::info!(target: "script", "{name} done in {:.1} s", started.elapsed().as_secs_f64());
            return Ok(());
        }
        Some(status) => reaper::describe(status).to_string(),
        None => format!("did not finish within {} s and was killed", limit.as_secs()),
    };
    let tail = Vec::from(last.lock().unwrap_or_else(PoisonError::into_inner).clone()).join("\n");
    let separator = if tail.is_empty() { " and wrote nothing" } else { ". The end of its output:\n" };
    Err(Error::new(format!("{name} {how}{separator}{tail}")))
}

fn lines_of(file: File) -> impl Iterator<Item = String> {
    let mut reader = BufReader::new(file);
    std::iter::from_fn(move || {
        use std::io::Read;
        let mut line = Vec::new();
        match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(String::from_utf8_lossy(&line).trim_end().to_string()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_text(text: &str, limit: Duration) -> Result<()> {
        run_text_until(text, limit, || false)
    }

    fn run_text_until(text: &str, limit: Duration, is_over: impl Fn() -> bool) -> Result<()> {
        let path = std::env::temp_dir().join(format!("kind-script-{}-{}.sh", std::process::id(), text.len()));
        std::fs::write(&path, text).unwrap();
        let result = reaper::beside_a_reaper(|| run(&path, &[("KIND_TEST", "passed on".to_string())], limit, is_over));
        std::fs::remove_file(&path).unwrap();
        result
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_script_finds_its_environment_and_needs_no_mode() {
        run_text("[ \"$KIND_TEST\" = 'passed on' ] && [ \"$PWD\" = / ]\n", LONG).unwrap();
    }

    #[test]
    fn a_script_that_fails_is_shown_with_its_last_words_on_either_output() {
        let message = run_text("echo out\necho err >&2\nexit 3\n", LONG).unwrap_err().to_string();
        assert!(message.contains("ended with status 3") && message.ends_with("out\nerr"), "{message}");
        let silent = run_text("exit 4", LONG).unwrap_err().to_string();
        assert!(silent.ends_with("ended with status 4 and wrote nothing"), "{silent}");
    }

    #[test]
    fn a_script_that_takes_too_long_is_killed_with_what_it_started() {
        let started = Instant::now();
        let message = run_text("echo before\nsleep 1000 & sleep 1000\n", Duration::from_millis(300)).unwrap_err().to_string();
        assert!(message.contains("was killed") && message.ends_with("before"), "{message}");
        assert!(started.elapsed() < LONG);
    }

    #[test]
    fn a_script_is_killed_with_what_it_started_when_its_cluster_is_over() {
        let started = Instant::now();
        let message = run_text_until("sleep 1001 & sleep 1001\n", LONG, || started.elapsed() > Duration::from_millis(200)).unwrap_err();
        assert!(started.elapsed() < LONG, "{message}");
    }

    #[test]
    fn a_script_that_writes_much_is_not_kept_in_memory() {
        let peak = || -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let before = peak();
        let message = run_text("yes $(seq 100) | head -c 100000000; echo; echo last; exit 1", LONG).unwrap_err().to_string();
        assert!(message.ends_with("98 99 100\nlast") || message.ends_with("\nlast"), "{message}");
        assert!(peak() - before < 50_000, "{} kB more", peak() - before);
    }

    #[test]
    fn what_a_script_leaves_in_the_background_may_go_on_writing() {
        let file = std::env::temp_dir().join(format!("kind-script-{}-background", std::process::id()));
        let forward = "for i in 1 2 3 4 5; do echo \"Handling connection $i\"; sleep 0.5; done";
        run_text(&format!("{{ {forward}; echo done >{}; }} &\n", file.display()), LONG).unwrap();
        let done = reaper::poll(Duration::from_millis(50), LONG, || file.exists().then_some(()));
        assert!(done.is_some(), "it died of what it wrote after the script's end");
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn what_a_script_leaves_in_the_background_is_not_waited_for() {
        let started = Instant::now();
        run_text("sleep 20 &\n", LONG).unwrap();
        assert!(started.elapsed() < Duration::from_secs(15));
    }
}
