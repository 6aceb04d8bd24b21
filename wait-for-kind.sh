#!/bin/sh
# Makes a job wait until kind is ready. Needs a POSIX shell with curl or wget (busybox will do), or bash alone.
set -eu

usage() {
  cat <<'TEXT'
Usage: wait-for-kind.sh [docker|kubernetes] [--reset] [--timeout SECONDS]
                        [--kubeconfig FILE [--name NAME]]
       wait-for-kind.sh --logs DIR

Waits until Docker or Kubernetes (the default) is ready, and exits with 0. Otherwise it says why, and exits
with 1 if kind has failed, 3 if the time is over, 4 if nothing answers where kind should be, and 2 if these
arguments or this image cannot work.
  --reset              have the cluster begin again, once it is ready, and wait until it is
                       ready again; Docker is left alone
  --timeout SECONDS    the longest time to wait (default 300, or KIND_TIMEOUT)
  --kubeconfig FILE    write a kubeconfig that works from here
  --name NAME          the name of cluster, context and user in it (default kind), for jobs with several clusters
  --logs DIR           do not wait, but write what explains kind to DIR: its logs and its pods', states, events

KIND_HOST is the host that kind runs on (default: the host in DOCKER_HOST, or localhost), KIND_PORT the
port of its file server (default 10080), KIND_API_PORT the port that 8443 is published as, if it differs.
TEXT
}

say() { echo "wait-for-kind: $*" >&2; }
# quit STATUS WORDS...
quit() {
  status=$1
  shift
  say "$*"
  exit "$status"
}
failed=1 misuse=2 late=3 unreachable=4
misused() { quit $misuse "$*; see --help"; }

# A Docker link or a Kubernetes Service named kind or kind-api sets some of these for its own purposes.
for name in KIND_HOST KIND_PORT KIND_API_PORT KIND_TIMEOUT; do
  value=''
  eval "value=\${$name:-}"
  case $value in
    tcp://* | udp://* | sctp://*)
      say "$name=$value comes from a Docker link or a Kubernetes Service and is ignored"
      unset "$name"
      ;;
  esac
done

state=kubernetes limit=${KIND_TIMEOUT:-300} kubeconfig='' name='' reset='' logs=''
while [ $# -gt 0 ]; do
  case $1 in
    docker | kubernetes) state=$1 ;;
    --reset) reset=1 ;;
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
    --name)
      case ${2:-} in '' | *[!A-Za-z0-9._-]*) misused "--name needs a name of letters, digits, dots, dashes and underscores" ;; esac
      [ ${#2} -le 63 ] || misused "--name needs a name of at most 63 characters"
      name=$2
      shift
      ;;
    --logs)
      [ -n "${2:-}" ] || misused "--logs needs a directory"
      logs=$2
      shift
      ;;
    -h | --help)
      usage
      exit
      ;;
    *) misused "unknown argument '$1': wait for docker or kubernetes" ;;
  esac
  shift
done
[ -z "$name" ] || [ -n "$kubeconfig" ] || misused "--name is for --kubeconfig"
[ -z "$logs" ] || [ -z "$reset$kubeconfig" ] || misused "--logs does nothing else"
case $limit in '' | *[!0-9]*) misused "the timeout must be a whole number of seconds" ;; esac
port=${KIND_PORT:-10080}
case $port in *[!0-9]*) misused "KIND_PORT=$port is not a port" ;; esac

host=${KIND_HOST:-}
if [ -z "$host" ]; then
  case ${DOCKER_HOST:-} in
    'tcp://['*']'*) host=${DOCKER_HOST#tcp://} host=${host%%']'*}']' ;;
    tcp://*) host=${DOCKER_HOST#tcp://} host=${host%%/*} host=${host%:*} ;;
    *) host=localhost ;;
  esac
fi
# An IPv6 address is written in brackets in a URL.
case $host in '['*) ;; *:*) host="[$host]" ;; esac
url=http://$host:$port

# What a request for a reset needs, so that no web page can send it.
header='X-Kind: reset' post=''

# within SECONDS COMMAND...: runs a command, and ends it if it has not ended by then.
within() {
  seconds=$1
  shift
  "$@" &
  client=$!
  {
    sleep "$seconds" &
    nap=$!
    trap 'kill "$nap"; exit' TERM
    wait "$nap"
    kill "$client"
  } </dev/null >/dev/null 2>&1 3>&- &
  guard=$!
  trap 'kill "$client" "$guard"; exit 1' INT TERM HUP
  status=0
  wait "$client" || status=$?
  trap - INT TERM HUP
  kill "$guard" || :
  return "$status"
}

# fetch FILE SECONDS: prints a file, or with $post posts a request. Returns 0 if it is served, 1 if something else was
# answered, and 2 if there was no answer within so many seconds. The job's proxy cannot reach the job's service.
unset http_proxy HTTP_PROXY all_proxy ALL_PROXY
if command -v curl >/dev/null; then
  fetch() {
    curl --silent --fail --max-time "$2" ${post:+--request POST --header "$header"} "$url/$1" && return
    # 22 is an HTTP error.
    [ $? = 22 ] || return 2
    return 1
  }
elif command -v wget >/dev/null; then
  # GNU wget retries twenty times by default. Its own time limits, and busybox's, apply to single steps only.
  once=''
  ! wget --version >/dev/null 2>&1 || once='--tries=1'
  fetch() {
    # shellcheck disable=SC2086
    { said=$(within "$2" wget -q $once ${post:+--header "$header" --post-data=} -O - "$url/$1" 2>&1 >&3) && return; } 3>&1
    # GNU wget exits with 8 after an HTTP error, busybox names it.
    case $?:$said in 8:* | *'server returned error'*) return 1 ;; esac
    return 2
  }
elif command -v bash >/dev/null; then
  # shellcheck disable=SC2016
  over_bash='exec 3<>"/dev/tcp/$1/$2" && printf "%s /%s HTTP/1.0\r\nHost: %s\r\n%s\r\n" "${5:-GET}" "$3" "$1" "${5:+$6$4
}" >&3 &&
    read -r _ status _ <&3 || exit 2
    case $status in 20?) ;; *) exit 1 ;; esac
    { while IFS= read -r line && [ "$line" != "$4" ]; do :; done; cat; } <&3'
  fetch() {
    address=${host#'['}
    within "$2" bash -c "$over_bash" - "${address%']'}" "$port" "$1" "$(printf '\r')" "${post:+POST}" "$header" 2>/dev/null && return
    [ $? = 1 ] || return 2
    return 1
  }
else
  quit $misuse "this needs curl, wget or bash"
fi

# The file server answers a long poll (?wait=SECONDS) when the file appears or the seconds are over. An older one
# answers at once, and is asked again and again. A long poll ends after a minute, in case the network has lost it.
longest_poll=60
# Whether anything has answered yet.
answered=''
began=$(date +%s)
left() { echo $((began + limit - $(date +%s))); }

# seconds UP_TO: the time that a request may take: no more than what is left, but enough for an answer.
seconds() {
  rest=$(left)
  [ "$rest" -lt "$1" ] || rest=$1
  [ "$rest" -gt 2 ] || rest=2
  echo "$rest"
}

# await FILE: prints a file as soon as it is served.
await() {
  case $1 in *'?'*) with='&' ;; *) with='?' ;; esac
  while :; do
    poll=$(($(left) - 2))
    [ "$poll" -le "$longest_poll" ] || poll=$longest_poll
    result=0
    if [ -n "$answered" ] && [ "$poll" -gt 0 ]; then
      # The answer must come before the client gives up.
      fetch "$1${with}wait=$poll" $((poll + 2)) || result=$?
    else
      fetch "$1" "$(seconds 5)" || result=$?
    fi
    [ "$result" != 0 ] || return 0
    if [ "$result" = 1 ]; then
      answered=1
      ! reason=$(fetch failed "$(seconds 5)") || quit $failed "kind has failed: $reason"
    fi
    [ "$(left)" -gt 0 ] || give_up "$1" "$result"
    # Not every sleep accepts fractions.
    sleep 0.2 2>/dev/null || sleep 1
  done
}

# give_up FILE RESULT: says what the time was spent on.
give_up() {
  [ "$2" = 1 ] || [ -z "$answered" ] || quit $unreachable "no $1 after $limit s, and $url does not answer any more"
  # The timeline is served from the start. If it is missing, kind is not late but unreachable.
  [ "$2" != 1 ] || timeline=$(fetch timeline 2) \
    || quit $unreachable "$url answers, but not as kind does for $host. Under a name that is not its own kind answers on port 10080 alone"
  [ "$2" = 1 ] || quit $unreachable "nothing answers at $url after $limit s: is KIND_HOST=$host where kind runs?"
  quit $late "no $1 after $limit s. Done so far, in seconds since kind started:
$timeline
Still waiting for:
$(fetch waiting 2)"
}

if [ -n "$logs" ]; then
  mkdir -p "$logs"
  archive=$logs/logs.tar.gz
  # Whoever is first has them collected, and others wait for their turn.
  while :; do
    result=0
    fetch logs.tar.gz "$(seconds 300)" >"$archive" || result=$?
    [ "$result" != 0 ] || break
    rm -f "$archive"
    fetch status.json "$(seconds 5)" >/dev/null || break
    [ "$(left)" -gt 0 ] || quit $late "no logs after $limit s: they are still being collected"
    sleep 1
  done
  [ "$result" != 1 ] || quit $failed "there are no logs at $url: this kind is too old for that, or not kind"
  [ "$result" = 0 ] || quit $unreachable "nothing answers at $url: is KIND_HOST=$host where kind runs?"
  if command -v tar >/dev/null; then
    tar -xzf "$archive" -C "$logs" || quit $failed "the logs ended too early; what came is in $logs"
    rm "$archive"
  fi
  say "the logs are in $logs"
  exit
fi
if [ -n "$reset" ]; then
  # A cluster that has failed can be reset, but not one that is still being started.
  fetch failed "$(seconds 5)" >/dev/null || await kubernetes-ready >/dev/null
  state=kubernetes post=1 result=0
  fetch reset "$(seconds 5)" >/dev/null || result=$?
  post=''
  [ "$result" = 0 ] || quit $failed "kind does not reset its cluster. If it is old enough to know no reset, update it. It is waiting for:
$(fetch waiting 2)"
fi
await "$state-ready" >/dev/null
say "$state is ready"
[ -n "$kubeconfig" ] || exit 0
# The API server answers some time after Docker.
query=${KIND_API_PORT:+port=$KIND_API_PORT}
query=$query${name:+${query:+&}name=$name}
config=$(await "config${query:+?$query}")
umask 077
case $kubeconfig in */*) mkdir -p "${kubeconfig%/*}/" ;; esac
printf '%s\n' "$config" >"$kubeconfig"
say "the kubeconfig is $kubeconfig"
