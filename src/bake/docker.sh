#!/bin/sh
# Comes before the real docker in the scripts' PATH. A bake from a bundle may have no registry: an image that is
# there is not pulled again, and a failed login is no reason to stop if there is nothing left to pull.
real=/usr/local/bin/docker

# is_there ARGUMENT...: whether the arguments of a pull name an image that is there, for the platform that they ask for.
is_there() {
  image='' option='' platform=${DOCKER_DEFAULT_PLATFORM:-}
  for word; do
    case $option$word in
      --platform=*) platform=${word#--platform=} option='' ;;
      --platform) option=--platform= ;;
      -a | --all-tags) return 1 ;;
      -*) ;;
      *) image=$word ;;
    esac
  done
  have=$("$real" image inspect --format '{{.Os}}/{{.Architecture}}/{{.Variant}}' "$image" 2>/dev/null) || return 1
  case $have/ in "${platform:-$have}"/*) ;; *) return 1 ;; esac
}

case "$1 $2" in
  'pull '* | 'image pull')
    if is_there "$@"; then
      echo "$image is already present" >&2
      # What a quiet pull prints, which scripts may use.
      echo "$image"
      exit 0
    fi
    ;;
  'login '*)
    [ -z "$KIND_BUNDLE_COMPLETE" ] || {
      "$real" "$@" || echo "docker login failed; continuing, because the bundle contains what the scripts pulled when it was made" >&2
      exit 0
    }
    ;;
esac
exec "$real" "$@"
