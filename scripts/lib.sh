# shellcheck shell=bash
# Shared by build.sh and its parts: messages, waiting for commands, and cleaning up.
# Sourced, never run.

# A trap inherits the redirections of the command it interrupts, so messages have a descriptor of their own.
exec 8>&2
say() { printf 'build: %s\n' "$*" >&8; }
die() { say "error: $*"; exit 1; }

# Unique to this build: several may run at the same time.
id=kind-build-$$-$RANDOM
work=$(mktemp -d)
doing=starting child='' other='' kills=TERM ends='' interruption='' temporary_images=("kind-build:$id") temporary_directory='' temporary_file=''

# begin WHAT: starts a step; an interruption names it.
begin() {
  doing=$1
  say "$doing"
}

# Bash handles a signal only between commands or in `wait`, so slow commands run in the background.
# attend COMMAND...: an interruption kills the command. For programs only: a function's children would live on.
attend() {
  ends=$kills
  wait_for "$@"
}

# outlast COMMAND...: an interruption waits for the command, which is short. If it were killed, the engine
# would still finish what it was asked for, and leave that behind.
outlast() {
  ends=''
  wait_for "$@"
}

# beside COMMAND...: runs a program while others go on, and kills it if the build ends before; join_beside waits for it.
beside() {
  "$@" <&0 8>&- &
  other=$!
}

join_beside() {
  local status=0
  # An interruption kills it.
  wait "$other" 2>/dev/null || status=$?
  other=''
  return "$status"
}

wait_for() {
  local status=0
  "$@" <&0 8>&- &
  child=$!
  # If a trap has waited for it already, bash complains.
  wait "$child" 2>/dev/null || status=$?
  child=''
  return "$status"
}

remove_containers() {
  local containers
  containers=$("$docker" ps --all --quiet --filter "label=kind.build=$id" 2>/dev/null) || return
  # shellcheck disable=SC2086
  [ -z "$containers" ] || "$docker" rm --force --volumes $containers >/dev/null 2>&1
}

# remove_image NAME: succeeds as well if there is none, because a build may end before it has made it.
remove_image() {
  "$docker" image rm "$1" >/dev/null 2>&1 || ! "$docker" image inspect "$1" >/dev/null 2>&1
}

# Leaves nothing behind, whichever step fails or is interrupted.
clean_up() {
  local status=$? name kept=() ending="; nothing is left behind but the engine's build cache"
  trap - EXIT
  trap '' INT TERM HUP
  set +e
  # The signal may have come after the command started but before its pid was stored.
  [ -n "$child" ] || child=$(jobs -p | grep -vx "${other:-none}")
  [ -z "$other" ] || { kill "$other" && wait "$other"; } 2>/dev/null
  if [ -n "$child" ]; then
    # shellcheck disable=SC2086
    [ -z "$ends" ] || kill "-$ends" $child 2>/dev/null
    # shellcheck disable=SC2086
    wait $child 2>/dev/null
  fi
  if [ -n "$engine" ]; then
    remove_containers || kept+=("$docker rm --force --volumes \$($docker ps --all --quiet --filter label=kind.build=$id)")
    for name in "${temporary_images[@]}"; do
      remove_image "$name" || kept+=("$docker image rm $name")
    done
  fi
  rm -rf "$work" ${temporary_directory:+"$temporary_directory"} ${temporary_file:+"$temporary_file"}
  # Only now, when what was under way has ended, are these the last words.
  for name in ${kept[@]+"${kept[@]}"}; do
    say "the engine may have kept something of this build; to remove it: $name"
    ending=''
  done
  [ -z "$interruption" ] || say "interrupted while $interruption$ending"
  exit "$status"
}

interrupted() {
  interruption=$doing
  say "interrupted; cleaning up"
  # bash itself may complain about a process that the trap has taken from it ("wait_for: No record of process").
  exec 2>/dev/null
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

# keep FILE CACHED: moves a file into the cache. $work may be on another file system, so it is copied under another
# name and then renamed: the cache never contains half a file, even for another build or after an interruption.
keep() {
  temporary_file=$2.$id
  mkdir -p "${2%/*}"
  mv "$1" "$temporary_file"
  mv "$temporary_file" "$2"
  temporary_file=''
}
