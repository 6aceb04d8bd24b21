#!/usr/bin/env bash
# offline.sh COMMAND...: runs a command as on a machine without a network: in a network namespace with
# nothing but loopback, and with a Docker engine of its own that has no images yet.
set -euo pipefail
. "$(dirname "$0")/../../scripts/debian/lib.sh"
log() { echo "offline: $*" >&2; }

[ $# -gt 0 ] || die "usage: offline.sh COMMAND..."
[ "$(id -u)" = 0 ] || die "creating a network namespace needs root: sudo $0 $*"
need dockerd:docker.io docker:docker-cli iptables:iptables ip:iproute2 unshare:util-linux
choose_engine_flags
work=$(mktemp -d "$cache/offline.XXXXXX")
export DOCKER_HOST=unix://$work/docker.sock work

# Runs inside the namespace; the engine is its child and ends with it.
inside() {
  local status=0
  ip link set lo up
  [ -z "$(ip route show)" ] || die "there is a route out: $(ip route show)"
  dockerd --host "$DOCKER_HOST" --data-root "$work/data" --exec-root "$work/run" --pidfile "$work/pid" "$@" >"$work/log" 2>&1 &
  engine=$!
  trap 'kill "$engine"; wait "$engine" || true' EXIT
  for _ in $(seq 300); do
    ! docker version >/dev/null 2>&1 || break
    [ -d "/proc/$engine" ] || break
    sleep 0.1
  done
  docker version >/dev/null 2>&1 || { tail -n 20 "$work/log" >&2; die "the engine without a network does not answer; the end of its log is above"; }
  "${command[@]}" || status=$?
  # Something that the command started may be removing the same containers.
  docker ps --all --quiet | xargs -r docker rm --force --volumes >/dev/null 2>&1 || true
  exit "$status"
}

clean_up() {
  # A killed engine leaves its mounts behind.
  sed -n "s|^[^ ]* \($work/[^ ]*\) .*|\1|p" /proc/mounts | sort -r | xargs -r umount --lazy
  rm -rf "$work"
}
trap clean_up EXIT

command=("$@")
# Functions and arrays do not survive exec, so they are written into the new shell's script.
unshare --net --mount bash -c "$(declare -p lab_dir command; declare -f log die inside)
set -euo pipefail
inside \"\$@\"" inside "${engine_flags[@]}"
