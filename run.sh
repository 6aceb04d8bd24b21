#!/usr/bin/env bash
# Starts a baked image as a container named kind, waits until its cluster is ready, and shows how long it took.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
image=${1:?usage: ./run.sh IMAGE}

die() { printf 'run: error: %s\n' "$*" >&2; exit 1; }

# shellcheck source=scripts/engine.sh
. "$here/scripts/engine.sh"

# Prints the time in milliseconds. macOS has bash 3.2, which does not know EPOCHREALTIME, and a date that knows no
# fractions of a second, but perl.
now() {
  local time=${EPOCHREALTIME:-}
  time=${time/[.,]/}
  [ -n "$time" ] || time=$(date +%s%N 2>/dev/null | cut -c 1-16)
  case $time in
    *[!0-9]*) ;;
    ????????????????)
      echo "${time%???}"
      return
      ;;
  esac
  perl -MTime::HiRes=time -e 'printf "%d\n", time * 1000' 2>/dev/null || echo "$(date +%s)000"
}

# ask FILE: prints the file server's HTTP status, or nothing if it does not answer. Needs nothing but bash.
ask() {
  local status=''
  { exec 3<>/dev/tcp/127.0.0.1/10080; } 2>/dev/null || return 0
  # Docker's proxy accepts a connection before anybody listens in the container, and then resets it.
  { printf 'GET /%s HTTP/1.0\r\n\r\n' "$1" >&3 && read -r _ status _ <&3; } 2>/dev/null || true
  exec 3>&-
  printf '%s' "$status"
}

has_failed() {
  case $(ask failed) in
    200) return 0 ;;
    '') [ "$("$docker" container inspect --format '{{.State.Running}}' kind)" != true ] ;;
    *) return 1 ;;
  esac
}

find_engine
refuse_other_node
began=$(now)
started=$("$docker" run --detach --name kind --privileged ${node_options[@]+"${node_options[@]}"} \
  -p 127.0.0.1:8443:8443 -p 127.0.0.1:10080:10080 -p 127.0.0.1:2375:2375 "$image" 2>&1 >/dev/null) || {
  "$docker" rm --force --volumes kind >/dev/null 2>&1 || true
  # Not the reason, but in the first place, where podman has no systemd.
  started=$(grep -v healthchecks <<<"$started")
  die "$image cannot be started (it needs the ports 2375, 8443 and 10080): ${started%%$'\n'*}"
}
for state in docker-ready kubernetes-ready; do
  until [ "$(ask "$state")" = 200 ]; do
    ! has_failed || {
      "$docker" logs kind >&2
      die "$image did not become ready; its log is above. Remove it with: $docker rm --force --volumes kind"
    }
    # The init itself gives up after 300 s. After that, the reason must be that this script cannot reach it.
    [ $((($(now) - began) / 1000)) -lt 330 ] \
      || die "127.0.0.1:10080 does not report $state: is the engine on another machine? See: $docker logs kind"
    sleep 0.05
  done
  printf '%-16s after %5.1f s\n' "$state" "$(($(now) - began))e-3"
done
"$docker" exec kind kubectl get nodes
cat <<TEXT
The container is named kind. Try:
  $docker exec kind kubectl get pods --all-namespaces
  curl -o kubeconfig http://localhost:10080/config
Remove it with: $docker rm --force --volumes kind
TEXT
