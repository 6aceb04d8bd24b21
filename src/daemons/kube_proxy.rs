//! Waits for kube-proxy, which is a pod.
//!
//! kube-router writes back a whole table of iptables with what it has read before. Rules that kube-proxy makes meanwhile
//! are lost, and after its first rules were, it tries again 30 s later. So kube-router begins when kube-proxy has made them.

use std::time::Duration;

use crate::config::POLL;
use crate::daemons::connect;
use crate::http;
use crate::supervisor::reaper;

/// Its `metricsBindAddress`.
const PORT: u16 = 10249;
/// When it has made its rules the last time, in seconds since 1970, and 0 until then. Its health is good before that.
const METRIC: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
const REQUEST_LIMIT: Duration = Duration::from_secs(1);
/// A cluster may have been baked without it.
const LIMIT: Duration = Duration::from_secs(30);

/// Returns when kube-proxy has made its rules, or has had its time.
pub fn wait() {
    let metrics = || http::get(connect(PORT, REQUEST_LIMIT)?, "/metrics");
    reaper::poll(POLL, LIMIT, || metrics().is_ok_and(|answer| has_made_rules(&String::from_utf8_lossy(&answer))).then_some(()));
}

fn has_made_rules(metrics: &str) -> bool {
    let values = metrics.lines().filter(|line| line.starts_with(METRIC)).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.into_iter().any(|seconds| seconds > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_made_when_the_metric_has_a_time() {
        let metrics = |line: &str| format!("# TYPE {METRIC} gauge\n{line}\nprocess_cpu_seconds_total 1.2\n");
        for (line, made) in [
            (format!("{METRIC} 1.7641048e+09"), true),
            (format!("{METRIC}{{ip_family=\"IPv4\"}} 1.7641048e+09"), true),
            (format!("{METRIC} 0"), false),
            (String::new(), false),
        ] {
            assert_eq!(has_made_rules(&metrics(&line)), made, "{line}");
        }
    }
}
