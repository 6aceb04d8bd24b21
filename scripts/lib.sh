# shellcheck shell=bash
# What build.sh and its parts share: how they speak, how they wait, and how they clean up.
# Sourced, never run.

# A trap speaks wherever the output of the interrupted command went: so this is kept apart.
exec 8>&2
say() { printf 'build: %s\n' "$*" >&8; }
die() { say "error: $*"; exit 1; }

# Of this build alone: several may run at the same time.
id=kind-build-$$-$RANDOM
work=$(mktemp -d)
doing=starting child='' ends='' temporary_images=("kind-build:$id") temporary_folder=''

# begin WHAT: the step that a failure or an interruption names.
begin() {
  doing=$1
  say "$doing"
}

# Bash heeds a signal only between commands, or while it waits: so whatever takes long is waited for.
# attend COMMAND...: an interruption ends the command. Only for programs, as functions have children.
attend() {
  ends=1
  wait_for "$@"
}

# outlast COMMAND...: it ends by itself, soon, before anything is cleaned up. The engine would finish
# what was asked of it all the same, and leave it behind.
outlast() {
  ends=''
  wait_for "$@"
}

wait_for() {
  local status=0
  "$@" <&0 8>&- &
  child=$!
  # A trap may have waited for it already, which bash would complain of.
  wait "$child" 2>/dev/null || status=$?
  child=''
  return "$status"
}

# Nothing is left behind, whichever step fails or is interrupted.
clean_up() {
  local status=$? name containers
  trap - EXIT
  trap '' INT TERM HUP
  set +e
  # The signal may have come between the start of the command and the note of its number.
  [ -n "$child" ] || child=$(jobs -p)
  if [ -n "$child" ]; then
    # shellcheck disable=SC2086
    [ -z "$ends" ] || kill $child 2>/dev/null
    # shellcheck disable=SC2086
    wait $child 2>/dev/null
  fi
  if [ -n "$engine" ]; then
    containers=$(docker ps --all --quiet --filter "label=kind.build=$id")
    # shellcheck disable=SC2086
    [ -z "$containers" ] || docker rm --force --volumes $containers >/dev/null 2>&1
    for name in "${temporary_images[@]}"; do
      docker image rm "$name" >/dev/null 2>&1
    done
    # The legacy builder keeps the steps of a build that did not end, each as an image without a name.
    [ "$status" = 0 ] || docker image prune --force --filter label=kind.stage=build >/dev/null 2>&1
  fi
  rm -rf "$work" ${temporary_folder:+"$temporary_folder"}
  exit "$status"
}

interrupted() {
  say "interrupted while $doing; nothing is left behind"
  exit "$1"
}

engine=''
trap clean_up EXIT
trap 'interrupted 129' HUP
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

sha256() {
  if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi
}
