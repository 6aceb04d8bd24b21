#!/bin/sh
# Makes a job wait until kind is ready. Needs a POSIX shell with curl or wget (busybox will do), or bash alone.
set -eu

usage() {
  cat <<'TEXT'
Usage: wait-for-kind.sh [docker|kubernetes] [--timeout SECONDS] [--kubeconfig FILE]

Waits until Docker or Kubernetes (the default) is ready, and exits with 0. If kind fails or the time runs
out, exits with 1 and says why.
  --timeout SECONDS    the longest time to wait (default 300, or KIND_TIMEOUT)
  --kubeconfig FILE    write a kubeconfig that works from here

KIND_HOST is the host that kind runs on (default: the host in DOCKER_HOST, or localhost), KIND_PORT the
port of its file server (default 10080), KIND_API_PORT the port that 8443 is published as, if it differs.
TEXT
}

say() { echo "wait-for-kind: $*" >&2; }
die() { say "$*"; exit 1; }
misused() { say "$*; see --help"; exit 2; }

state=kubernetes limit=${KIND_TIMEOUT:-300} kubeconfig=''
while [ $# -gt 0 ]; do
  case $1 in
    docker | kubernetes) state=$1 ;;
    --timeout)
      [ -n "${2:-}" ] || misused "--timeout needs a whole number of seconds"
      limit=$2
      shift
      ;;
    --kubeconfig)
      [ -n "${2:-}" ] || misused "--kubeconfig needs a file"
      kubeconfig=$2
      shift
      ;;
    -h | --help)
      usage
      exit
      ;;
    *) misused "it can wait for docker or kubernetes, not for '$1'" ;;
  esac
  shift
done
case $limit in '' | *[!0-9]*) misused "the timeout must be a whole number of seconds" ;; esac

host=${KIND_HOST:-}
if [ -z "$host" ]; then
  case ${DOCKER_HOST:-} in
    tcp://*) host=${DOCKER_HOST#tcp://} host=${host%%/*} host=${host%:*} ;;
    *) host=localhost ;;
  esac
fi
url=http://$host:${KIND_PORT:-10080}

# The job's proxy cannot reach the job's service.
unset http_proxy HTTP_PROXY all_proxy ALL_PROXY
if command -v curl >/dev/null; then
  fetch() { curl --silent --fail --max-time 5 "$url/$1"; }
elif command -v wget >/dev/null; then
  # GNU wget retries twenty times by default.
  once=
  ! wget --version >/dev/null 2>&1 || once='--tries=1'
  fetch() {
    status=0
    # shellcheck disable=SC2086
    { wget -q $once -T 5 -O - "$url/$1" || status=$?; } 2>/dev/null
    # Some builds of busybox 1.35 crash on -T.
    [ "$status" -lt 128 ] || { status=0 && wget -q -O - "$url/$1" 2>/dev/null || status=1; }
    return "$status"
  }
elif command -v bash >/dev/null; then
  fetch() {
    # shellcheck disable=SC2016
    bash -c 'exec 3<>"/dev/tcp/$1/$2" && printf "GET /%s HTTP/1.0\r\nHost: %s\r\n\r\n" "$3" "$1" >&3 &&
      read -r _ status _ <&3 && [ "$status" = 200 ] && { while IFS= read -r line && [ "$line" != "$4" ]; do :; done; cat; } <&3' \
      - "$host" "${KIND_PORT:-10080}" "$1" "$(printf '\r')" 2>/dev/null
  }
else
  die "this needs curl, wget or bash"
fi

began=$(date +%s)

# await FILE: prints a file as soon as it is served.
await() {
  until fetch "$1"; do
    ! reason=$(fetch failed) || die "kind has failed: $reason"
    if [ $(($(date +%s) - began)) -ge "$limit" ]; then
      # The timeline is served from the start. If it is missing, kind is not late but unreachable.
      timeline=$(fetch timeline) || die "nothing answers at $url after $limit s: is KIND_HOST=$host where kind runs?"
      die "no $1 after $limit s. Done so far, in seconds since kind started:
$timeline
Still waiting for:
$(fetch waiting)"
    fi
    # Not every sleep accepts fractions.
    sleep 0.2 2>/dev/null || sleep 1
  done
}

await "$state-ready" >/dev/null
say "$state is ready"
[ -n "$kubeconfig" ] || exit 0
# The API server answers some time after Docker.
config=$(await "config${KIND_API_PORT:+?port=$KIND_API_PORT}")
umask 077
case $kubeconfig in */*) mkdir -p "${kubeconfig%/*}/" ;; esac
printf '%s\n' "$config" >"$kubeconfig"
say "the kubeconfig is $kubeconfig"
