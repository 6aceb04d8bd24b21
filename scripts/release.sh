#!/usr/bin/env bash
# Bakes and publishes images of every supported Kubernetes. See `scripts/release.sh --help`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'TEXT'
Usage: scripts/release.sh [OPTION]... REPOSITORY [MINOR]...

Bakes an image of each MINOR (default: every one that scripts/versions lists but --debian's) for this machine's
architecture, and pushes it to REPOSITORY, such as ghcr.io/you/kind. Log in first: docker login REGISTRY.

  REPOSITORY:1.36.5-COMMIT-amd64   what this machine has baked; never overwritten
  REPOSITORY:1.36.5, :latest-1.36  a list of what each architecture has baked from the same commit,
  REPOSITORY:latest                by digest; the last is the newest minor

The lists are made once each architecture has been pushed: run the same command, on the same commit, on a machine of
each. What was pushed already is not baked again, so a release that was interrupted goes on where it stopped.

  --architectures LIST   what a list must contain (default amd64,arm64)
  --insecure             the registry has no TLS; not needed on this machine's loopback
  --bundle DIR, --debian, --env NAME   passed on to build.sh
  --dirty                publish a checkout with changes that are not committed, as COMMIT-dirty
TEXT
}

say() { printf 'release: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

architectures=amd64,arm64 dirty='' insecure=() build=() positional=()
while [ $# -gt 0 ]; do
  case $1 in
    --architectures | --bundle | --env)
      [ -n "${2:-}" ] || die "$1 needs a value"
      if [ "$1" = --architectures ]; then architectures=$2; else build+=("$1" "$2"); fi
      shift
      ;;
    --debian) build+=("$1") ;;
    --dirty) dirty=1 ;;
    --insecure) insecure=(--insecure) ;;
    -h | --help) usage; exit 0 ;;
    -*) die "unknown option $1; --help lists the options" ;;
    *) positional+=("$1") ;;
  esac
  shift
done
set -- ${positional[@]+"${positional[@]}"}
[ $# -ge 1 ] || { usage >&2; exit 2; }
repository=$1
shift
case ${repository##*/} in *:*) die "$repository has a tag: name the repository alone, such as ghcr.io/you/kind" ;; esac
case $repository in
  */*) ;;
  *) die "$repository names no registry or user: use a name such as docker.io/you/kind or ghcr.io/you/kind" ;;
esac

case $repository in localhost:* | 127.*) insecure=(--insecure) ;; esac

# shellcheck source=scripts/version.sh
. "$here/scripts/version.sh"
newest=$(supported | head -n 1)
if [ $# = 0 ]; then
  mapfile -t minors < <(supported)
else
  minors=("$@")
fi

commit=$(git -C "$here" rev-parse --short=12 HEAD 2>/dev/null) || die "$here is not a git checkout, and the images' names contain its commit"
if [ -n "$(git -C "$here" status --porcelain)" ]; then
  [ -n "$dirty" ] || die "the checkout has changes that are not committed: commit them, or add --dirty"
  commit=$commit-dirty
fi
# shellcheck source=scripts/engine.sh
. "$here/scripts/engine.sh"
find_engine
[ -z "$podman" ] || die "publishing needs Docker: podman makes lists of images with other commands"
arch=$(docker version --format '{{.Server.Arch}}') || die "no Docker engine answers; the reason is above"
case ",$architectures," in
  *,"$arch",*) ;;
  *) die "this machine's engine is $arch, which is not one of --architectures $architectures" ;;
esac

manifest() {
  local verb=$1
  shift
  docker manifest "$verb" ${insecure[@]+"${insecure[@]}"} "$@"
}

# published NAME: whether the registry has it. Only its own answer that it has not is a no.
published() {
  local said
  said=$(manifest inspect "$1" 2>&1 >/dev/null) && return
  case $said in
    *'no such manifest'* | *'manifest unknown'* | *'not found'*) return 1 ;;
    *) die "the registry refuses $1: $said" ;;
  esac
}

# digest_of NAME: prints the digest under which the registry has this image.
digest_of() {
  local digest
  digest=$(manifest inspect --verbose "$1" | sed -n 's/.*"digest": "\(sha256:[0-9a-f]*\)".*/\1/p' | head -n 1)
  [ -n "$digest" ] || die "the registry reports no digest of $1"
  printf '%s' "$digest"
}

# bake MINOR: pushes this machine's image, unless that was done, and sets $version to its Kubernetes version.
bake() {
  local name temporary=kind-release:$$
  version=$("$here/build.sh" ${build[@]+"${build[@]}"} --print-version) || die "there is no Kubernetes $1 to bake; the reason is above"
  version=${version#v}
  name=$repository:$version-$commit-$arch
  if published "$name"; then
    say "$name was pushed already"
    return
  fi
  # An image that was baked, but not pushed.
  if ! docker image inspect "$name" >/dev/null 2>&1; then
    "$here/build.sh" ${build[@]+"${build[@]}"} "$temporary"
    docker tag "$temporary" "$name"
    docker image rm "$temporary" >/dev/null
  fi
  say "pushing $name"
  docker push --quiet "$name" >/dev/null || die "$name could not be pushed: run the same command again, and it is not baked again"
  # Without TLS, docker says of every image that it is not there.
  published "$name" || die "$name was pushed, but the registry does not show it: if it has no TLS, add --insecure"
  docker image rm "$name" >/dev/null
}

# join MINOR: makes the lists once each architecture has been pushed.
join() {
  local one name list images=() missing=() lists=("$version" "latest-$1")
  [ "$1" != "$newest" ] || lists+=(latest)
  for one in ${architectures//,/ }; do
    name=$repository:$version-$commit-$one
    if published "$name"; then images+=("$repository@$(digest_of "$name")"); else missing+=("$one"); fi
  done
  if [ ${#missing[@]} != 0 ]; then
    say "$repository:$version waits for ${missing[*]}: run this command on such a machine, at commit ${commit%-dirty}"
    return
  fi
  for list in "${lists[@]}"; do
    # What an interrupted run has left on this machine.
    docker manifest rm "$repository:$list" >/dev/null 2>&1 || true
    manifest create "$repository:$list" "${images[@]}" >/dev/null
    manifest push --purge "$repository:$list" >/dev/null
  done
  say "published: $(printf "$repository:%s " "${lists[@]}")"
}

for minor in "${minors[@]}"; do
  export KUBERNETES_VERSION=$minor
  bake "$minor"
  join "$(cut -d . -f 1,2 <<<"$version")"
done
