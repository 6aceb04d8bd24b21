#!/bin/sh
# Comes before the real docker in the scripts' PATH. A bake from a bundle may have no registry: an image that is
# there is not pulled again, and a failed login is no reason to stop if there is nothing left to pull.
real=/usr/local/bin/docker

# is_there IMAGE PLATFORM: if PLATFORM is empty, any will do.
is_there() {
  # From Docker 28.1 one can ask whether an image has a platform.
  [ -z "$2" ] || ! "$real" image inspect --platform "$2" "$1" >/dev/null 2>&1 || return 0
  have=$("$real" image inspect --format '{{.Os}}/{{.Architecture}}/{{.Variant}}' "$1" 2>/dev/null) || return 1
  case $have/ in "${2:-$have}"/*) ;; *) return 1 ;; esac
}

# is_satisfied ARGUMENT...: whether this is a pull of an image that is there. If so, it prints what a pull would.
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
    # Only a complete bundle is known to have all of the tags.
    [ -n "$KIND_BUNDLE_COMPLETE" ] && [ -n "$("$real" image ls --quiet "$image")" ] || return 1
  else
    is_there "$image" "$platform" || return 1
  fi
  # With --quiet docker prints only the name, which scripts may use.
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
