#!/bin/sh
# Goes before the real docker in the scripts' PATH. Whoever bakes from a bundle has no registry: what is
# there is not pulled again, and a login that fails is no reason to stop when nothing is left to pull.
real=/usr/local/bin/docker

# is_there IMAGE PLATFORM: for any platform where none is named.
is_there() {
  # From Docker 28.1 an image can be asked for each of its platforms.
  [ -z "$2" ] || ! "$real" image inspect --platform "$2" "$1" >/dev/null 2>&1 || return 0
  have=$("$real" image inspect --format '{{.Os}}/{{.Architecture}}/{{.Variant}}' "$1" 2>/dev/null) || return 1
  case $have/ in "${2:-$have}"/*) ;; *) return 1 ;; esac
}

# is_satisfied ARGUMENT...: whether this is a pull of what is there, and it has been said.
is_satisfied() {
  [ "$1" != image ] || shift
  [ "$1" = pull ] || return 1
  shift
  image='' quiet='' every='' platform=${DOCKER_DEFAULT_PLATFORM:-}
  while [ $# -gt 0 ]; do
    case $1 in
      -q | --quiet | --quiet=true) quiet=1 ;;
      -a | --all-tags | --all-tags=true) every=1 ;;
      -qa | -aq) quiet=1 every=1 ;;
      --disable-content-trust | --disable-content-trust=*) ;;
      --platform)
        [ $# -gt 1 ] || return 1
        platform=$2
        shift
        ;;
      --platform=*) platform=${1#*=} ;;
      -*) return 1 ;;
      *) [ -z "$image" ] && image=$1 || return 1 ;;
    esac
    shift
  done
  [ -n "$image" ] || return 1
  case $platform in '' | */*) ;; *) platform=linux/$platform ;; esac
  if [ -n "$every" ]; then
    # Which tags a registry has, only a bundle that is complete knows.
    [ -n "$KIND_BUNDLE_COMPLETE" ] && [ -n "$("$real" image ls --quiet "$image")" ] || return 1
  else
    is_there "$image" "$platform" || return 1
  fi
  # Quiet, docker writes the name alone, which scripts go on with.
  [ -n "$quiet" ] && echo "$image" || echo "$image is there already"
}

if is_satisfied "$@"; then
  exit 0
fi
if [ "$1" = login ] && [ -n "$KIND_BUNDLE_COMPLETE" ]; then
  "$real" "$@" || echo "docker login failed: going on, as the bundle holds what the scripts pulled when it was made" >&2
  exit 0
fi
exec "$real" "$@"
