#!/usr/bin/env bash
# Makes a Docker engine answer, so that everything else may take one for granted. Sandboxes and
# fresh virtual machines have no engine, no systemd to start one, and sometimes not all of root.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

engine_log=$cache/engine/dockerd.log

answers() { docker version >/dev/null 2>&1; }

# Docker from 23 on asks for no more than the daemon itself may have; before, --privileged needs our
# runtime where the host withholds a capability.
check_privileged() {
  withholds_sys_resource || return 0
  local version default
  version=$(docker info --format '{{.ServerVersion}}')
  default=$(docker info --format '{{.DefaultRuntime}}')
  [ "${version%%.*}" -ge 23 ] || [ "$default" = lab ] || die "the engine that runs here (Docker $version)" \
    "cannot run --privileged, as this host withholds CAP_SYS_RESOURCE: stop it and run $0 again"
}

start() {
  local engine_flags mtu device
  mkdir -p "$cache/engine"
  choose_engine_flags
  # Packets larger than the host's own link takes would vanish without a word.
  device=$(awk '$2 == "00000000" { print $1; exit }' /proc/net/route)
  mtu=$(cat "/sys/class/net/${device:-lo}/mtu")
  [ "$mtu" -ge 1500 ] || engine_flags+=(--mtu "$mtu")
  # A pid file of a machine that was cloned or killed keeps dockerd from starting.
  pgrep -x dockerd >/dev/null || as_root rm -f /var/run/docker.pid
  as_root setsid dockerd --group "$(id -gn)" "${engine_flags[@]}" \
    >"$engine_log" 2>&1 </dev/null &
  engine=$!
}

wait_for_answer() {
  for _ in $(seq 300); do
    answers && return
    [ -d "/proc/$engine" ] || break
    sleep 0.1
  done
  tail -n 20 "$engine_log" >&2
  die "dockerd does not answer: its last words are above, the rest in $engine_log"
}

if ! answers; then
  need pgrep:procps dockerd:docker.io iptables:iptables /etc/ssl/certs/ca-certificates.crt:ca-certificates
  # Up to Debian 12, the package above has brought it.
  need docker:docker-cli
  # Where there is an init system, the package has started the engine already.
  ! as_root docker version >/dev/null 2>&1 || answers \
    || die "an engine runs, but $(id -un) may not use it: run this as root, or: sudo usermod -aG docker $(id -un), and log in again"
  answers || { start && timed "Docker engine" wait_for_answer; }
fi
check_privileged
docker info --format 'lab: Docker {{.ServerVersion}} answers: {{.Driver}}, cgroup v{{.CgroupVersion}} ({{.CgroupDriver}})' >&2
