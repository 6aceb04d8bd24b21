#!/usr/bin/env bash
# offline.sh COMMAND...: runs a command on a machine without a network: in a network namespace that has
# nothing but loopback, with a Docker engine of its own in which there is no image yet.
set -euo pipefail
. "$(dirname "$0")/../../scripts/debian/lib.sh"

[ $# -gt 0 ] || die "usage: offline.sh COMMAND..."
[ "$(id -u)" = 0 ] || die "a network namespace of its own needs root: sudo $0 $*"
need dockerd:docker.io docker:docker-cli iptables:iptables ip:iproute2 unshare:util-linux
choose_engine_flags
work=$(mktemp -d "$cache/offline.XXXXXX")
export DOCKER_HOST=unix://$work/docker.sock work

# Runs in the namespace, where the engine is a child that ends with it.
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
  docker version >/dev/null 2>&1 || { tail -n 20 "$work/log" >&2; die "the engine without a network does not answer; its last words are above"; }
  "${command[@]}" || status=$?
  # What the command has started itself may be removing the same.
  docker ps --all --quiet | xargs -r docker rm --force --volumes >/dev/null 2>&1 || true
  exit "$status"
}

clean_up() {
  # The engine's bundles of mounts end with it; what a killed one leaves is unmounted here.
  sed -n "s|^[^ ]* \($work/[^ ]*\) .*|\1|p" /proc/mounts | sort -r | xargs -r umount --lazy
  rm -rf "$work"
}
trap clean_up EXIT

command=("$@")
# Functions and arrays do not pass through exec: they are written into the new shell's own text.
unshare --net --mount bash -c "$(declare -p lab_dir command; declare -f log die inside)
set -euo pipefail
inside \"\$@\"" inside "${engine_flags[@]}"
