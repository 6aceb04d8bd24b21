//! Runs kubectl, to apply users' manifests. It applies server-side: client-side, kubectl keeps a copy of the object
//! in an annotation, which holds 256 KiB at most, and the CRDs of Argo and Prometheus are larger. Transient errors
//! are retried; anything that the API server refuses fails at once.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::config::ADMIN_KUBECONFIG;
use crate::daemons::without_proxy;
use crate::error::{Error, Result};
use crate::supervisor::reaper;

const PAUSE: Duration = Duration::from_millis(500);
/// Long enough for a kind that was just defined, a webhook whose pods are starting, or a new namespace's service
/// account.
pub const APPLY_LIMIT: Duration = Duration::from_secs(60);
/// The owner of the fields that we apply, as `managedFields` shows it.
const FIELD_MANAGER: &str = "kind";

/// Parts of kubectl's messages for transient errors: the server is down or busy, or something that the object needs
/// does not exist yet.
const TRANSIENT: [&str; 20] = [
    "no matches for kind",
    "could not find the requested resource",
    "failed calling webhook",
    "no endpoints available",
    "error looking up service account",
    "connection refused",
    "connection reset",
    "connection lost",
    "unexpected EOF",
    ": EOF",
    "TLS handshake timeout",
    "i/o timeout",
    "context deadline exceeded",
    "Client.Timeout exceeded",
    "request canceled",
    "etcdserver:",
    "currently unable to handle the request",
    "the server was unable to return a response in the time allotted",
    "Too Many Requests",
    "the object has been modified",
];

/// Applies a file. Returns kubectl's output, a line for each object.
///
/// # Errors
/// The API server refuses it, or it cannot be applied within `limit`. The error has kubectl's message.
pub fn apply(path: &Path, limit: Duration) -> Result<String> {
    let path = path.to_string_lossy();
    let manager = format!("--field-manager={FIELD_MANAGER}");
    run(&["apply", "--server-side", "--force-conflicts", &manager, "-f", &path], limit)
}

/// Runs kubectl as the cluster's administrator. Retries transient errors for up to `limit`.
///
/// # Errors
/// It fails, or is not done within `limit`.
pub fn run(arguments: &[&str], limit: Duration) -> Result<String> {
    retry(limit, |left| command(arguments, left))
}

/// kubectl with `left` seconds. It gives up a request that takes longer, such as one at which a webhook stalls, and says
/// which one it is. Its flags come first, because what follows `--` is none.
fn command(arguments: &[&str], left: u64) -> Command {
    let mut command = Command::new("kubectl");
    command.args(["--kubeconfig", ADMIN_KUBECONFIG, &format!("--request-timeout={left}s")]).args(arguments);
    command
}

fn retry(limit: Duration, command: impl Fn(u64) -> Command) -> Result<String> {
    let (end, mut last) = (Instant::now() + limit, None);
    let done = reaper::poll(PAUSE, limit.saturating_sub(PAUSE), || {
        let left = (end.saturating_duration_since(Instant::now()).as_secs_f64().ceil() as u64).max(1);
        // A second more than its requests: it may wait for something else.
        match reaper::run(without_proxy(&mut reaper::within(left + 1, &command(left)))) {
            Err(error) if is_transient(&error.to_string()) || Instant::now() >= end => {
                last = Some(error);
                None
            }
            result => Some(result),
        }
    });
    done.unwrap_or_else(|| {
        let last = last.map(|error| error.to_string()).unwrap_or_default();
        Err(Error::new(format!("not done after {} s: {last}", limit.as_secs())))
    })
}

fn is_transient(error: &str) -> bool {
    TRANSIENT.iter().any(|words| error.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_transient_errors_are_retried() {
        for error in [
            "error: error parsing /m/a.yaml: error converting YAML to JSON: yaml: line 2: mapping values are not allowed in this context",
            "error: unable to decode \"/m/a.yaml\": no kind \"x\" is registered",
            "The ConfigMap \"a_b\" is invalid: metadata.name: Invalid value: \"a_b\"",
            "Error from server (BadRequest): error when creating \"/m/a.yaml\": strict decoding error: unknown field \"spec.x\"",
            "Error from server (Forbidden): namespaces \"x\" is forbidden",
            "Error from server (NotFound): error when creating \"a.yaml\": namespaces \"x\" not found",
        ] {
            assert!(!is_transient(error), "{error}");
        }
        for error in [
            "resource mapping not found for name: \"a\" namespace: \"\" from \"a.yaml\": no matches for kind \"A\" in version \"x/v1\"",
            "The connection to the server 172.99.99.1:8443 was refused: dial tcp 172.99.99.1:8443: connect: connection refused",
            "Error from server (InternalError): Internal error occurred: failed calling webhook \"x\": no endpoints available for service \"x\"",
            "Error from server: etcdserver: request timed out",
            "Error from server (Forbidden): error looking up service account default/default: serviceaccount \"default\" not found",
            "Get \"https://172.99.99.1:8443/api?timeout=32s\": net/http: TLS handshake timeout",
            "Unable to connect to the server: EOF",
        ] {
            assert!(is_transient(error), "{error}");
        }
    }

    /// Runs a shell in kubectl's place. `$0` is how much time it has.
    fn run_shell(text: &str, limit: Duration) -> Result<String> {
        let shell = |left: u64| {
            let mut shell = Command::new("sh");
            shell.args(["-c", text, &left.to_string()]);
            shell
        };
        reaper::beside_a_reaper(|| retry(limit, shell))
    }

    #[test]
    fn kubectl_is_ended_when_its_time_is_over_and_knows_how_much_it_has() {
        assert_eq!(run_shell("echo $0", Duration::from_secs(60)).unwrap(), "60\n");
        let label = command(&["label", "node", "kind", "--", "tier=ci"], 60);
        let line: Vec<_> = label.get_args().map(|word| word.to_string_lossy()).collect();
        assert_eq!(line.join(" "), format!("--kubeconfig {ADMIN_KUBECONFIG} --request-timeout=60s label node kind -- tier=ci"));
        // As when a webhook stalls.
        for hangs in ["exec sleep 60", "trap '' TERM; sleep 60 & wait; wait"] {
            let began = Instant::now();
            let message = run_shell(hangs, Duration::from_secs(1)).unwrap_err().to_string();
            assert!(began.elapsed() < Duration::from_secs(20) && message.starts_with("not done after 1 s: "), "{message}");
        }
    }

    #[test]
    fn a_transient_error_is_retried_until_the_time_is_over_and_any_other_is_not() {
        let began = Instant::now();
        let message = run_shell("echo connection refused >&2; exit 1", Duration::from_secs(2)).unwrap_err().to_string();
        assert!(message.starts_with("not done after 2 s: ") && message.ends_with("connection refused"), "{message}");
        assert!(began.elapsed() > Duration::from_secs(1), "tried once alone");
        let message = run_shell("echo Forbidden >&2; exit 1", Duration::from_secs(60)).unwrap_err().to_string();
        assert!(message.ends_with("Forbidden") && !message.starts_with("not done"), "{message}");
    }
}
