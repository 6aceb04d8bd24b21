#!/usr/bin/env bash
# Makes sure that a Docker engine answers. Sandboxes and fresh virtual machines have no engine, no
# systemd to start one, and sometimes not all of root's capabilities.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

engine_log=$cache/engine/dockerd.log

answers() { docker version >/dev/null 2>&1; }

# From version 23 Docker asks only for the capabilities that the daemon has itself. Before that, on a
# host that withholds one, --privileged needs our runtime.
check_privileged() {
  withholds_sys_resource || return 0
  local version default
  version=$(docker info --format '{{.ServerVersion}}')
  default=$(docker info --format '{{.DefaultRuntime}}')
  [ "${version%%.*}" -ge 23 ] || [ "$default" = lab ] || die "the running engine (Docker $version)" \
    "cannot run --privileged containers, because this host withholds CAP_SYS_RESOURCE: stop it and run $0 again"
}

start() {
  local engine_flags mtu device
  mkdir -p "$cache/engine"
  choose_engine_flags
  # Packets larger than the host's link accepts would be dropped silently.
  device=$(awk '$2 == "00000000" { print $1; exit }' /proc/net/route)
  mtu=$(cat "/sys/class/net/${device:-lo}/mtu")
  [ "$mtu" -ge 1500 ] || engine_flags+=(--mtu "$mtu")
  # A stale pid file, left when the machine was cloned or killed, keeps dockerd from starting.
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
  die "dockerd does not answer; the end of its log is above, the rest in $engine_log"
}

case $(docker --version 2>/dev/null) in
  podman*) die "the docker command of this machine is podman's, and these recipes need Docker's: remove the package podman-docker, or leave out --debian" ;;
esac
if ! answers; then
  need pgrep:procps dockerd:docker.io iptables:iptables /etc/ssl/certs/ca-certificates.crt:ca-certificates
  # Up to Debian 12 it comes with the package above.
  need docker:docker-cli
  # Where there is an init system, the package has started the engine already.
  ! as_root docker version >/dev/null 2>&1 || answers \
    || die "an engine is running, but $(id -un) may not use it: run this as root, or: sudo usermod -aG docker $(id -un), and log in again"
  answers || { start && timed "Docker engine" wait_for_answer; }
fi
check_privileged
docker info --format 'debian: Docker {{.ServerVersion}} answers: {{.Driver}}, cgroup v{{.CgroupVersion}} ({{.CgroupDriver}})' >&2
